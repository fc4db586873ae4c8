"""Experiments resolve into what the engines run, and wrong ones are refused with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from castor_configs.dump import dump_toml
from castor_configs.errors import InputError
from castor_configs.find import available_configs
from castor_configs.load import load_toml
from castor_policy.membership import EXIT_S, UNREACHED_S, Lease
from castor_sim.experiment import Experiment
from castor_sim.run import Engine, replications, run_once
from castor_sim.setup import load_setup

PLAIN = """
name = "plain"
cluster = "p4d"
model = "gpt2-100b"
duration = "10d"
seeds = 3
[failures]
per_day = 4.0
hardware_share = 0.5
[strategies.gemini]
[strategies.daly]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text)
    return path


def test_every_shipped_experiment_without_a_trace_runs() -> None:
    names = available_configs("experiments")
    assert len(names) >= 8
    for name in names:
        text = (Path("configs/experiments") / f"{name}.toml").read_text()
        if 'process = "trace"' in text:
            continue
        setup = load_setup(name, ('duration="3d"', "seeds=1"))
        for strategy in setup.costs:
            run_once(setup, strategy, 1).check()


@pytest.mark.long
def test_results_do_not_depend_on_engine_or_jobs(tmp_path: Path) -> None:
    setup = load_setup(written(tmp_path, PLAIN))
    alone = list(replications(setup, Engine.JUMP, jobs=1))
    assert list(replications(setup, Engine.JUMP, jobs=3)) == alone
    assert list(replications(setup, Engine.SIMPY, jobs=2)) == alone


def test_a_seed_gives_the_same_integers_everywhere(tmp_path: Path) -> None:
    # Golden: a change of these is a change of the model or of the draws, and has to be meant.
    tally = run_once(load_setup(written(tmp_path, PLAIN)), "gemini", 7)
    assert (tally.iterations, tally.useful_ns, tally.recoveries) == (13621, 844502000000000, 32)


def test_the_jump_engine_says_that_it_shows_no_events(tmp_path: Path) -> None:
    setup = load_setup(written(tmp_path, PLAIN))
    with pytest.raises(ValueError, match="simpy engine"):
        run_once(setup, "gemini", 1, Engine.JUMP, print)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("per_day = 4.0", "per_dya = 4.0", "per_day"),
        ("per_day = 4.0", "", "say how often"),
        ("per_day = 4.0", 'per_day = 4.0\nrate = "1%/day"', "say how often"),
        ("[strategies.daly]", "[strategies.daily]", "none, strawman, highfreq"),
        ('"p4d"', '"p4"', "p4d"),
        ("seeds = 3", "seeds = 0", "seeds"),
        ("seeds = 3", "replicas = 17", "17"),
        ("seeds = 3", 'placement = "domains"', "placement_domains"),
        ('"10d"', '"10 parsecs"', "duration"),
        ("[failures]", "[detection]\nmisses = 1\npoll = '2s'\n[failures]", "taken for dead"),
        ("[failures]", "[detection]\nlease = '5s'\nmisses = 3\n[failures]", "leave misses out"),
        (
            "[failures]",
            "[detection]\nlease = '100ms'\n[failures]",
            "`lease`: expected 1 to 600 s, not 0.1 s",
        ),
        ("[strategies.daly]", "[strategies.daly]\ndetection = {lease='5s', poll='1s'}", "poll out"),
        ("[failures]", "[replacement]\nprovision = ['7min', '4min']\n[failures]", "shorter"),
        ("[strategies.daly]", "[strategies.highfreq]\nevery_iterations = 1", "Eq. 2"),
        ("[strategies.daly]", '[strategies.own]\nkind = "missing.py:Mine"', "missing.py"),
        ("[strategies.daly]", '[strategies.own]\nkind = "json:Mine"', "subclass"),
    ],
)
def test_a_wrong_experiment_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = written(tmp_path, PLAIN.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_setup(path)
    assert said in str(caught.value)
    assert "experiment.toml" in str(caught.value)


def test_a_strategy_may_have_the_runtimes_own_detection(tmp_path: Path) -> None:
    own = '[strategies.castor]\nkind = "gemini"\ndetection = {lease = "5s"}\n[strategies.daly]'
    setup = load_setup(
        written(tmp_path, PLAIN.replace("[strategies.daly]", own)), ("failures.hardware_share=0.5",)
    )
    lease = Lease(5.0)
    assert setup.operations_of("gemini") == setup.operations
    owned = setup.operations_of("castor")
    assert (owned.heartbeat_ns, owned.poll_ns, owned.misses) == lease.heartbeats()
    jump = run_once(setup, "castor", 1)
    assert jump == run_once(setup, "castor", 1, Engine.SIMPY)
    assert jump.recoveries
    assert jump.detection_ns < run_once(setup, "gemini", 1).detection_ns
    again = load_toml(written(tmp_path, dump_toml(setup.experiment)), Experiment)
    assert again == setup.experiment


def test_a_lease_of_the_experiment_is_every_strategys(tmp_path: Path) -> None:
    setup = load_setup(written(tmp_path, PLAIN), ('detection={lease="2.5s"}',))
    for name in setup.costs:
        assert setup.operations_of(name).misses == 6
        assert setup.operations_of(name).exit_ns == round(EXIT_S * 1e9)
        assert setup.operations_of(name).unreached_ns == round(UNREACHED_S * 1e9)
    told = ('detection={lease="2.5s", unreached="0.1s"}',)
    assert load_setup(written(tmp_path, PLAIN), told).operations.unreached_ns == 10**8
    assert load_setup(written(tmp_path, PLAIN)).operations.unreached_ns == -1
    assert (
        load_setup(
            written(tmp_path, PLAIN), ('detection={lease="2.5s", process_exit="1s"}',)
        ).operations.exit_ns
        == 10**9
    )
    dumped = dump_toml(setup.experiment)
    assert "heartbeat" not in dumped
    assert load_toml(written(tmp_path, dumped), Experiment) == setup.experiment


def test_a_strategy_of_the_users_own_runs_like_the_others() -> None:
    setup = load_setup("examples/own_strategy.toml", ('duration="5d"',))
    jump = run_once(setup, "local-first", 1)
    assert jump == run_once(setup, "local-first", 1, Engine.SIMPY)
    assert jump.recovered_peer == 0


def test_an_option_that_an_own_strategy_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="colour"):
        load_setup("examples/own_strategy.toml", ('strategies.local-first.colour="red"',))


def test_a_trace_of_too_few_machines_says_what_to_do(tmp_path: Path) -> None:
    trace = tmp_path / "small.csv"
    trace.write_text(
        "# name: small\n# machines: 4\n# span_s: 1000\n"
        "time_s,machine,kind,duration_s,domain,cause\n10,1,hardware,5,,\n"
    )
    changes = ('failures.process="trace"', 'failures.trace="small.csv"')
    path = written(tmp_path, PLAIN)
    with pytest.raises(InputError, match="rescale"):
        load_setup(path, changes)
    setup = load_setup(path, (*changes, "failures.rescale=true"))
    replayed = setup.replayed(1)
    assert replayed is not None
    assert replayed.machines == 16


def test_a_smaller_share_keeps_a_part_of_what_a_larger_one_keeps(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)

    def kept(share: float) -> set[tuple[int, int]]:
        blocks = load_setup(path, (f"failures.keep={share}",)).strikes(3)
        return {(t, m) for b in blocks for t, m in zip(b.time_ns, b.machine, strict=True)}

    half, most, every = kept(0.5), kept(0.8), kept(1.0)
    assert half < most < every
    useful = [
        run_once(load_setup(path, (f"failures.keep={share}",)), "gemini", 3).useful_ns
        for share in (0.0, 0.5, 0.8, 1.0)
    ]
    assert useful == sorted(useful, reverse=True)


@pytest.mark.parametrize(
    "change",
    [
        'training.torch_save="1bps"',
        'training.checkpoint_size="1e30B"',
        'replacement.setup="106000d"',
        "detection.misses=10000000000",
        "iterations=1000000000000000",
        'duration="40000d"',
        "machines=10000000000",
        'training.iteration="0s"',
        'training.torch_save="0bps"',
        'replacement={operator="fleet", repair={median="6h", mean="2h"}}',
        "gpu_hour_price=1e308",
    ],
)
def test_figures_beyond_what_the_engines_count_are_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(InputError):
        load_setup(written(tmp_path, PLAIN), (change,))


OWN = """
from castor_sim.strategy_costs import StrategyCosts
from castor_sim.strategies import Strategy

class Mine(Strategy):
    def costs(self, job):
        return {returned}
"""


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "it returned None; expected castor_sim.strategy_costs.StrategyCosts"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("job.nothing", "AttributeError"),
        ("StrategyCosts(iteration_ns=job.iteration_ns / 1)", "a float; expected an int"),
        (
            "StrategyCosts(iteration_ns=job.iteration_ns, memory_every=True)",
            "a bool; expected an int",
        ),
        ("StrategyCosts(iteration_ns=job.iteration_ns, warm_up_ns=-5)", "warm_up_ns is -5"),
        ("StrategyCosts(iteration_ns=1)", "without any checkpoint: give that or more"),
        ("StrategyCosts(job.iteration_ns, memory_every=1, memory_transfer_ns=10**18)", "10 years"),
    ],
)
def test_nonsense_of_an_own_strategy_is_refused_with_its_file_and_class(
    tmp_path: Path, returned: str, said: str
) -> None:
    (tmp_path / "own.py").write_text(OWN.replace("{returned}", returned))
    path = written(tmp_path, PLAIN + '[strategies.own]\nkind = "own.py:Mine"\n')
    with pytest.raises(InputError) as caught:
        load_setup(path)
    assert said in str(caught.value)
    assert "own.py:Mine" in str(caught.value)
    assert "strategies.own" in str(caught.value)
