"""What is hashed of a script, and that it is what runs, whatever becomes of the files."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from castor_runtime.agent.script_files import held, read_script

FILES = {
    "train.py": "import os, model\ndef later():\n    from package.deep import leaf\n",
    "model.py": "from package import tool\nimport torch\n",
    "package/__init__.py": "",
    "package/tool.py": "from . import sibling\nfrom .deep import *\n",
    "package/sibling.py": "from ..outside import nothing\n",
    "package/deep/__init__.py": "",
    "package/deep/leaf.py": "import model\n",
    "package/unused.py": "1 / 0\n",
    "other.py": "1 / 0\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "train.py"


def test_the_script_and_what_it_imports_from_its_folder_and_nothing_else(tmp_path: Path) -> None:
    files = read_script(write(tmp_path, FILES))
    digests = files.digests()
    assert sorted(digests) == sorted(set(FILES) - {"package/unused.py", "other.py"})
    for name, digest in digests.items():
        assert digest == hashlib.sha256(FILES[name].encode()).hexdigest()


def test_a_folder_that_is_reached_by_a_link_is_the_same(tmp_path: Path) -> None:
    write(tmp_path / "real", FILES)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    linked = read_script(tmp_path / "link" / "train.py")
    assert linked.digests() == read_script(tmp_path / "real" / "train.py").digests()


def test_what_lies_outside_the_folder_is_not_covered_and_a_link_into_it_is(tmp_path: Path) -> None:
    write(tmp_path / "package", {"outside.py": "", "far.py": "import near\n"})
    script = write(
        tmp_path / "package" / "inner",
        {"train.py": "from ..outside import x\nfrom .. import outside\nimport linked\n"},
    )
    (script.parent / "linked.py").symlink_to(tmp_path / "package" / "far.py")
    (script.parent / "near.py").write_text("")
    files = read_script(script)
    assert sorted(files.digests()) == ["linked.py", "near.py", "train.py"]
    assert files.digests()["linked.py"] == hashlib.sha256(b"import near\n").hexdigest()


@pytest.mark.parametrize("text", ["def (", "\0", "import nowhere.at.all, missing"])
def test_what_cannot_be_read_or_found_is_left_to_the_trainer(tmp_path: Path, text: str) -> None:
    assert list(read_script(write(tmp_path, {"train.py": text})).digests()) == ["train.py"]


def test_a_script_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        held(tmp_path / "train.py")


RUNS = """
import sys, traceback
from pathlib import Path
from castor_runtime.agent.script_files import hold, read_script, run_held
script = sys.argv[1]
hold(read_script(Path(script)))
folder = Path(script).parent
for file in folder.glob("*.py"):
    file.write_text("raise SystemExit('the file was read anew')")
sys.argv = [script, "an argument"]
sys.path.insert(0, str(folder))
try:
    run_held(script)
except ValueError:
    traceback.print_exc()
"""


def test_what_was_read_is_what_runs_though_every_file_has_changed(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        {
            "train.py": "import inspect, pickle, sys\n"
            "def local():\n    import model\n    return model\n"
            "class Point: pass\n"
            "assert __name__ == '__main__' and sys.argv[1:] == ['an argument']\n"
            "assert isinstance(pickle.loads(pickle.dumps(Point())), Point)\n"
            "assert 'return model' in inspect.getsource(local)\n"
            "print(local().VALUE, __file__)\n"
            "local().fails()\n",
            "model.py": "VALUE = 'as it was'\ndef fails():\n    raise ValueError('here')\n",
        },
    )
    ended = subprocess.run(
        [sys.executable, "-c", RUNS, str(script)], capture_output=True, text=True, check=False
    )
    assert ended.stdout == f"as it was {script}\n", ended.stderr
    assert ended.returncode == 0
    assert ended.stderr.endswith("ValueError: here\n")
    assert "raise ValueError('here')" in ended.stderr  # the line that ran, not the file's now
