"""Settings that hold for every test, and what some of them need of the machine."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import gc
import logging
import os
import re
import shlex
import shutil
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pytest
import typer.main
from hypothesis import settings

mpl.use("Agg")

# typer builds all commands anew for each call of one, which takes 0.1 s; here they are called 400
# times in a process. `typer.testing`, imported later, takes it from there.
typer.main.get_command = functools.cache(typer.main.get_command)

# A loaded machine must not fail a property by its clock, and CI must draw what a desk drew.
# Tests that need more or fewer examples say how many times these: `make test-fast` draws a quarter.
settings.register_profile("castor", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("fast", settings.get_profile("castor"), max_examples=25)
settings.load_profile("castor")

# Imported traces and compiled kernels are cached; the tests use what a user would, unless told.
_SHARED = Path(__file__).resolve().parents[2] / "shared" / "traces"
if "CASTOR_TRACES" not in os.environ and _SHARED.is_dir():
    os.environ["CASTOR_TRACES"] = str(_SHARED)

# A user's PATH often lacks the folders of the administrator's programs.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    """Leave a test out, and say what to do, where a program is missing or the tests are not root's.

    Call it with names of programs; with root=True where only root can do what the test does.
    """

    def check(*programs: str, root: bool = False) -> None:
        missing = [name for name in programs if shutil.which(name, path=_PATH) is None]
        if missing:
            pytest.skip(f"needs {' and '.join(missing)}: bash tests/install-programs.sh")
        if root and os.geteuid() != 0:
            pytest.skip("needs root, as in a container: it mounts, or becomes another user")

    return check


@dataclass(frozen=True, slots=True)
class Recipe:
    """How CONTRIBUTING.md says that something is added, its file written.

    Attributes:
        plugins: what CASTOR_PLUGINS is set to, the file by its whole path.
        entry_point: the same as a line of an entry point, and its group.
        commands: the words of each command after it.
    """

    plugins: str
    entry_point: tuple[str, str]
    commands: list[list[str]]


@pytest.fixture(scope="session")
def recipe() -> Callable[[str, Path], Recipe]:
    """Write the file of one of CONTRIBUTING.md's recipes into a folder; return the rest of it."""
    text = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")

    def written(title: str, folder: Path) -> Recipe:
        section = text.partition(f"\n### {title}\n")[2].partition("\n### ")[0]
        (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
        file = code.splitlines()[0].removeprefix("# ")
        (folder / file).write_text(code, encoding="utf-8")
        line, *commands = re.findall(r"^    (.*)$", section.rpartition("```")[2], re.M)
        (plugins,) = re.findall(r'^export CASTOR_PLUGINS="(.*)"$', line)
        declared, _, place = plugins.partition(" = ")
        kind, _, name = declared.partition(".")
        entry = f"{name} = {place.replace('.py:', ':')}"
        return Recipe(
            f"{declared} = {folder / place}",
            (f"castor.{kind}", entry),
            [shlex.split(command) for command in commands],
        )

    return written


@pytest.fixture(scope="session")
def program() -> tuple[str, ...]:
    """The training program of all tests that start real trainers, but for its --iterations.

    Its iterations take long enough to be hit, and not longer.
    """
    example = Path(__file__).resolve().parents[1] / "examples" / "gpt2_tiny.py"
    return (str(example), "--layers=1", "--hidden=32", "--sequence=32", "--batch=2")


@pytest.fixture(scope="session")
def imported_once() -> Iterator[None]:
    """Runs are forked from one process, but for those whose interpreter must be another.

    Each would import torch and DeepSpeed by itself, longer than most of them train.
    """
    from castor_lab.soak.trial import warm_starts  # noqa: PLC0415 - few tests train

    with warm_starts():
        yield


@pytest.fixture(scope="session")
def baseline(
    tmp_path_factory: pytest.TempPathFactory,
    worker_id: str,
    program: tuple[str, ...],
    imported_once: None,
) -> Callable[[int, int], str]:
    """SHA-256 of the final state without failures, by ranks and iterations; one run each.

    Which machines the ranks are on, and how many replicas there are, must change nothing.
    """
    from castor_lab.soak.trial import train  # noqa: PLC0415 - few tests train

    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent  # that of all workers of pytest-xdist

    def sha256(ranks: int, iterations: int) -> str:
        known = shared / f"baseline-{ranks}-{iterations}.txt"
        with known.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not known.exists():
                folder = shared / f"baseline-{ranks}-{iterations}"
                line = ["--nodes", str(ranks), *program, "--iterations", str(iterations)]
                trial = train(folder, line)
                assert trial.code == 0, trial.output
                assert trial.recoveries == []
                assert trial.sha256 is not None
                known.write_text(trial.sha256)
            return known.read_text()

    return sha256


def _close_connections() -> None:
    """Close what tiers keep open for as long as a process lives."""
    import aiohttp  # noqa: PLC0415 - costs time
    from fsspec.asyn import get_loop  # noqa: PLC0415 - likewise

    open_yet = [one for one in gc.get_objects() if type(one) is aiohttp.ClientSession]
    for session in open_yet:
        asyncio.run_coroutine_threadsafe(session.close(), get_loop()).result(10)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A real S3 server, with one bucket named "bucket"; its endpoint. Any credentials do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer  # noqa: PLC0415 - costs a second

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    mine = {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    made = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
    urllib.request.urlopen(made, timeout=30).close()
    yield endpoint
    _close_connections()
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
