"""The script that installs what some tests run beside Python: what it does, and what it says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "install-programs.sh"
PROGRAMS = {
    "mount": "mount",
    "setpriv": "util-linux",
    "pkill": "procps",
    "c++": "g++",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "logrotate": "logrotate",
    "systemd-analyze": "systemd",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder of programs in which only the script's own ones are."""
    folder = tmp_path / "bin"
    folder.mkdir()
    folder.joinpath("bash").symlink_to(shutil.which("bash") or "/bin/bash")
    return folder


def say(path: Path, program: str, does: str) -> None:
    file = path / program
    file.write_text(f"#!/bin/sh\n{does}\n")
    file.chmod(0o755)


def run(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT)],
        env={"PATH": str(path)},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def missing() -> list[str]:
    """Return the packages to install: the script looks into these folders in any case."""
    found = [p for p in PROGRAMS if shutil.which(p, path="/usr/sbin:/sbin") is None]
    return [PROGRAMS[program] for program in found]


def test_what_is_missing_is_installed_by_root_and_told_to_others(path: Path) -> None:
    say(path, "apt-get", f'echo "$@" >> {path}/said')
    say(path, "id", "echo 1000")
    refused = run(path)
    assert refused.returncode == 1
    assert "run as root: apt-get install --yes" in refused.stderr
    assert all(package in refused.stderr for package in missing())
    assert not (path / "said").exists()
    say(path, "id", "echo 0")
    assert run(path).returncode == 0
    update, install = (path / "said").read_text().splitlines()
    assert update.startswith("update")
    assert set(missing()) <= set(install.split())


def test_elsewhere_than_on_debian_the_programs_are_named(path: Path) -> None:
    refused = run(path)
    assert refused.returncode == 1
    assert "install what has these programs" in refused.stderr


def test_where_all_is_there_nothing_is_done(path: Path, tmp_path: Path) -> None:
    for program in ("ip", "tc", "ss", "promtool", *PROGRAMS):
        say(path, program, "exit 1")
    (tmp_path / "Python.h").touch()
    say(path, "python3", f"echo {tmp_path}")
    done = run(path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
