"""The samples for a host's own supervisor: systemd takes the unit, logrotate turns the logs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[2] / "runtime" / "deploy"


def run(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_systemd_knows_every_word_of_the_unit(needs: Callable[..., None], tmp_path: Path) -> None:
    needs("systemd-analyze")
    unit = (SAMPLES / "castor@.service").read_text()
    assert unit.count("/opt/castor/bin/castor") == 1
    file = tmp_path / "castor@gpt2.service"
    file.write_text(unit.replace("/opt/castor/bin/castor", "/bin/true"))
    # A word that it does not know, or a value that cannot be, is an error.
    assert run("systemd-analyze", "verify", "--recursive-errors=no", str(file)) == ""


def test_a_trainer_goes_on_in_a_log_that_was_turned(
    needs: Callable[..., None], tmp_path: Path
) -> None:
    needs("logrotate", root=True)
    sample = (SAMPLES / "castor.logrotate").read_text()
    turned = sample.replace("/var/log/castor", str(tmp_path)).replace("su castor castor", "su")
    (tmp_path / "settings").write_text(turned.replace("    su\n", ""))
    folder = tmp_path / "gpt2" / "node-1"
    folder.mkdir(parents=True)
    for one in (tmp_path, folder.parent, folder):
        one.chmod(0o755)  # else logrotate asks for whom it should work
    log = folder / "rank-3.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)  # as its agent does
    try:
        os.write(descriptor, b"before\n")
        (folder / "events.jsonl").write_text("{}\n")
        run("logrotate", "--force", "--state", str(tmp_path / "state"), str(tmp_path / "settings"))
        os.write(descriptor, b"after\n")
    finally:
        os.close(descriptor)
    assert log.read_text() == "after\n"
    assert sorted(one.name for one in folder.iterdir()) == [
        "events.jsonl",
        "rank-3.log",
        "rank-3.log.1.gz",
    ]
