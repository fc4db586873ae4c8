"""Rounds launched in one order with DeepSpeed's collectives, as NCCL needs them: whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from castor_lab.soak.trial import Trial
from castor_records.events.training import LinkMeasured, Scheduled

pytestmark = pytest.mark.long

RANKS, ITERATIONS, KILLED_AT = 3, 16, 10


def checkpoints(log: Path) -> list[list[str]]:
    """Return what was launched in each checkpoint of a trainer's life; the last may be cut off."""
    found: list[list[str]] = []
    for line in log.read_text().splitlines():
        if line == "checkpoint":
            found.append([])
        elif found:
            found[-1].append(line)
    return found


def launches_between_collectives(launched: list[str]) -> bool:
    """Whether a round was launched neither at the hand-over nor with what is left at the end."""
    text = " ".join(what.split()[0] for what in launched)
    return "collective round" in text and "round collective" in text


def test_deepspeed_launches_them_in_one_order_and_recovers(
    castor_train: Callable[..., Trial],
    baseline: Callable[[int, int], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("CASTOR_LAUNCH_LOG", str(tmp_path))
    trial = castor_train(
        *("--nodes", str(RANKS), "--device-maker", "ordered_device:ordered_device"),
        *("--scheme", "pipelined", "--profile-iterations", "3", "--chunk", "4KiB", "--mu", "0.02"),
        *("--kill", f"rank:1@{KILLED_AT}"),
        iterations=ITERATIONS,
    )
    assert trial.code == 0
    assert trial.sha256 == baseline(RANKS, ITERATIONS)
    assert len(trial.recoveries) == 1
    for generation in (1, 2):
        lives = [checkpoints(tmp_path / f"{generation}-{rank}") for rank in range(RANKS)]
        complete = min(map(len, lives)) - 1
        assert complete > 3
        for mine in zip(*(life[:complete] for life in lives), strict=True):
            assert [one == mine[0] for one in mine] == [True] * RANKS
        assert any(map(launches_between_collectives, lives[0][:complete]))
    # What was learned of the network is given to those that are started after a failure.
    assert {entry.event.generation for entry in trial.of(LinkMeasured)} == {1}
    again = [one.event for one in trial.of(Scheduled) if one.event.generation == 2]
    kept = sorted(one.rank for one in again if one.reason == "kept")  # some may drift later
    assert kept == list(range(RANKS))
