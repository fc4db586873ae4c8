import hashlib
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.app import app
from castor_configs.errors import InputError
from castor_traces.read import read_trace
from castor_traces.trace import Failure, make_trace
from castor_traces.write import write_trace

S = 10**9
DAY = 86_400 * S
SHARED = Path(
    os.environ.get("CASTOR_TRACES", "") or Path(__file__).resolve().parents[3] / "shared" / "traces"
)
BAMBOO = "0,add,a\n0,add,b\n60000,remove,a\n90000,add,c\n120000,remove,b\n120000,remove,c"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def trace_file(tmp_path):
    failures = [
        Failure(1 * DAY, 0, "hardware", 3600 * S, cause="GPU [0]"),
        Failure(1 * DAY, 1, "hardware", 3600 * S, cause="GPU [0]"),
        Failure(5 * DAY, 2, "software", 60 * S, cause="bug"),
        Failure(7 * DAY, 0, "hardware", None),
    ]
    path = tmp_path / "small.csv"
    write_trace(make_trace("small", 4, 10 * DAY, failures, source="made up"), path)
    return str(path)


def run(*arguments):
    """The exit code, standard output and standard error of `castor trace ARGUMENTS`."""
    result = CliRunner().invoke(app, ["trace", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments):
    """What the command says of bad input; the main function prints it and exits with 2."""
    with pytest.raises(InputError) as caught:
        run(*arguments)
    return str(caught.value)


def test_generate_writes_the_same_file_for_a_seed_and_only_data_on_stdout(tmp_path):
    code, out, err = run("generate", "llama3-405b", "--seed", "3", "--days", "20")
    assert (code, err) == (0, "")
    code, nothing, talk = run(
        "generate", "llama3-405b", "--seed", "3", "--days", "20", "-o", str(tmp_path / "a.csv")
    )
    assert (code, nothing) == (0, "")
    assert "failures of 2,048 machines" in talk
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == out
    trace = read_trace(tmp_path / "a.csv")
    assert (trace.machines, trace.span_ns) == (2048, 20 * DAY)
    assert {"Faulty GPU", "Software bug"} <= {failure.cause for failure in trace.failures}
    assert out != run("generate", "llama3-405b", "--seed", "4", "--days", "20")[1]


def test_generate_takes_every_option_together(tmp_path):
    path = tmp_path / "all.csv"
    options = (
        "--machines 16 --days 365 --rate 1.5%/day --repair lognormal:1h,4h --software-repair 60s "
        "--hardware-share 80% --lemons 10%x5 --domain-size 4 --early 0.5:30d:0.4 "
        "--while-down none --seed 3"
    )
    code, _, _ = run(
        "generate", *options.split(), "--domain-rate", "1 per 100 days", "-o", str(path)
    )
    assert code == 0
    trace = read_trace(path)
    assert {failure.kind for failure in trace.failures} == {"hardware", "software"}
    assert all(failure.duration_ns is not None for failure in trace.failures if not failure.domain)
    assert {f.domain for f in trace.failures} == {
        "",
        "domain-0",
        "domain-1",
        "domain-2",
        "domain-3",
    }
    back_ns = dict.fromkeys(range(16), 0)
    for failure in trace.failures:
        assert failure.time_ns >= back_ns[failure.machine]
        if failure.kind == "hardware":
            back_ns[failure.machine] = failure.time_ns + failure.duration_ns


@pytest.mark.parametrize("process", ["weibull", "lognormal", "poisson", "regular"])
def test_generate_knows_every_process_at_one_rate(tmp_path, process):
    path = tmp_path / "x.csv"
    run("generate", "--machines", "100", "--days", "100", "--rate", "2%/day",
        "--process", process, "-o", str(path))  # fmt: skip
    assert len(read_trace(path).failures) == pytest.approx(200, abs=60)


def test_new_machines_fail_more_at_first(tmp_path):
    counts = []
    for warm_up in ("0", "1000d"):
        path = tmp_path / "x.csv"
        run("generate", "--machines", "500", "--days", "10", "--rate", "1%/day", "--shape", "0.5",
            "--process", "weibull", "--warm-up", warm_up, "-o", str(path))  # fmt: skip
        counts.append(len(read_trace(path).failures))
    assert counts[0] > 2 * counts[1]


def test_stats_as_json_has_the_promised_keys_and_nothing_else_on_stdout(trace_file):
    code, out, err = run("stats", trace_file, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["failures"] == 4
    assert found["machines"] == 4
    assert found["machines_that_failed"] == 3
    assert found["span_s"] == 864_000
    assert found["failures_per_machine_day"] == 0.1
    assert found["simultaneous_groups"] == [2]
    assert found["mean_machines_down"] == pytest.approx((2 * 3600 + 60) / 864_000)
    assert found["max_machines_down"] == 2
    assert found["repair_s"]["median"] == 3600
    assert found["repair_s"]["mean"] == pytest.approx(2420)
    assert set(found["interarrival"]) >= {"weibull_shape", "ci95_low", "ci95_high", "cv"}


def test_stats_for_people_keeps_brackets_and_fits_80_columns(trace_file):
    code, out, _ = run("stats", trace_file)
    assert code == 0
    assert "GPU [0]" in out
    assert "in 1 group of up to 2" in out
    assert "made up" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_stats_of_an_empty_trace(tmp_path):
    path = tmp_path / "empty.csv"
    write_trace(make_trace("empty", 4, 10 * DAY, []), path)
    assert json.loads(run("stats", str(path), "--json")[1])["interarrival"]["cv"] is None
    assert run("stats", str(path))[0] == 0


def test_plot_names_its_pictures(trace_file, tmp_path):
    code, out, _ = run("plot", trace_file, "-o", str(tmp_path / "pictures" / "small.pdf"))
    assert code == 0
    paths = [Path(line) for line in out.split()]
    assert [path.name for path in paths] == ["small.png", "small.pdf"]
    assert all(path.stat().st_size > 5000 for path in paths)


def test_import_takes_a_published_file_under_any_name_and_counts_bad_rows(tmp_path):
    published = tmp_path / "spot.txt"
    published.write_text(BAMBOO + "\n", encoding="utf-8")
    out = tmp_path / "spot.csv"
    code, _, talk = run("import", str(published), "--format", "bamboo", "-o", str(out))
    assert code == 0
    assert "3 failures of 2 machines" in talk
    assert len(read_trace(out).failures) == 3
    published.write_text(BAMBOO + "\nnonsense\n", encoding="utf-8")
    assert "spot.txt:7" in refused("import", str(published), "--format", "bamboo")
    code, data, talk = run("import", str(published), "--format", "bamboo", "--skip-bad")
    assert "1 left out" in talk
    assert "spot.txt:7: left out" in talk
    assert data.startswith("# name: ")


def test_edits_go_from_file_to_file(trace_file, tmp_path):
    out = str(tmp_path / "out.csv")
    assert run("slice", trace_file, "--from", "2d", "--to", "6d", "-o", out)[0] == 0
    assert [f.time_ns for f in read_trace(out).failures] == [3 * DAY]
    assert run("slice", trace_file, "--from", "2d", "-o", out)[0] == 0
    assert [f.time_ns for f in read_trace(out).failures] == [3 * DAY, 5 * DAY]
    assert run("compress", trace_file, "--factor", "1000", "-o", out)[0] == 0
    assert read_trace(out).span_ns == 10 * DAY // 1000
    assert run("rescale", trace_file, "--machines", "8", "--seed", "1", "-o", out)[0] == 0
    assert (read_trace(out).machines, len(read_trace(out).failures)) == (8, 8)
    assert run("merge", trace_file, trace_file, "--side-by-side", "-o", out)[0] == 0
    assert (read_trace(out).machines, len(read_trace(out).failures)) == (8, 8)
    assert run("merge", trace_file, trace_file, "-o", out)[0] == 0
    assert (read_trace(out).machines, len(read_trace(out).failures)) == (4, 8)
    assert run("shuffle", trace_file, "--seed", "2", "-o", out)[0] == 0
    assert len(read_trace(out).failures) == 4


def test_lists_are_data():
    code, out, _ = run("generate", "--list")
    assert code == 0
    assert all(name in out for name in ("opt-175b", "llama3-405b", "meta-rsc-1", "meta-rsc-2"))
    code, out, _ = run("fetch", "--list")
    assert code == 0
    assert all(name in out for name in ("infinitehbd", "bamboo-spot", "lanl-2005"))


def test_fetch_says_where_a_data_set_is_or_that_there_is_no_network(tmp_path, monkeypatch):
    if (SHARED / "bamboo-spot").is_dir():
        monkeypatch.setenv("CASTOR_TRACES", str(SHARED))
        code, out, talk = run("fetch", "bamboo-spot")
        assert code == 0
        assert len(out.split()) == 4
        assert "here already" in talk
    # Port 9 of this computer: nothing listens, whether or not there is a network.
    mirror = ("--base-url", "http://127.0.0.1:9", "--folder", str(tmp_path / "new"))
    assert "bamboo-spot" in refused("fetch", "bamboo-p3", *mirror)
    assert not list((tmp_path / "new").rglob("*.csv"))


@pytest.mark.skipif(
    not (SHARED / "infinitehbd").is_dir(), reason="the InfiniteHBD trace is not on this computer"
)
def test_a_data_set_is_known_by_its_name(monkeypatch):
    monkeypatch.setenv("CASTOR_TRACES", str(SHARED))
    found = json.loads(run("stats", "infinitehbd", "--json")[1])
    assert (found["failures"], found["machines"], found["machines_that_failed"]) == (584, 400, 231)
    first = run("import", "infinitehbd")[1]
    again = run("import", "infinitehbd")[1]
    assert hashlib.sha256(first.encode()).digest() == hashlib.sha256(again.encode()).digest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("stats nowhere.csv", "nowhere.csv: there is no such file"),
        ("stats infinitehb", "did you mean infinitehbd"),
        ("generate opt-175", "did you mean opt-175b?"),
        ("generate", "--machines: expected a number of machines, or a preset"),
        ("generate --machines 4", "--rate: expected a rate"),
        ("generate --machines 4 --rate 5%", "--rate: expected a rate"),
        ("generate opt-175b --repair x:4h", '--repair: expected a repair time such as "4h"'),
        ("generate opt-175b --repair uniform:4h", "--repair: expected a repair time"),
        ("generate opt-175b --repair lognormal:4h,1h", "--repair: the mean"),
        ("generate opt-175b --repair fixed:fast", "--repair: expected a time"),
        ("generate opt-175b --while-down none", "--while-down: none needs a repair time"),
        ("generate opt-175b --lemons 5", '--lemons: expected lemons such as "2%x10"'),
        ("generate opt-175b --lemons 200%x5", "it is over 1"),
        ("generate opt-175b --lemons 2%x5 --process regular", "--lemons: a regular process"),
        ("generate opt-175b --early a:b", "--early: expected early failures"),
        ("generate opt-175b --early 1:30d:99", "--early: the shape"),
        ("generate opt-175b --days -1", "--days: expected a time"),
        ("generate opt-175b --days 90000", "--days: a horizon must be 0 to 73 years"),
        (
            "generate opt-175b --domain-size 4",
            "--domain-size: give --domain-size and --domain-rate",
        ),
        ("generate opt-175b --domain-size 999 --domain-rate 1/day", "1 to 124"),
        ("generate llama3-405b --hardware-share 50%", "--hardware-share: the preset's table"),
        ("generate opt-175b --hardware-share 150%", "--hardware-share: expected a share"),
        ("generate opt-175b --process weibull --shape 0.01", "shape of Weibull gaps must be 0.1"),
        ("slice TRACE --from 9999d", "--from, --to: slice"),
        ("slice TRACE --to soon", "--to: expected a time"),
        ("compress TRACE --factor x", "--factor: expected a number"),
        ("compress TRACE --factor 0", "--factor: factor must be above 0"),
        ("plot TRACE -o /", "--output: expected the name of a picture"),
        ("plot TRACE -o TRACE/x", "cannot be written"),
        ("slice TRACE -o TRACE/x", "cannot be written"),
        ("fetch", "name a data set"),
        ("fetch nowhere", "no data set is called 'nowhere'"),
        ("import TRACE --format tape", "format: expected one of acme"),
    ],
)
def test_bad_input_names_the_option_and_what_was_expected(trace_file, arguments, message):
    words = [word.replace("TRACE", trace_file) for word in arguments.split()]
    assert message in refused(*words)


def test_what_the_parser_refuses_exits_with_2(trace_file):
    assert run("rescale", trace_file, "--machines", "0")[0] == 2
    assert run("generate", "opt-175b", "--process", "cyclic")[0] == 2


@pytest.mark.parametrize(
    "command",
    ["", "generate", "import", "fetch", "stats", "plot", "slice", "rescale", "compress", "merge"],
)
def test_help_reads_on_80_columns(command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert max(len(line) for line in out.splitlines()) <= 80
