"""`castor run`: what a host's line must say, refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError

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
