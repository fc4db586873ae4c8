"""Whether another life of an agent lives, by this machine's own word."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

from castor_policy.agents.agent_report import AgentReport
from castor_policy.agents.own_report import Sign
from castor_runtime.agent.life import own_life, sign_of, whereabouts
from castor_runtime.processes import started_ticks

CHILD = [sys.executable, "-c", "input()"]


def test_a_process_that_runs_is_alive_and_one_that_was_killed_is_dead_reaped_or_not() -> None:
    assert sign_of(own_life()) is Sign.ALIVE
    with subprocess.Popen(CHILD, stdin=subprocess.PIPE) as child:
        life = replace(own_life(), pid=child.pid, started_ticks=started_ticks(child.pid) or 0)
        assert sign_of(life) is Sign.ALIVE
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
        assert sign_of(life) is Sign.DEAD
    assert sign_of(life) is Sign.DEAD


def test_a_number_that_another_process_has_by_now_is_no_life() -> None:
    life = own_life()
    assert sign_of(replace(life, started_ticks=life.started_ticks - 1)) is Sign.DEAD


def test_of_another_machine_or_container_or_boot_nothing_is_known() -> None:
    dead = replace(own_life(), pid=1 << 22)
    assert sign_of(dead) is Sign.DEAD
    assert sign_of(replace(dead, boot_id="another")) is Sign.UNKNOWN
    assert sign_of(replace(dead, pid_namespace="another")) is Sign.UNKNOWN
    assert sign_of(replace(dead, boot_id="", pid_namespace="")) is Sign.UNKNOWN
    assert sign_of(replace(dead, pid=0)) is Sign.UNKNOWN


def test_it_is_said_where_and_since_when() -> None:
    life = replace(own_life(), host="node-7", pid=12, since_ns=1_764_326_400 * 10**9)
    report = AgentReport("a", "i1", False, "10.0.0.7:99", life=life)
    assert whereabouts(report) == "on node-7 (10.0.0.7:99, pid 12) since 2025-11-28 10:40:00 UTC"
