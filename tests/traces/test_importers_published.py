"""The importers on the published files: the numbers that their authors and our notes give.

They need the files: in the folder that CASTOR_TRACES names, in ../shared/traces beside the
repository, or fetched. `test_importers.py` covers every format without them.
"""

import csv
import statistics
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from castor_traces.edit import rescale
from castor_traces.fetch import locate
from castor_traces.importers import import_infinitehbd
from castor_traces.library import load_any
from castor_traces.read import parse
from castor_traces.trace import Trace
from castor_traces.write import format_trace

DAY_NS = 86_400 * 10**9


@pytest.fixture
def published(tmp_path):
    def load(name: str) -> Trace:
        if locate(name) is None:
            pytest.skip(f"{name} is not on this computer; 'castor trace fetch {name}' gets it")
        imported = load_any(name, cache=tmp_path)
        assert imported.bad_rows == ()
        assert parse(format_trace(imported.trace), file="x") == (imported.trace, [])
        return imported.trace

    return load


def days(trace: Trace) -> float:
    return trace.span_ns / DAY_NS


def rate_per_day(trace: Trace) -> float:
    return len(trace.failures) / trace.machines / days(trace)


def failing(trace: Trace) -> int:
    return len({f.machine for f in trace.failures})


def joint(trace: Trace) -> list[int]:
    sizes = [len(list(group)) for _, group in groupby(f.time_ns for f in trace.failures)]
    return sorted((size for size in sizes if size > 1), reverse=True)


@pytest.mark.parametrize(
    ("system", "outages", "machines", "failing_nodes", "per_node_day"),
    [
        (18, 3997, 1024, 964, 0.003197),
        (19, 3284, 1024, 928, 0.003037),
        (20, 2478, 512, 400, 0.003564),
    ],
)
def test_lanl_clusters(published, system, outages, machines, failing_nodes, per_node_day):
    trace = published(f"lanl-{system}")
    assert len(trace.failures) == outages
    assert trace.machines == machines
    assert failing(trace) == failing_nodes
    # The published rates count from the first outage; we from the month of production before it.
    assert per_node_day * 0.98 < rate_per_day(trace) < per_node_day


@pytest.mark.long
def test_lanl_holds_23_systems_and_all_of_their_outages(published):
    traces = {n: published(f"lanl-{n}") for n in range(2, 25)}
    assert sum(len(trace.failures) for trace in traces.values()) == 23_739
    software = sum(f.kind == "software" for t in traces.values() for f in t.failures)
    assert software == 5361
    assert all(failing(trace) <= trace.machines for trace in traces.values())
    # Nodes numbered beyond their count, and a system that names none.
    assert (traces[11].machines, failing(traces[11])) == (256, 126)
    assert (traces[14].machines, failing(traces[14])) == (128, 58)
    assert (traces[17].machines, {f.machine for f in traces[17].failures}) == (1, {None})
    # Outages of no minutes are there, and one of 222 days.
    durations = [f.duration_ns for t in traces.values() for f in t.failures]
    assert sum(duration == 0 for duration in durations) == 187
    assert max(durations) == 319_482 * 60 * 10**9


@pytest.mark.long
def test_titan_counts_and_years(published):
    trace = published("titan")
    assert len(trace.failures) == 6367
    assert trace.machines == 18_687
    assert Counter(f.cause.split()[0] for f in trace.failures) == {"DBE": 4826, "OTB": 1541}
    assert all(f.duration_ns is None and f.kind == "hardware" for f in trace.failures)


@pytest.mark.long
def test_titan_years(published):
    years = [len(published(f"titan-{year}").failures) for year in range(2014, 2020)]
    assert years == [62, 366, 2611, 1421, 1063, 844]
    assert sum(years) == 6367
    # 2016 was a leap year, and one location more was counted by the table than the file names.
    assert rate_per_day(published("titan-2016")) == pytest.approx(0.0003915, rel=0.03)
    assert rate_per_day(published("titan-2018")) == pytest.approx(0.0001599, rel=0.03)


def test_infinitehbd_counts(published):
    trace = published("infinitehbd")
    assert len(trace.failures) == 584
    assert (trace.machines, failing(trace)) == (400, 231)
    assert trace.machines - failing(trace) == 169
    assert 348 <= days(trace) < 349
    assert rate_per_day(trace) == pytest.approx(0.004195, rel=0.005)
    assert joint(trace)[:3] == [8, 8, 6]
    durations_h = [f.duration_ns / 3600e9 for f in trace.failures]
    assert statistics.mean(durations_h) == pytest.approx(133, abs=0.5)
    assert max(durations_h) / 24 == pytest.approx(130.96, abs=0.01)
    assert durations_h.count(0) == 14
    assert sum(f.kind == "software" for f in trace.failures) == 24
    ends: dict[int | None, int] = {}
    overlaps = 0
    for f in trace.failures:
        overlaps += f.time_ns < ends.get(f.machine, 0)
        ends[f.machine] = max(ends.get(f.machine, 0), f.time_ns + f.duration_ns)
    assert overlaps > 0


def test_infinitehbd_is_the_same_from_both_of_its_files(published):
    trace = published("infinitehbd")
    flat = Path(locate("infinitehbd")).with_name("faults_flat.csv")
    if not flat.is_file():
        pytest.skip("faults_flat.csv is made by hand and not fetched; the JSON was tested")
    assert import_infinitehbd(flat).trace.failures == trace.failures


@pytest.mark.parametrize(
    ("name", "slots", "removes", "hours", "bursts"),
    [("bamboo-p3", 32, 167, 11.4, 0.77), ("bamboo-g4dn", 24, 74, 10.6, 0.58)],
)
def test_bamboo_counts(published, name, slots, removes, hours, bursts):
    trace = published(name)
    assert (trace.machines, len(trace.failures)) == (slots, removes)
    # Until the last remove; our notes count from the first to the last row alike.
    assert days(trace) * 24 == pytest.approx(hours, abs=0.25)
    # SOURCE.md: the share of removes that come two to six at one time stamp.
    assert sum(joint(trace)) / removes == pytest.approx(bursts, abs=0.005)
    assert joint(trace)[0] <= 6
    # No slot fails again before it was taken again.
    free_from: dict[int | None, int] = {}
    for f in trace.failures:
        assert f.time_ns >= free_from.get(f.machine, 0)
        free_from[f.machine] = f.time_ns + (f.duration_ns or 0)


@pytest.mark.parametrize(("name", "most"), [("gcloud-a100", 64), ("gcloud-v100", 80)])
def test_count_traces(published, name, most):
    trace = published(name)
    assert trace.machines == most
    assert joint(trace)[0] <= most
    assert {f.machine for f in trace.failures} == {None}


@pytest.mark.parametrize(
    ("system", "machines"), [("lanl-20", 200), ("lanl-20", 1300), ("infinitehbd", 1000)]
)
def test_rescaled_real_traces_keep_the_rate_per_machine(published, system, machines):
    trace = published(system)
    rates = [rate_per_day(rescale(trace, machines, seed)) for seed in range(6)]
    # The spread over machines: three standard errors of the mean over the seeds' fresh draws.
    counts = Counter(f.machine for f in trace.failures)
    spread = statistics.pstdev(counts.get(m, 0) for m in range(trace.machines)) / days(trace)
    drawn = machines % trace.machines
    error = 3 * spread * (drawn / 6) ** 0.5 / machines
    assert statistics.mean(rates) == pytest.approx(rate_per_day(trace), abs=error)


@pytest.mark.long
def test_published_rates_table_agrees(published):
    trace = published("infinitehbd")
    table = Path(locate("infinitehbd")).parents[1] / "published-rates" / "failure_rates.csv"
    if not table.is_file():
        pytest.skip("failure_rates.csv is kept beside the shared traces only")
    with table.open(newline="") as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    for name in ("lanl-18", "lanl-19", "lanl-20", "infinitehbd", "titan-2016", "titan-2018"):
        trace = published(name)
        assert len(trace.failures) == int(rows[name]["count"])
        assert rate_per_day(trace) == pytest.approx(float(rows[name]["per_node_day"]), rel=0.03)
