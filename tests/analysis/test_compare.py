"""Runs that were written by a known rule, compared with their predictions by the same rule."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor_analysis.compare.comparison import (
    Comparison,
    calibrating_failures,
    calibrating_runs,
    compare_runs,
)
from castor_analysis.compare.failure_runs import Predict
from castor_analysis.compare.measured_run import QUANTITIES, MeasuredRun, read_run
from castor_analysis.compare.outages import LeftOut
from castor_analysis.compare.page import comparison_page
from castor_analysis.compare.page_pictures import recovery_groups
from castor_analysis.compare.points import Point, S, absolute_errors, point_of_samples, quantile
from castor_analysis.compare.prediction import FromProfile, predict
from castor_analysis.compare.report import compare_document, points_csv, write_report
from castor_analysis.compare.scheme_order import scheme_orders
from castor_analysis.compare.settings import Setting, model_names, setting_of
from castor_configs.errors import InputError
from castor_policy.agents.job_spec import JobSpec
from castor_policy.chunk_schedule import Link
from castor_policy.job_options import DeviceOptions, TrafficOptions
from castor_records.events.event import Entry, Event
from castor_records.events.failures import RunStarted
from castor_records.events.training import (
    CheckpointCompleted,
    IterationEnded,
    Scheduled,
    SpansProfiled,
)
from castor_records.recoveries import Recovery
from castor_runtime.launcher.run_folder import RunFolder
from castor_sim.iteration.measured import MeasuredHop, MeasuredProfile

RANKS = 4
SCHEMES = ("none", "blocking", "naive", "unpipelined", "pipelined")
LINKS_MBPS = (200, 300, 450)
HIDDEN = (256, 320)
LAYERS = 3


def profile_of(hidden: int, mbps: int = 300) -> MeasuredProfile:
    """An iteration of three layers: gather, compute, twice; reduce; then a check."""
    size = 12 * hidden * hidden * 4
    ms = size * 8 / (mbps * 1e6) * 0.75 * 1000
    steps = []
    for number in range(2 * LAYERS):
        steps += [f"issue all_gather {size} {ms:.3f}ms", f"wait {number}", "compute 30ms"]
    for number in range(LAYERS):
        steps += [f"issue reduce_scatter {size} {ms:.3f}ms", f"wait {2 * LAYERS + number}"]
    steps.append("compute 20ms")
    return MeasuredProfile.model_validate(
        {
            "format": "castor-iteration-profile-2",
            "name": f"h{hidden}",
            "source": f"none-{mbps}-{hidden}",
            "compute": "paced",
            "machines": RANKS,
            "gpus": 1,
            "replicas": 2,
            "shard": size * LAYERS * 3 // RANKS,
            "link": f"{mbps}Mbps",
            "update": "15ms",
            "network": {"alpha": "300us", "bandwidth": f"{mbps * 95 // 100}Mbps"},
            "collectives": {"wire_share": {"all_gather": 0.75, "reduce_scatter": 0.75}},
            "steps": steps,
        }
    )


def write_run(
    root: Path,
    scheme: str,
    *,
    mbps: int = 300,
    hidden: int = 256,
    job: str = "",
    factor: float = 1.0,
    iterations: int = 12,
    change: Mapping[str, object] | None = None,
    recoveries: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Write the folder of a run whose times are `factor` times those that are simulated."""
    job = job or f"{scheme}-{mbps}-{hidden}"
    folder = root / job
    folder.mkdir(parents=True)
    spec = JobSpec(
        job=job,
        machines=RANKS,
        ranks_per_machine=1,
        placement="group",
        replicas=((0, 1), (1, 0), (2, 3), (3, 2)),
        script="/somewhere/gpt2_tiny.py",
        arguments=("--hidden", str(hidden), "--layers", str(LAYERS), "--iterations", "12"),
        traffic=TrafficOptions(
            scheme=scheme, mu=0.9, buffer_bytes=2_000_000, sub_buffers=4, send="nccl"
        ),
        device=DeviceOptions(paced_copy_bps=300_000_000),
    )
    result = {
        "job": job,
        "outcome": "finished",
        "reason": "",
        "command": ["castor", "train", "--scheme", scheme],
        "seeds": {"--seed": "0"},
        "versions": {"castor": "1", "torch": "2"},
        "machine": {"cores": 2},
        "compute": "paced",
        "cluster": {
            "name": "t",
            "bandwidth_bps": mbps * 10**6,
            "storage_bandwidth_bps": 10**8,
        },
        "spec": json.loads(spec.to_json()),
        "recoveries": list(recoveries),
        **(change or {}),
    }
    (folder / "run.json").write_text(json.dumps({"job": job, "pid": 0}))
    (folder / "result.json").write_text(json.dumps(result))
    values = predict(FromProfile(profile_of(hidden)), setting_of(RunFolder(folder))).values
    events = [Entry(0, RunStarted(machines=RANKS, ranks=RANKS))]
    if scheme != "none":
        events += [
            Entry(5, Scheduled(generation=1, rank=rank, iteration=4)) for rank in range(RANKS)
        ]
    events += [profiled(hidden, rank) for rank in range(RANKS)]
    for iteration in range(1, iterations + 1):
        for rank in range(RANKS):
            # Slower before the schedule; then up to 3 % about the factor, 0 in the median.
            wobble = 4.0 if iteration <= 5 else 1 + 0.01 * (iteration % 7 - 3)
            lag = 1 + 0.001 * (rank - 1.5)
            at = {name: value * factor * wobble * lag for name, value in values.items()}
            common = {"generation": 1, "rank": rank, "iteration": iteration}
            ended = {"seconds": at["iteration_s"], "idle_s": at["idle_s"]}
            time_ns = iteration * 10**9 + rank
            events.append(Entry(time_ns, IterationEnded.of_fields({**common, **ended})))
            if scheme != "none":
                last = 10.0 if iteration == iterations else 1.0
                sent = {
                    "network_s": at["checkpoint_network_s"] * last,
                    "sent_s": at["checkpoint_complete_s"] * last,
                    "sent_bytes": 1000 * hidden,
                }
                events.append(Entry(time_ns + 9, CheckpointCompleted.of_fields({**common, **sent})))
    (folder / "events.jsonl").write_text("".join(event.to_line() + "\n" for event in events))
    return folder


def profiled(hidden: int, rank: int) -> Entry[Event]:
    size = 12 * hidden * hidden * 4
    names = ["all_gather"] * (2 * LAYERS) + ["reduce_scatter"] * LAYERS
    issued_ns = tuple(index * 60_000_000 for index in range(len(names)))
    ended_ns = tuple(one + 30_000_000 for one in issued_ns)
    return Entry(
        6,
        SpansProfiled(
            generation=1,
            rank=rank,
            iteration=4,
            iterations=4,
            ops=tuple(names),
            op_bytes=(size,) * len(names),
            issued_ns=issued_ns,
            waited_ns=issued_ns,
            resumed_ns=ended_ns,
            ended_ns=ended_ns,
            before_update_ns=600_000_000,
        ),
    )


def written(root: Path, *, factor: float = 1.0) -> list[MeasuredRun]:
    folders = [
        write_run(
            root, scheme, mbps=mbps, hidden=hidden, factor=1.0 if scheme == "none" else factor
        )
        for hidden in HIDDEN
        for mbps in LINKS_MBPS
        for scheme in SCHEMES
    ]
    return [read_run(folder) for folder in folders]


def calibrate(runs: Sequence[MeasuredRun]) -> MeasuredProfile:
    assert {run.setting.link_bps for run in runs} == {300_000_000}
    (hidden,) = {dict(run.setting.arguments)["--hidden"] for run in runs}
    return profile_of(int(hidden))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """All runs, of which those with checkpoints took 4 % longer than simulated."""
    runs = written(tmp_path_factory.mktemp("runs"), factor=1 / 0.96)
    return compare_runs(runs, calibrate=calibrate)


def test_what_calibrated_is_never_a_check_and_all_else_is(compared: Comparison) -> None:
    assert compared.calibrated_on == (
        "none-300-256",
        "none-300-320",
        "pipelined-300-256",
        "pipelined-300-320",
    )
    assert {run for point in compared.fitted for run in point.runs} == set(compared.calibrated_on)
    checked = {run for point in compared.held_out for run in point.runs}
    assert checked == {run.name for run in compared.runs} - set(compared.calibrated_on)
    # 30 settings less 4 with an iteration and its idle time; 22 with a checkpoint's two times.
    assert len(compared.held_out) == 2 * 26 + 2 * 22
    assert compared.left_out == {}


def test_errors_are_those_that_were_written(compared: Comparison) -> None:
    for point in compared.held_out:
        # Of 6 checkpoints the median lies between the third and the fourth, at -0.5 %.
        middle = 1.0 if point.quantity in QUANTITIES[:2] else 0.995
        expected = 0.0 if point.setting["scheme"] == "none" else 0.96 / middle - 1
        assert point.error == pytest.approx(expected, abs=1e-5)
        assert point.samples == (7 if point.quantity in QUANTITIES[:2] else 6)
        assert point.spread[0] == pytest.approx(point.measured * 0.974, rel=0.01)
        assert point.spread[1] == pytest.approx(point.measured * 1.026, rel=0.01)
    sizes = sorted(abs(point.error or 0.0) for point in compared.held_out)
    assert compared.median_error == statistics.median(sizes)
    assert compared.worst_error == sizes[-1] == pytest.approx(0.04, abs=1e-5)


def test_every_setting_has_an_order_and_a_calibrated_baseline_is_part_of_it(
    compared: Comparison,
) -> None:
    assert len(compared.orders) == len(LINKS_MBPS) * len(HIDDEN)
    for order in compared.orders:
        assert sorted(order.measured) == sorted(SCHEMES)
        assert order.measured[0] == "none"
        assert order.right


def test_repetitions_are_one_point_of_all_their_iterations(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path, "none")),
        read_run(write_run(tmp_path, "pipelined")),
        read_run(write_run(tmp_path, "naive", job="a")),
        read_run(write_run(tmp_path, "naive", job="b", factor=1.1)),
    ]
    found = compare_runs(runs, calibrate=calibrate)
    (point,) = [p for p in found.held_out if p.quantity == "iteration_s"]
    assert point.runs == ("a", "b")
    assert point.samples == 14
    assert point.spread[1] / point.spread[0] > 1.1, "repetitions that differ widen the spread"


def test_profiles_given_exclude_the_runs_that_they_were_measured_in(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path, scheme, mbps=mbps))
        for scheme in ("none", "pipelined")
        for mbps in (200, 300)
    ]
    found = compare_runs(runs, calibrate=calibrate, profiles=[profile_of(256)])
    assert found.calibrated_on == ("none-300-256",)
    assert {run for point in found.held_out for run in point.runs} == {
        "none-200-256",
        "pipelined-200-256",
        "pipelined-300-256",
    }
    with pytest.raises(InputError, match="of another model"):
        compare_runs(runs, calibrate=calibrate, profiles=[profile_of(320)])


def test_what_cannot_be_predicted_is_named_not_dropped(tmp_path: Path) -> None:
    none = read_run(write_run(tmp_path, "none"))
    piped = read_run(write_run(tmp_path, "pipelined"))
    replay = {"command": ["castor", "train", "--replay", "trace.csv"]}
    replayed = read_run(write_run(tmp_path, "pipelined", job="replayed", change=replay))
    short = read_run(write_run(tmp_path, "naive", iterations=5))
    blocking = read_run(write_run(tmp_path, "blocking"))
    found = compare_runs([none, piped, blocking, replayed, short], calibrate=calibrate)
    assert set(found.left_out) == {"replayed", "naive-300-256"}
    assert {run for point in found.held_out for run in point.runs} == {"blocking-300-256"}


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    one = read_run(write_run(tmp_path / "one", "none", mbps=300, hidden=HIDDEN[0]))
    other = read_run(write_run(tmp_path / "other", "none", mbps=300, hidden=HIDDEN[0]))
    with pytest.raises(InputError, match="has the name of another run"):
        compare_runs([one, other], calibrate=calibrate)


def test_failures_calibrate_on_the_smallest_checkpoint_at_the_middle_link(tmp_path: Path) -> None:
    failure = Recovery(2, (2,), "software", "killed", (1,)).to_json()
    broken = [
        read_run(write_run(tmp_path, "pipelined", mbps=m, hidden=h, recoveries=[failure]))
        for h in HIDDEN
        for m in LINKS_MBPS
    ]
    assert [run.name for run in calibrating_failures(broken)] == ["pipelined-300-256"]
    replay = {"command": ["castor", "train", "--replay=trace.csv"]}
    replayed = [
        read_run(write_run(tmp_path, "pipelined", job=job, change=replay, recoveries=[failure]))
        for job in ("replayed", "odd")
    ]
    none = read_run(write_run(tmp_path, "none"))
    seen: dict[str, list[str]] = {}

    class Model:
        left_out = (LeftOut("pipelined-300-256", 2, "two at once"),)

        def recovery_points(
            self, runs: Sequence[MeasuredRun], names: object
        ) -> tuple[list[Point], list[LeftOut]]:
            assert names
            seen["checked"] = [run.name for run in runs]
            return [point_of_samples("recovery_total_s", {"failure": "rank"}, S, [2.0], 2.2)], []

        def replay_points(self, run: MeasuredRun, names: object) -> list[Point]:
            assert names
            if run.name == "odd":
                raise ValueError("a stop cannot be replayed")
            return [point_of_samples("ettr", {}, "share", [0.9], 0.91, [run.name])]

    def fit(known: Sequence[MeasuredRun], expected: Predict) -> Model:
        seen["known"] = [run.name for run in known]
        assert expected(known[0].setting)["iteration_s"] > 0
        return Model()

    found = compare_runs([none, *broken, *replayed], calibrate=calibrate, fit_failures=fit)
    assert seen["known"] == ["pipelined-300-256"]
    assert len(seen["checked"]) == 7, "all but what was fitted on, replayed traces too"
    assert [point.quantity for point in found.held_out] == ["recovery_total_s", "ettr"]
    assert found.calibrated_on == ("none-300-256", "pipelined-300-256")
    assert found.left_out == {
        "pipelined-300-256, generation 2": "two at once",
        "odd": "a stop cannot be replayed",
    }


def test_a_case_has_the_settings_of_the_run(tmp_path: Path) -> None:
    setting = setting_of(RunFolder(write_run(tmp_path, "pipelined")))
    traffic = FromProfile(profile_of(256)).case(setting).traffic
    assert traffic.shortest_span_ns == 5_000_000  # the runtime's default
    assert (traffic.buffer_bytes, traffic.sub_buffers, float(traffic.mu)) == (2_000_000, 4, 0.9)
    # The stand-in's rate is the setting's, whatever the profile was measured with.
    held = profile_of(256).model_copy(
        update={"copy_to_cpu": MeasuredHop.model_construct(alpha=7, bandwidth=10**6)}
    )
    for profile, alpha_ns in ((profile_of(256), 0), (held, 7)):
        case = FromProfile(profile).case(setting)
        assert case.traffic.copy_link == Link(alpha_ns, 300_000_000)


def test_a_model_without_a_baseline_cannot_be_calibrated(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "pipelined"))
    with pytest.raises(InputError, match="--scheme none"):
        compare_runs([run], calibrate=calibrate)


def test_a_baseline_and_one_scheme_calibrate_at_the_lower_of_two_bandwidths(
    tmp_path: Path,
) -> None:
    runs = [
        read_run(write_run(tmp_path, scheme, mbps=mbps))
        for mbps in (450, 300)
        for scheme in ("blocking", "naive", "unpipelined", "none")
    ]
    (chosen,) = calibrating_runs(runs).values()
    assert [run.name for run in chosen] == ["none-300-256", "unpipelined-300-256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": "failed", "reason": "no machine"}, "no finished run"),
        ({"spec": None}, "another version"),
        ({"cluster": "lab"}, "earlier version"),
    ],
)
def test_runs_that_say_too_little_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = write_run(tmp_path, "none")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | change))
    with pytest.raises(InputError, match=message):
        read_run(folder)
    (folder / "result.json").unlink()
    with pytest.raises(InputError, match="no result yet"):
        read_run(folder)


def test_models_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path, "none", hidden=hidden)) for hidden in HIDDEN]
    assert sorted(model_names(run.setting for run in runs).values()) == [
        "layers 3, hidden 256",
        "layers 3, hidden 320",
    ]
    assert model_names([runs[0].setting])[runs[0].setting.model] == "layers 3, hidden 256"


def orders_of(measured: Mapping[str, float], simulated: Mapping[str, float]) -> bool:
    points = [
        point_of_samples("iteration_s", {"link": "x", "scheme": name}, S, [s], simulated[name])
        for name, s in measured.items()
    ]
    (order,) = scheme_orders(points)
    return order.right


@pytest.mark.parametrize(
    ("simulated", "right"),
    [
        ({"naive": 1.0, "blocking": 1.2}, True),
        ({"naive": 1.2, "blocking": 1.0}, False),
        ({"naive": 1.0, "blocking": 1.005}, True),  # a tie that leans the right way
        ({"naive": 1.005, "blocking": 1.0}, False),  # and one that leans the other way
        ({"naive": 1.0, "blocking": 1.0}, False),  # 10 % are no tie
    ],
)
def test_an_order_is_wrong_where_one_side_clearly_says_otherwise(
    simulated: dict[str, float], right: bool
) -> None:
    assert orders_of({"naive": 1.0, "blocking": 1.1}, simulated) is right


def test_ties_may_be_told_either_way() -> None:
    assert orders_of(
        {"pipelined": 1.0, "unpipelined": 1.004}, {"pipelined": 1.004, "unpipelined": 1.0}
    )
    assert orders_of({"none": 1.0, "pipelined": 1.03}, {"none": 1.0, "pipelined": 1.0})


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0.01, 100))
def test_a_point_lies_in_its_spread_and_its_error_gives_the_simulated_value_back(
    samples: list[float], simulated: float
) -> None:
    point = point_of_samples("iteration_s", {}, S, samples, simulated)
    assert min(samples) <= point.spread[0] <= point.measured <= point.spread[1] <= max(samples)
    assert point.error is not None
    assert point.measured * (1 + point.error) == pytest.approx(simulated)


def test_quantiles_by_hand() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([0, 10], 0.1) == 1
    assert quantile([7], 0.9) == 7


def test_nothing_where_something_was_expected_has_no_error_but_is_told() -> None:
    lost = point_of_samples("iterations_lost", {}, "iterations", [0], 2)
    right = point_of_samples("iterations_lost", {}, "iterations", [0], 0)
    assert (lost.error, right.error) == (None, 0.0)
    assert absolute_errors([lost, right]) == [0.0]
    with pytest.raises(ValueError, match="give a number"):
        point_of_samples("iteration_s", {}, S, [1.0], float("nan"))


def test_report_holds_every_point_twice_alike(compared: Comparison, tmp_path: Path) -> None:
    document = compare_document(compared, command=["castor", "compare"], date="2026-01-01")
    text, table = write_report(document, compared, tmp_path / "out")
    read = json.loads(text.read_text())
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == len(compared.held_out) + len(compared.fitted)
    assert [row["quantity"] for row in rows if row["held_out"] == "1"] == [
        point["quantity"] for point in read["held_out"]
    ]
    for row, point in zip(rows, read["held_out"], strict=False):
        assert float(row["error"]) == pytest.approx(point["error"], abs=1e-6)
        assert set(point) >= {"setting", "measured", "spread", "simulated", "error"}
    assert {"commands", "seeds", "versions", "machine", "date"} <= set(read)
    assert read["worst_error"] == compared.worst_error
    assert len(read["commands"]) == 1 + len(compared.runs)
    assert points_csv((), ()).count("\n") == 1


class _Page(HTMLParser):
    """Checks that tags nest, and collects what a page would fetch."""

    _VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.names: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self._VOID:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._note(attrs)

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            local = (value or "").startswith("#")
            if name in ("src", "href", "xlink:href", "srcset") and not local:
                self.fetched.append(value or "")
            if name == "id":
                self.names.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.long
def test_the_page_is_whole_and_needs_nothing_else(compared: Comparison) -> None:
    document = compare_document(compared, command=["castor", "compare"], date="2026-01-01")
    text = comparison_page(compared, document)
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.fetched == []
    assert "script" not in page.tags
    assert len(page.names) == len(set(page.names)), "drawings must not share names"
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert page.tags.count("svg") == 5, "scatter, histogram, schemes, two timelines"
    used = set(re.findall(r"""(?:url\(#|href="#)([^)"]+)""", text))
    assert used <= set(page.names)
    for needed in (
        "prefers-color-scheme:dark",
        "median error",
        "4.0 %",
        "none-300-256",
        "pipelined",
    ):
        assert needed in text


def test_a_recovery_has_the_parts_of_its_own_kind_only() -> None:
    plain = {"failure": "machine", "from": "peer"}
    asked = {**plain, "replaced_by": "a machine asked for"}
    where = {"model": "h", "link": "x"}
    points = [
        point_of_samples(f"recovery_{part}_s", setting, S, [1.0], 1.0)
        for part, setting in (
            ("detection", plain),
            ("restart", plain | where),
            ("restart", asked | where),
            ("total", asked | where),
            ("detection", asked),
        )
    ]
    groups = recovery_groups(points)
    assert {kind: len(own) for (kind, _), own in groups.items()} == {
        ("machine", "peer"): 2,
        ("machine", "peer", "a machine asked for"): 2,
    }


def test_a_run_that_checkpoints_one_iteration_in_n_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "pipelined")
    file = folder / "result.json"
    result = json.loads(file.read_text())
    result["spec"]["traffic"]["checkpoint_every"] = 4
    file.write_text(json.dumps(result))
    with pytest.raises(InputError, match=r"every 4 iterations.*without --checkpoint-every"):
        setting_of(RunFolder(folder))


def test_settings_of_the_same_run_are_equal_whatever_its_length(tmp_path: Path) -> None:
    one = read_run(write_run(tmp_path, "none", job="one")).setting
    longer = write_run(tmp_path, "none", job="two")
    result = json.loads((longer / "result.json").read_text())
    result["spec"]["arguments"][-1] = "500"
    (longer / "result.json").write_text(json.dumps(result))
    assert read_run(longer).setting == one
    assert isinstance(one, Setting)
