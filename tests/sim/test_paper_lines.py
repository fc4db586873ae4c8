"""Where the paper's closed form holds, the simulator stays within 0.5 percentage points of it."""

from __future__ import annotations

import pytest

from castor_analysis.summary import effective_ratio, interval_of
from castor_policy import published
from castor_sim.run import run_once, seeds_of
from castor_sim.setup import load_setup

LINES = {
    "gemini": published.gemini_effective_ratio,
    "strawman": published.strawman_effective_ratio,
    "highfreq": published.highfreq_effective_ratio,
}


@pytest.mark.parametrize("per_day", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("strategy", sorted(LINES))
def test_simulated_ratio_is_on_the_line_of_figure_15(strategy: str, per_day: float) -> None:
    setup = load_setup("gpt2-100b-p4d", (f"failures.per_day={per_day}",))
    ratios = [effective_ratio(run_once(setup, strategy, seed)) for seed in seeds_of(setup)]
    simulated = interval_of(ratios)
    line = LINES[strategy](per_day)
    # 20 years with 180 to 730 failures each: the interval is far narrower than the tolerance.
    assert simulated.high - simulated.low < 0.005
    assert simulated.mean == pytest.approx(line, abs=0.005)


@pytest.mark.parametrize("strategy", ["gemini", "none", "jit"])
def test_without_failures_nothing_is_wasted_but_stalls(strategy: str) -> None:
    changes = ("failures.per_day=0.0", "strategies.none.kind=none", "strategies.jit.save=0s")
    tally = run_once(load_setup("gpt2-100b-p4d", changes), strategy, 1)
    assert tally.useful_ns == tally.wall_ns
    assert tally.wasted_ns() == 0
