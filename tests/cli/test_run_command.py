"""`castor run`: what a host's line must say, refused before anything is started."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_policy.agents.exit_codes import FINISHED, SETTLED, STORE_AWAY
from castor_policy.store import StoreUnavailableError
from castor_runtime.agent import main
from castor_runtime.agent.options import AgentOptions

LINE = ("--job", "j", "--store", "etcd://h:1", "--secret", __file__)


def refused(*options: str) -> str:
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(app, ["run", *options], catch_exceptions=False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--nnodes", "0", *LINE), "--nnodes: expected MIN or MIN:MAX, such as 4:5, not '0'"),
        (("--nnodes", "4:3", *LINE), "--nnodes: expected MIN or MIN:MAX, such as 4:5, not '4:3'"),
        (("--nnodes", "1", *LINE), "expected 1 to 1 (the nodes), not 2"),
        (("--nnodes", "2", *LINE[2:]), "--job: name the job, by the same name on every host"),
        (("--nnodes", "2", *LINE[:2], *LINE[4:]), "--store: hosts meet in a store"),
        (("--nnodes", "2", *LINE[:4]), "--secret: agents need credentials"),
        (("--nnodes", "2", *LINE, "--interface", "eth99"), "there is no interface 'eth99'"),
        (("--nnodes", "2", *LINE, "--mu", "2"), "--mu: expected"),
        (("--nnodes", "2", *LINE, "--placement", "domains"), "--placement: goes with castor train"),
        (("--nnodes", "2", *LINE, "--set", "traffic.nu=1"), "traffic.nu"),
    ],
)
def test_a_line_that_cannot_be_is_refused(options: tuple[str, ...], why: str) -> None:
    assert why in refused(*options, __file__)


def test_a_job_file_says_what_the_line_does_not(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    file = tmp_path / "job.toml"
    file.write_text('script = "train.py"\nnodes = 2\njob = "j"\nstore = "etcd://h:1"\n')
    assert refused(str(file)).startswith("--secret: agents need credentials")
    assert "expected 1 to 1" in refused("--nnodes", "1", str(file))


def test_who_starts_while_the_store_is_away_is_to_be_started_again(tmp_path: Path) -> None:
    """A cluster's hosts may be up before its etcd: 2 would keep them out of the job for good."""
    (tmp_path / "secret").write_bytes(b"the secret of this job")
    words = ["--job", "j", "--store", "etcd://127.0.0.1:1", "--secret", str(tmp_path / "secret")]
    words += ["--folder", str(tmp_path / "logs"), "--wait", "0.1s"]
    castor = str(Path(sys.executable).with_name("castor"))
    done = subprocess.run(
        [castor, "agent", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (STORE_AWAY, "")
    assert "castor: etcd://127.0.0.1:1 does not answer: etcd at 127.0.0.1:1: " in done.stderr
    assert "Traceback" not in done.stderr
    assert STORE_AWAY not in SETTLED
    unit = Path(__file__).resolve().parents[2] / "runtime" / "deploy" / "castor@.service"
    (never,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit.read_text(), re.M)
    assert {int(code) for code in never.split()} | {FINISHED} == set(SETTLED)


def test_a_host_whose_job_cannot_be_read_yet_is_to_be_started_again() -> None:
    async def away() -> None:
        raise StoreUnavailableError("is down")

    options = AgentOptions("n", "j", "etcd://h:1", Path("logs"), wait_s=0.0)
    with pytest.raises(main._StoreAwayError, match="does not answer: is down"):
        asyncio.run(main._answered(options, away))
