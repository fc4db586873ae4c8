"""What a script's imports leave behind where trainers are forked from: real forks and threads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(4)
from castor_runtime.agent.import_effects import import_effects

def forked(*modules):
    effects = import_effects()
    effects.import_all(Path("train.py"), modules)
    read, write = os.pipe()
    if os.fork() == 0:
        signal.alarm(30)  # ends it where it waits for threads that there are not
        effects.release(None)
        torch.ones(4_000_000).add_(1).sum()
        os.write(write, str(torch.get_num_threads()).encode())
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    os.close(write)
    said = ""
    try:
        effects.check()
    except SystemExit as end:
        said = end.code
    return code, os.read(read, 9).decode(), said

print(json.dumps({
    "nothing": forked(),
    "computing": forked("computing", "broken"),
    "using": forked("using"),
    "unusing": forked("unusing"),
}))
"""
MODULES = {
    "computing": """
import torch
assert torch.ones(4_000_000).add_(1).sum() == 8_000_000  # what several threads would share
torch.set_num_threads(3)
assert torch.ones(4_000_000).add_(1).sum() == 8_000_000
""",
    "broken": "raise RuntimeError",
    "using": "import torch\ntorch.cuda._initialized = True\n",
    "unusing": "import torch\ntorch.cuda._initialized = False\n",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("modules")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    program = Path(folder / "program.py")
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_module_may_compute_while_it_is_imported(found: dict[str, Any]) -> None:
    assert found["nothing"] == [0, "4", ""]
    assert found["computing"] == [0, "3", ""], "with as many threads as it has asked for"


def test_one_that_uses_a_gpu_then_is_named(found: dict[str, Any]) -> None:
    code, _, said = found["using"]
    assert code == 0
    assert said.startswith("train.py imports using, which uses the GPU while it is imported")
    assert found["unusing"][2] == ""
