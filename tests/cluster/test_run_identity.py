"""Whose memory, whose name: two runs of one name, giving up and going on, and who is ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from castor_lab.soak.trial import Process, Running, plain, start_castor
from castor_records.event_log import merge
from castor_records.recoveries import last_iteration
from castor_runtime.launcher.control import ask

pytestmark = pytest.mark.long

CASTOR = str(Path(sys.executable).with_name("castor"))
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpt2_tiny.py"
SHM = Path("/dev/shm")

# The example, but for one iteration that fails until somebody has mended it.
BREAKS = """
import pathlib
import runpy
import castor

class Breaks(castor.Checkpointer):
    def resume(self):
        self.iteration = super().resume()
        return self.iteration

    def step(self, loss=None):
        super().step(loss=loss)
        self.iteration += 1
        if self.iteration == 5 and not pathlib.Path({mended!r}).exists():
            raise ArithmeticError("the loss is NaN at iteration 5")

castor.Checkpointer = Breaks
runpy.run_path({example!r}, run_name="__main__")
"""


def castor(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [CASTOR, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    said = plain(done.stdout + done.stderr)
    assert done.returncode == code, said
    return said


def test_a_second_run_of_a_name_is_refused_and_the_first_ends_well(
    start: Any, tmp_path: Path
) -> None:
    """Case c12: two terminals, one --job, different --out, and then a rank of the first dies."""
    first = start("--nodes", "2", waits_at=5)
    first.wait_until(lambda: first.iteration() >= 2, "training")
    other = tmp_path / "other"
    said = castor(
        *("train", "--job", first.job, "--out", str(other), "--nodes", "2", str(EXAMPLE)), code=2
    )
    assert f"process {first.process.pid}, folder {first.folder}" in said.replace("\n", " ")
    assert not other.exists()
    # Nor into the first one's own folder, whatever is allowed to be overwritten.
    before = (first.folder / "run.json").read_bytes()
    again = ("--out", str(first.folder), "--overwrite", "--nodes", "2", str(EXAMPLE))
    castor("train", "--job", first.job, *again, code=2)
    assert (first.folder / "run.json").read_bytes() == before
    assert f"a run of job {first.job} is alive" in castor("clean", "--job", first.job, code=2)
    first.inject("rank:1@now")
    (tmp_path / "go").touch()
    trial = first.wait()
    assert trial.code == 0, trial.output
    (recovery,) = trial.recoveries
    assert recovery["iteration"]
    assert trial.memory_left == ()


def test_one_command_twice_at_once_makes_two_jobs(
    tmp_path: Path, baseline: Any, waiting: Any
) -> None:
    """Case c11: the same in two terminals, with nothing named; then a rank of the first dies."""
    line = ("--nodes", "2", "--lease", "3s", *waiting(10), "--iterations", "30")
    runs: dict[Path, Process] = {}

    def trains(folder: Path) -> bool:
        logs = [log.read_text() for log in folder.glob("agents/*/events.jsonl")]
        return any("iteration_ended" in log for log in logs)

    with ExitStack() as stack:
        for number in (1, 2):
            said = tmp_path / f"{number}.txt"
            process = start_castor(["train", *line], said, folder=tmp_path)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            deadline_s = time.monotonic() + 120
            while not (new := [f for f in (tmp_path / "out").glob("*") if f not in runs]):
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            runs[new[0]] = process
        first = next(iter(runs))
        while not trains(first):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        answer = ask(first / "control.sock", {"op": "inject", "fault": "rank:1@now"})
        assert answer is not None
        assert answer["ok"], answer
        (tmp_path / "go").touch()
        codes = [process.wait(200) for process in runs.values()]
    assert codes == [0, 0]
    results = [json.loads((folder / "result.json").read_text()) for folder in runs]
    assert [result["final_state_sha256"] for result in results] == [baseline(2, 30)] * 2
    assert [len(result["recoveries"]) for result in results] == [1, 0]
    jobs = {result["job"] for result in results}
    assert len(jobs) == 2
    assert [one.name for job in jobs for one in SHM.glob(f"castor-{job}*")] == []


def test_a_job_that_gave_up_goes_on_bit_for_bit(
    tmp_path: Path, baseline: Any, program: Any
) -> None:
    script, mended = tmp_path / "breaks.py", tmp_path / "mended"
    script.write_text(BREAKS.format(example=str(EXAMPLE), mended=str(mended)))
    folder = tmp_path / "run"
    options = ("--nodes", "2", "--lease", "3s", "--max-attempts", "1")
    run = Running(folder, [*options, str(script), "--iterations", "30", *program[1:]])
    try:
        trial = run.wait()
        assert trial.code == 1, trial.output
        kept = trial.result["kept_memory"]
        assert kept["iteration"] == 4
        assert f"castor resume {folder}" in re.sub(r"\s+", " ", plain(trial.output))
        assert f"castor resume {folder}" in castor("status", "--run", str(folder)).replace("\n", "")
        mended.touch()
        castor("resume", str(folder))
        result = json.loads((folder / "result.json").read_text())
        assert (result["outcome"], result["run"]) == ("finished", kept["run"])
        assert result["final_state_sha256"] == baseline(2, 30)
        assert result["kept_memory"] is None
        assert run.memory() == []
        assert "has finished" in castor("resume", str(folder), code=2)
    finally:
        subprocess.run([CASTOR, "clean", "--job", run.job], check=False, capture_output=True)


class Agents:
    """`castor agent`s of a run whose launcher starts none."""

    def __init__(self, run: Running, folder: Path) -> None:
        self._run = run
        self.folder = folder
        self.processes: dict[str, Process] = {}

    def _store(self) -> str:
        return str(json.loads((self._run.folder / "run.json").read_text())["store"])

    def start(self, name: str) -> None:
        self.processes[name] = start_castor(
            [
                *("agent", "--store", self._store(), "--job", self._run.job),
                *("--name", name, "--domain", f"rack-{name}"),
                *("--secret", str(self._run.folder / "secret")),
                *("--folder", str(self.folder / name)),
            ],
            self.folder / f"{name}.log",
            environment={"OMP_NUM_THREADS": "1"},
        )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def iteration(self) -> int:
        return last_iteration(merge(self.folder.glob("*/events.jsonl")))

    def operate(self) -> Path:
        """Start `castor operate` with a command that starts an agent; return what it says."""
        provide, said = self.folder / "provide.sh", self.folder / "operator.log"
        provide.write_text(
            "#!/bin/sh\n"
            f"{CASTOR} agent --standby --store $CASTOR_STORE --job $CASTOR_JOB --secret "
            f"$CASTOR_SECRET --name $CASTOR_AGENT --folder {self.folder}/$CASTOR_AGENT "
            "--domain rack-a &\n"
            "echo $CASTOR_AGENT for $CASTOR_REQUEST\n"
        )
        provide.chmod(0o755)
        with said.open("wb") as log:
            self.processes["operator"] = subprocess.Popen(
                [
                    *(CASTOR, "operate", f"command:{provide}", "--store", self._store()),
                    *("--job", self._run.job, "--secret", str(self._run.folder / "secret")),
                    *("--folder", str(self.folder / "operator")),
                ],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        return said


@pytest.fixture
def agents(start: Any, tmp_path: Path) -> Iterator[Agents]:
    external = ("--agents", "external", "--placement", "domains")
    run = start("--nodes", "2", *external, iterations=100_000)
    run.wait_until(lambda: "waiting for 2 agents" in plain(run.output()), "the store")
    made = Agents(run, tmp_path)
    with ExitStack() as stack:
        stack.callback(lambda: [process.kill() for process in made.processes.values()])
        for name in ("a", "b"):
            made.start(name)
        made.run = run
        yield made


def standbys(run: Running) -> list[str]:
    status = json.loads(castor("status", "--run", str(run.folder), "--json"))
    return [one["agent"] for one in status["standbys"]]


def test_who_ends_an_agent_keeps_its_memory_who_loses_one_gets_another_and_nothing_is_left(
    agents: Any,
) -> None:
    run = agents.run

    def memory(name: str) -> list[str]:
        return [one for one in run.memory() if f"-{name}-r" in one]

    run.wait_until(lambda: agents.iteration() >= 3, "training")
    held = memory("b")
    assert len(held) == 2
    agents.processes["b"].send_signal(signal.SIGTERM)
    assert agents.processes["b"].wait(60) == 128 + signal.SIGTERM
    assert memory("b") == held
    assert [one for one in run.memory() if "-b-control" in one] == []
    before = agents.iteration()
    agents.start("b")
    run.wait_until(lambda: agents.iteration() >= before + 3, "training again")
    assert memory("b") == held
    assert "from scratch" not in agents.said("b")
    # It was back before anybody served the request, which is needed no more.
    assert plain(run.output()).count("a machine is asked for and there is no operator") == 1
    said = agents.operate()
    run.wait_until(lambda: "serving the requests" in said.read_text(), "an operator")
    agents.processes["b"].kill()
    agents.processes["b"].wait(60)
    run.wait_until(lambda: "a machine was asked for" in said.read_text(), "asked for")
    ((spare, request),) = re.findall(r"asked for: (\S+) for (\d+-1)\n", said.read_text())
    assert spare == f"spare-{request}-1"
    before = agents.iteration()
    run.wait_until(lambda: agents.iteration() >= before + 3, "training with the new machine")
    assert "placed over 2 failure domains" in plain(run.output())
    agents.start("b")  # what it held lies there yet: as a spare it clears that away in the end
    run.wait_until(lambda: "b" in standbys(run), "a spare")
    run.process.send_signal(signal.SIGTERM)
    trial = run.wait(60)
    assert trial.code == 128 + signal.SIGTERM
    told = (agents.folder / "a" / "events.jsonl").read_text()
    assert '"kind": "copies_together"' in told.replace('":"', '": "')
    for process in agents.processes.values():
        process.wait(60)  # the operator waits a while for a job that is gone to come back
    assert run.memory() == []
