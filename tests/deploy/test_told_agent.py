"""What a batch script's or a pod's shell is told reaches its agent, whenever it is told."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from castor_runtime.deployment.told_agent import told_agent

AGENT = """
import os, signal, sys, time
seen = []
signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
print("ready", flush=True)
give_up_s = time.monotonic() + 60
while len(seen) < int(sys.argv[1]) and time.monotonic() < give_up_s:
    time.sleep(0.01)
print("told", len(seen), flush=True)
sys.exit(93)
"""


def shell(tmp_path: Path, agent: Sequence[str], slowly: str = "") -> subprocess.Popen[str]:
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "slowly").write_text(slowly)
    command = shlex.join([sys.executable, str(tmp_path / "agent.py"), *agent])
    line = told_agent(command, {"USR1": 1, "TERM": 2}) + 'echo "over:$told$code"'
    return subprocess.Popen(
        ["bash", "-c", line],
        env={**os.environ, "BASH_ENV": str(tmp_path / "slowly")},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "times"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 2)])
@pytest.mark.parametrize("early", [False, True])
def test_a_signal_reaches_the_agent_as_often_as_it_means(
    tmp_path: Path, number: signal.Signals, times: int, early: bool
) -> None:
    # The shell waits with the line after the agent's start, until it has been told.
    slowly = 'trap wait_for_it DEBUG; wait_for_it() { [ "$BASH_COMMAND" != "agent=\\$!" ] ||'
    slowly += ' until [ -e "$BASH_ENV.told" ]; do sleep 0.01; done; }'
    with shell(tmp_path, [str(times)], slowly if early else "") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        # Before it goes on it acts on the signal: it was sent first.
        (tmp_path / "slowly.told").touch()
        assert running.stdout.read() == f"told {times}\nover:yes93\n"


def test_an_agent_that_ends_untold_ends_the_lines(tmp_path: Path) -> None:
    with shell(tmp_path, ["0"]) as running:
        assert running.stdout is not None
        assert running.stdout.read() == "ready\ntold 0\nover:93\n"
