"""Advice: the choice, what it rests on, and that its experiment gives the ratio it promises."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from castor.app import app
from castor.commands.job_flags import given_flags
from castor_analysis.advice.advise import advise, choose
from castor_analysis.advice.case import Request
from castor_analysis.advice.document import advice_json
from castor_analysis.advice.found import Candidate
from castor_analysis.advice.model import StorageInterval
from castor_analysis.advice.text import assumptions, portable, reasons, train_command
from castor_analysis.summary import effective_ratio
from castor_configs.dump import dump_toml
from castor_configs.errors import InputError
from castor_configs.job_file import GivenJob
from castor_policy.placement import group_placement
from castor_runtime.launcher.train_options import job_spec
from castor_sim.run import run_once, seeds_of
from castor_sim.setup import load_setup, resolve

CONFIGS = Path(__file__).parents[2] / "configs"
PAPER = Request(cluster="p4d", model="gpt2-100b", seeds=4)


def candidate(replicas: int, fits: bool) -> Candidate:
    return Candidate(
        replicas=replicas,
        kind="group",
        placement=group_placement(16, replicas),
        every=1,
        traffic_s=1.0,
        memory_bytes=1,
        fits=fits,
        window_s=1.0,
        losses_per_s=0.0,
        racks_survived=None,
        storage=StorageInterval(60.0, 60.0, 60.0, 0.0),
    )


@pytest.mark.parametrize(
    ("ratios", "fits", "wanted"),
    [
        ({1: 0.90, 2: 0.98, 3: 0.9801}, "111", 2),  # the third is not worth it
        ({1: 0.90, 2: 0.98, 3: 0.99}, "111", 3),
        ({1: 0.98, 2: 0.98, 3: 0.98}, "111", 2),  # redundancy where it costs nothing
        ({1: 0.99, 2: 0.98, 3: 0.97}, "111", 1),  # but not where it does
        ({1: 0.90, 2: 0.98, 3: 0.99}, "110", 2),
        ({1: 0.90, 2: 0.98, 3: 0.99}, "100", 1),
        ({1: 0.90, 2: 0.98, 3: 0.99}, "000", None),
    ],
)
def test_the_fewest_replicas_that_are_not_noticeably_worse(
    ratios: dict[int, float], fits: str, wanted: int | None
) -> None:
    candidates = [candidate(m, fits[m - 1] == "1") for m in (1, 2, 3)]
    found = choose(candidates, ratios)
    assert (found.replicas if found else None) == wanted


def test_the_papers_job_gets_the_papers_answer() -> None:
    document = advice_json(advise(PAPER))
    recommendation = document["recommendation"]
    assert recommendation["replicas"] == 2
    assert recommendation["placement"] == "group"
    assert document["memory"]["needed_bytes"]["2"] == pytest.approx(301e9, rel=0.002)
    survival = document["survival"]["simultaneous_failures"]
    assert [survival[k]["probability"] for k in "123"] == pytest.approx([1.0, 14 / 15, 0.8])
    assert len(document["reasons"]) >= 6
    assert any("301 GB" in reason for reason in document["reasons"])
    assert any("93.3%" in reason for reason in document["reasons"])
    by_name = {one["name"]: one for one in document["alternatives"]}
    assert {"1 replica", "2 replicas", "3 replicas", "storage only"} <= by_name.keys()
    assert [one["name"] for one in document["alternatives"] if one["chosen"]] == ["2 replicas"]
    ratio = document["expected_effective_training_time_ratio"]
    assert ratio == by_name["2 replicas"]["expected_effective_training_time_ratio"]
    assert ratio["ci95_low"] <= ratio["mean"] <= ratio["ci95_high"]


@pytest.mark.parametrize(
    "request_",
    [
        PAPER,
        Request(cluster="llama3-405b", model="llama3-405b", seeds=2, settings=('duration="20d"',)),
        replace(PAPER, settings=("machines=15", 'replacement.operator="fleet"')),
        replace(PAPER, memory_share=0.01),
    ],
)
def test_its_experiment_gives_the_promised_ratio(request_: Request, tmp_path: Path) -> None:
    advice = advise(request_)
    file = tmp_path / "advised.toml"
    file.write_text(dump_toml(portable(advice.experiment, file)))
    setup = load_setup(file)
    name = "castor" if advice.candidate else "daly"
    ratios = [effective_ratio(run_once(setup, name, seed)) for seed in seeds_of(setup)]
    assert sum(ratios) / len(ratios) == pytest.approx(advice.ratio.mean, rel=1e-12)
    assert setup.operations.standbys == advice.standbys
    if advice.candidate:
        assert setup.placements["castor"] == advice.candidate.placement
        assert setup.experiment.replicas == advice.candidate.replicas


def test_racks_are_spread_over_where_the_cluster_says_them() -> None:
    request = Request(
        cluster="llama3-405b", model="llama3-405b", seeds=2, settings=('duration="5d"',)
    )
    advice = advise(request)
    document = advice_json(advice)
    assert document["recommendation"]["placement"] == "domains"
    assert document["survival"]["domains_survived"] == 1.0
    assert any("different racks" in reason for reason in document["reasons"])
    plain = next(one for one in document["alternatives"] if one["name"] == "group placement")
    losses = plain["expected_group_losses_per_year"]
    # Groups of two are the racks of two: each of the 1,024 takes a group with it.
    assert losses == pytest.approx(1024 * 0.0014 * 365, rel=0.01)
    assert document["survival"]["expected_group_losses_per_year"] < losses / 1e4


def test_what_does_not_fit_is_said_with_what_does() -> None:
    shard = advise(PAPER).case.setup.job.shard_bytes
    one = advise(replace(PAPER, memory_bytes=3 * shard))
    assert one.candidate is not None
    assert one.candidate.replicas == 1
    assert any("do not fit; 1 does" in reason for reason in reasons(one))
    assert any("With --memory saving two take" in reason for reason in reasons(one))
    less = advise(replace(PAPER, memory_bytes=3 * shard - 1))
    assert not any("--memory saving" in reason for reason in reasons(less))
    none = advise(replace(PAPER, memory_bytes=shard))
    assert none.candidate is None
    document = advice_json(none)
    assert document["recommendation"]["strategy"] == "daly"
    assert document["recommendation"]["replicas"] == 0
    assert document["survival"] is None
    # Two buffers of a 32nd each are one shard of now.
    assert any("32 machines or more" in reason for reason in reasons(none))
    wider = advise(replace(PAPER, memory_bytes=shard, settings=("machines=32",)))
    assert wider.candidate is not None


def test_of_traffic_that_does_not_fit_there_is_less_as_castor_train_does_it() -> None:
    slow = replace(PAPER, settings=('training.network_idle="2.4s"',))
    advice = advise(slow)
    assert advice.candidate is not None
    every = advice.candidate.every
    # 2.507 s of traffic, 2.4 s idle in an iteration: sqrt(2 * 0.107 s / failure rate) apart.
    apart_s = math.sqrt(2 * 0.1067 / advice.case.failing.per_s)
    iteration_s = advice.case.setup.job.iteration_ns / 1e9
    assert every > 1
    assert abs(every - apart_s / iteration_s) <= 1
    text = " ".join(reasons(advice))
    assert "a checkpoint stalls training 107 ms each time" in text
    assert f"One of {every} iterations wastes the least" in text
    # The traffic ends before the next update, whatever the period: the runtime's own default.
    costs = resolve(advice.experiment, Path("castor-advise.toml")).costs["castor"]
    assert costs.memory_stall_ns == pytest.approx(0.1067e9, rel=0.01)
    assert costs.memory_every == every
    # And it is better than every iteration, against the same failures.
    every_one = advice.experiment.strategies["castor"].model_copy(update={"every": 1})
    strategies = {"castor": every_one}
    other = resolve(advice.experiment.model_copy(update={"strategies": strategies}), Path("x.toml"))
    ratios = [effective_ratio(run_once(other, "castor", seed)) for seed in seeds_of(other)]
    assert sum(ratios) / len(ratios) < advice.ratio.mean


def test_every_iteration_is_taken_where_failures_cost_more_than_the_stalls() -> None:
    often = replace(
        PAPER, rate_per_s=1 / 86_400, seeds=2, settings=('training.network_idle="2.5s"',)
    )
    advice = advise(often)
    assert advice.candidate is not None
    assert advice.candidate.every == 1
    assert any("would lose more at failures" in reason for reason in reasons(advice))


def write_trace(file: Path, rows: list[str], machines: int = 16, days: int = 100) -> str:
    head = f"# name: own\n# machines: {machines}\n# span_s: {days * 86_400}\n"
    file.write_text(head + "time_s,machine,kind,duration_s,domain,cause\n" + "\n".join(rows) + "\n")
    return str(file)


def test_a_trace_gives_the_rate_the_share_and_the_groups(tmp_path: Path) -> None:
    rows = [f"{day * 86_400},{day % 16},software,," for day in range(1, 76)]
    rows += [f"{day * 86_400 + 7},{day % 16},hardware,3600,," for day in range(1, 21)]
    rows += [f"{8_000_000 + day},{machine},hardware,,," for day in (0, 9) for machine in (3, 4, 5)]
    rows = [row + "," * (5 - row.count(",")) for row in rows]
    trace = write_trace(tmp_path / "own.csv", rows)
    advice = advise(replace(PAPER, trace=trace, seeds=2, within_ns=0))
    failing = advice.case.failing
    assert failing.groups == (3, 3)
    assert failing.per_s * 86_400 == pytest.approx(97 / 100)
    assert failing.lost_per_s * 86_400 == pytest.approx(26 / 100)
    assert failing.hardware_share == pytest.approx(26 / 101)
    assert advice.case.setup.horizon_ns == 100 * 86_400 * 10**9
    document = advice_json(advice)
    # Groups of two survive three lost machines with 0.8: 0.4 losses in 100 days, and few more.
    losses = document["alternatives"][1]["expected_group_losses_per_year"]
    assert losses == pytest.approx(0.4 * 3.65, rel=0.01)
    assert any("trace own" in text for text in document["assumptions"])


def test_a_trace_is_rescaled_to_the_job(tmp_path: Path) -> None:
    rows = [f"{day * 86_400},{day % 40},hardware,,," for day in range(1, 99)]
    trace = write_trace(tmp_path / "own.csv", rows, machines=40)
    advice = advise(replace(PAPER, trace=trace, seeds=2))
    setup = advice.case.setup
    for seed in seeds_of(setup):
        replayed = setup.replayed(seed)
        assert replayed is not None
        assert replayed.machines == 16
        assert 98 * 16 / 40 / 2 < len(replayed.failures) < 98 * 16 / 40 * 2
    assert "scaled to 16 machines anew in each replication" in advice.case.failing.source
    assert advice.case.failing.lost_per_s * 86_400 == pytest.approx(98 * 16 / 40 / 100)


@pytest.mark.parametrize("apart_s", [0, 0.5])
def test_racks_that_a_trace_names_lie_apart(tmp_path: Path, apart_s: float) -> None:
    rows = [
        f"{day * 86_400 + place * apart_s},{4 * (day % 4) + place},hardware,3600,rack-{day % 4},pdu"
        for day in range(1, 99)
        for place in range(4)
    ]
    advice = advise(replace(PAPER, trace=write_trace(tmp_path / "racks.csv", rows), seeds=2))
    assert advice.candidate is not None
    assert (advice.candidate.replicas, advice.candidate.kind) == (2, "domains")
    assert advice.candidate.losses_per_s < 1e-9
    assert advice.case.domains is not None
    assert advice.case.domains.size == 4
    text = " ".join(reasons(advice))
    assert "Copies lie in different failure domains" in text
    assert "Groups of neighbours survive 0% of them" in text
    assert "not known" not in " ".join(assumptions(advice))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cluster": "opt-175b", "model": "opt-175b", "settings": ('duration="2d"',)},
        {"settings": ("machines=9",)},
        {"memory_bytes": 200 * 10**9},
        {"cluster": "p3dn", "model": "gpt2-40b"},
        {"cluster": "p3dn", "model": "gpt2-20b", "settings": ("machines=7",)},
        {"cluster": "four-node", "model": "gpt2-tiny", "settings": ('training.iteration="1s"',)},
        {"domain_rate_per_s": 1e-6},
        {"domain_rate_per_s": 1e-6, "settings": ("machines=13",)},
        {"settings": ('training.network_idle="2.2s"',)},
        {"cluster": "p3dn", "model": "gpt2-40b", "settings": ('training.network_idle="4s"',)},
    ],
)
def test_what_is_recommended_is_something_that_castor_train_does(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    advice = advise(replace(PAPER, seeds=2, **changes))  # type: ignore[arg-type]  # by name
    words = train_command(advice)
    assert words is not None
    assert advice.candidate is not None
    if any("network_idle" in setting for setting in advice.case.request.settings):
        assert advice.candidate.every > 1
    assert words[:3] == ["castor", "train", "SCRIPT"]
    script = tmp_path / "train.py"
    script.write_text("")
    # Pasted: read by the command's own parser, and checked as the command checks it.
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    train = command.commands["train"]
    with train.make_context("train", [str(script), *words[3:]]) as context:
        assert context.args == [], "every word is an option of castor train"
        job = GivenJob(script, flags=given_flags(context)).checked()
    spec = job_spec(job)
    assert job.launch.standby == advice.standbys
    assert spec.machines == advice.case.setup.job.machines
    assert spec.replicas == advice.candidate.placement.replicas
    assert spec.traffic.checkpoint_every == advice.candidate.every
    assert spec.persistence.every_s == pytest.approx(advice.persist_every_s)


def test_there_is_no_command_where_memory_holds_no_replica() -> None:
    assert train_command(advise(replace(PAPER, memory_bytes=1, seeds=2))) is None


def test_long_repairs_of_a_fleet_ask_for_standbys(tmp_path: Path) -> None:
    cloud = advise(PAPER)
    assert cloud.standbys == 0
    fleet = advise(
        replace(PAPER, settings=('replacement.operator="fleet"', 'replacement.repair.mean="3d"'))
    )
    assert fleet.case.restore_s == 3 * 86_400
    assert fleet.standbys >= 1
    with_none = next(one for one in fleet.alternatives if one.name == "0 standbys")
    assert fleet.ratio.mean > with_none.summary.ratio.mean
    # Standing by and waiting together cost least there.
    costs = {
        one.standbys: (16 + one.standbys) / one.summary.ratio.mean
        for one in fleet.alternatives
        if one.chosen or "standby" in one.name
    }
    assert min(costs, key=lambda count: costs[count]) == fleet.standbys
    assert any("repaired" in text for text in assumptions(fleet))


def test_a_published_rate_is_taken_and_an_own_one_goes_before_it() -> None:
    settings = ('duration="2d"',)
    own = Request(cluster="opt-175b", model="opt-175b", seeds=2, settings=settings)
    assert "published for opt-175b" in advise(own).case.failing.source
    given = advise(replace(own, rate_per_s=0.03 / 86_400, hardware_share=0.25)).case.failing
    assert "as given" in given.source
    assert given.lost_per_s == pytest.approx(0.03 * 0.25 * 124 / 86_400)
    assert given.hardware_share == pytest.approx(0.25)


def test_without_failures_nothing_is_lost() -> None:
    advice = advise(replace(PAPER, rate_per_s=0.0, seeds=2))
    assert advice.ratio.mean == 1.0
    assert advice.standbys == 0
    advice_json(advice)


def test_paths_are_written_as_the_file_needs_them(tmp_path: Path) -> None:
    for kind, name in (("clusters", "p4d"), ("models", "gpt2-100b")):
        (tmp_path / f"{name}.toml").write_text((CONFIGS / kind / f"{name}.toml").read_text())
    request = replace(
        PAPER, cluster=str(tmp_path / "p4d.toml"), model=str(tmp_path / "gpt2-100b.toml"), seeds=2
    )
    advice = advise(request)
    file = tmp_path / "experiments" / "mine.toml"
    file.parent.mkdir()
    file.write_text(dump_toml(portable(advice.experiment, file)))
    setup = load_setup(file)
    assert setup.experiment.cluster == "../p4d.toml"
    assert setup.job.machines == 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cluster": "p4x"}, "did you mean `p4d`"),
        ({"model": "gpt2-100"}, "did you mean `gpt2-100b`"),
        ({"model": "opt-175b"}, "--set training.iteration"),
        ({"trace": "nosuch"}, "nosuch"),
        ({"trace": "infinitehbd", "rate_per_s": 1e-7}, "has its own failure rate"),
        ({"rate_per_s": 1.5}, "write another period"),
        ({"domain_rate_per_s": 1.0}, "write another period"),
        ({"settings": ("replicas=3",)}, "cannot be set here"),
        ({"settings": ("replacement.standbys=3",)}, "part of the advice"),
        ({"settings": ("training.warmup=3s",)}, "did you mean `warm_up`"),
        ({"settings": ("machines=0",)}, "machines"),
    ],
)
def test_bad_requests_say_what_to_do(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as raised:
        advise(replace(PAPER, **changes))
    assert said in str(raised.value)
    assert "castor-advise.toml" not in str(raised.value)


def test_a_single_machine_has_one_copy() -> None:
    advice = advise(replace(PAPER, settings=("machines=1",), memory_bytes=10**13))
    assert advice.candidate is not None
    assert advice.candidate.replicas == 1
    advice_json(advice)
