"""The training program as it was when its agent started: what is hashed is what runs.

A job lives for weeks, and its script lies in a folder that people work in. An agent reads the
script once, with the modules that it imports from its own folder, and every trainer that it ever
starts runs these very bytes, whatever the files say by then. A changed script comes with a new
agent, which compares it with the job's.

What is covered: the script, and each module under its folder that it or such a module imports by a
statement, at the top or anywhere below. What is not: modules that are imported by a computed name,
compiled extensions, packages elsewhere (their versions are compared for Castor, Python and torch),
data files, and processes that start a new interpreter (`spawn`), which read the files anew.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

_MODULES_MOST = 5000
"""A folder that holds more is no training program's; what comes after is left alone."""


@dataclass(frozen=True)
class ScriptFiles:
    """A script and what it imports from its own folder.

    Attributes:
        script: its path, absolute.
        sources: content of each file by its absolute path, the script's too.
    """

    script: str
    sources: Mapping[str, bytes]

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file by its path from the script's folder."""
        folder = Path(self.script).parent
        return {
            str(Path(path).relative_to(folder)): hashlib.sha256(source).hexdigest()
            for path, source in sorted(self.sources.items())
        }

    @property
    def names_iteration(self) -> bool:
        """Whether any of them calls a method `iteration`, as who goes on in place does.

        It is asked before the program runs: process groups are made before its Checkpointer is.
        """
        return any(b".iteration(" in source for source in self.sources.values())


def read_script(script: Path) -> ScriptFiles:
    """Read a script and, module by module, what it imports from its own folder.

    Raises:
        OSError: the script cannot be read.
    """
    script = script.resolve()
    sources = {str(script): script.read_bytes()}
    waiting = [(script, script.parent)]
    while waiting and len(sources) < _MODULES_MOST:
        file, package = waiting.pop()
        for module in _imported(sources[str(file)], script.parent, package):
            if str(module) not in sources:
                try:
                    sources[str(module)] = module.read_bytes()
                except OSError:
                    continue  # the trainer will say it
                waiting.append((module, module.parent))
    return ScriptFiles(str(script), sources)


def _imported(source: bytes, folder: Path, package: Path) -> Iterator[Path]:
    """Yield the files under `folder` that a module in `package` may import by a statement."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # the trainer will say it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(folder, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = folder if node.level == 0 else package.joinpath(*[".."] * (node.level - 1))
            base = Path(os.path.normpath(base))
            if not base.is_relative_to(folder):
                continue  # of a package that the script itself lies in
            words = node.module.split(".") if node.module else []
            yield from _files(base, words)
            for alias in node.names:
                yield from _files(base, [*words, alias.name])


def _files(base: Path, words: Sequence[str]) -> Iterator[Path]:
    """Yield the packages' and the module's files of a dotted name."""
    place = base
    for word in words:
        place = place / word
        for file in (place / "__init__.py", place.with_name(f"{word}.py")):
            if file.is_file():
                yield file


# ---- in the processes that run it ------------------------------------------------------------


class _Held(SourceFileLoader):
    """Loads a module from the bytes that are held, and from no compiled file."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_data(self, path: str) -> bytes:
        """Return the held source; other files (data beside it) as they are."""
        return self._source if path == self.path else super().get_data(path)

    def get_code(self, fullname: str) -> CodeType:
        """Compile the held source."""
        return self.source_to_code(self._source, self.get_filename(fullname))


class _HeldFinder(MetaPathFinder):
    """Finds what every finder finds, and has held files loaded from what is held."""

    def __init__(self) -> None:
        self.files: ScriptFiles | None = None
        self.names: frozenset[str] = frozenset()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec that loads from the held source; None: others may find it."""
        if self.files is None or fullname.partition(".")[0] not in self.names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return None
        source = self.files.sources.get(os.path.normpath(spec.origin))
        if source is None:
            return None
        spec.loader = _Held(fullname, spec.origin, source)
        spec.cached = None
        return spec


_FINDER = _HeldFinder()


def hold(files: ScriptFiles) -> None:
    """Have this process and all that are forked from it run these files as they were read."""
    _FINDER.files = files
    _FINDER.names = frozenset(Path(name).parts[0].removesuffix(".py") for name in files.digests())
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    for path, source in files.sources.items():
        lines = source.decode("utf-8", errors="replace").splitlines(keepends=True)
        # So that a traceback, and whatever reads a function's source, shows what runs.
        linecache.cache[path] = (len(source), None, lines, path)


def held(script: Path) -> ScriptFiles:
    """Return the script's files as this process holds them; read them if it does not.

    Raises:
        OSError: the script cannot be read.
    """
    files = _FINDER.files
    if files is not None and files.script == str(script.resolve()):
        return files
    return read_script(script)


def run_held(script: str) -> None:
    """Run a script as the interpreter runs its main program, from what is held of it.

    Raises:
        OSError: it is not held, and cannot be read.
    """
    source = held(Path(script)).sources[str(Path(script).resolve())]
    main = ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main
    exec(compile(source, script, "exec"), main.__dict__)  # noqa: S102 - the user's own program
