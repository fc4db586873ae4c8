"""The trace format: what is written is read back exactly, and what is wrong is said where it is."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_configs.errors import InputError
from castor_traces.read import load, parse, read_trace
from castor_traces.seconds import ns_from_seconds_text, seconds_text_from_ns
from castor_traces.trace import MAX_NS, Failure, Trace, make_trace
from castor_traces.write import format_trace, write_trace

RELAXED = settings(
    deadline=None, derandomize=True, max_examples=3 * settings.default.max_examples // 2
)

HEADER = "time_s,machine,kind,duration_s,domain,cause"
HEAD = f"# name: t\n# machines: 4\n# span_s: 100\n{HEADER}\n"

one_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12)
trimmed = one_line.map(str.strip)
keys = trimmed.filter(
    lambda key: (
        key and ":" not in key and key not in ("name", "machines", "span_s", "source", "licence")
    )
)
nanoseconds = st.one_of(
    st.integers(0, MAX_NS), st.integers(0, 10).map(lambda s: s * 10**9), st.integers(0, 20)
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    machines = draw(st.integers(1, 9))
    span_ns = draw(nanoseconds)
    failures = draw(
        st.lists(
            st.builds(
                Failure,
                time_ns=st.one_of(st.integers(0, span_ns), st.sampled_from([0, span_ns])),
                machine=st.one_of(st.none(), st.integers(0, machines - 1)),
                kind=st.sampled_from(["software", "hardware"]),
                duration_ns=st.one_of(st.none(), nanoseconds),
                domain=one_line,
                cause=one_line,
            ),
            max_size=8,
        )
    )
    notes = draw(st.dictionaries(keys, trimmed, max_size=3))
    return make_trace(
        draw(trimmed.filter(bool)),
        machines,
        span_ns,
        failures,
        source=draw(trimmed),
        licence=draw(trimmed),
        notes=notes.items(),
    )


@RELAXED
@given(traces())
def test_what_is_written_is_read_back_exactly(trace):
    assert parse(format_trace(trace), file="some.csv") == (trace, [])


@RELAXED
@given(traces(), st.randoms(use_true_random=False))
def test_rows_may_stand_in_any_order_and_columns_too(trace, random):
    lines = format_trace(trace).split("\n")
    first = lines.index(HEADER) + 1
    rows = lines[first:-1]
    # Equal instants of one machine keep the file's order, so compare them as a multiset.
    random.shuffle(rows)
    shuffled, _ = parse("\n".join([*lines[:first], *rows]), file="some.csv")
    assert sorted(map(repr, shuffled.failures)) == sorted(map(repr, trace.failures))
    assert [f.order for f in shuffled.failures] == [f.order for f in trace.failures]


def test_columns_may_stand_in_any_order():
    text = (
        "# machines: 2\n# span_s: 9\ncause,kind,time_s,duration_s,machine,domain\nc,software,3,,1,d"
    )
    trace, _ = parse(text, file="x.csv")
    assert trace.name == "x"
    assert trace.failures == (Failure(3 * 10**9, 1, "software", None, "d", "c"),)


@RELAXED
@given(st.integers(-MAX_NS, MAX_NS))
def test_seconds_are_exact_and_shortest(ns):
    text = seconds_text_from_ns(ns)
    assert ns_from_seconds_text(text) == ns
    assert Decimal(text) * 10**9 == ns
    assert not (("." in text) and text.endswith(("0", ".")))


@RELAXED
@given(st.decimals(0, 10**9, places=14))
def test_finer_digits_are_rounded_half_to_even(value):
    expected = int((value * 10**9).to_integral_value("ROUND_HALF_EVEN"))
    assert ns_from_seconds_text(str(value)) == expected


@pytest.mark.parametrize(
    ("text", "ns"),
    [("1e3", 10**12), (" 5 ", 5 * 10**9), ("0.5", 5 * 10**8), (".5", 5 * 10**8), ("1e-99", 0)],
)
def test_seconds_accept_the_usual_spellings(text, ns):
    assert ns_from_seconds_text(text) == ns


@pytest.mark.parametrize(
    "text", ["", "nan", "inf", "-Infinity", "1_0", "٣", "1e999999999", "0x10", "1,5", "3s"]
)
def test_seconds_refuse_all_else(text):
    with pytest.raises(ValueError, match=r"expected|beyond"):
        ns_from_seconds_text(text)


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("", "f.csv: ", "the file is empty"),
        ("# name: t\n", "f.csv: ", "no header"),
        (f"# span_s: 1\n{HEADER}\n", "f.csv: machines: ", "missing"),
        (f"# machines: 1\n{HEADER}\n", "f.csv: span_s: ", "missing"),
        (f"# machines: 0\n# span_s: 1\n{HEADER}", "f.csv:1: machines: ", "at least 1"),
        (f"# machines: 1.5\n# span_s: 1\n{HEADER}", "f.csv:1: machines: ", "whole number"),
        (f"# machines: 1\n# span_s: -1\n{HEADER}", "f.csv:2: span_s: ", "at least 0"),
        (f"# machines: 1\n# span_s: NaN\n{HEADER}", "f.csv:2: span_s: ", "finite"),
        (f"# machines: 1\n# machines: 1\n{HEADER}", "f.csv:2: machines: ", "on line 1"),
        (f"# machines\n{HEADER}", "f.csv:1: ", "key: value"),
        ("# machines: 1\n# span_s: 1\ntime_s,machine\n", "f.csv:3: header: ", "missing kind"),
        (f"# machines: 1\n# span_s: 1\n{HEADER},x\n", "f.csv:3: header: ", "unknown 'x'"),
        (f"# machines: 1\n# span_s: 1\n{HEADER},kind\n", "f.csv:3: header: ", "named twice"),
        (f"{HEAD}-1,0,software,,,\n", "f.csv:5: time_s: ", "at least 0"),
        (f"{HEAD}101,0,software,,,\n", "f.csv:5: time_s: ", "within the span"),
        (f"{HEAD}nan,0,software,,,\n", "f.csv:5: time_s: ", "finite"),
        (f"{HEAD}soon,0,software,,,\n", "f.csv:5: time_s: ", "decimal number"),
        (f"{HEAD}1,4,software,,,\n", "f.csv:5: machine: ", "0..3"),
        (f"{HEAD}1,-1,software,,,\n", "f.csv:5: machine: ", "0..3"),
        (f"{HEAD}1,0.0,software,,,\n", "f.csv:5: machine: ", "0..3"),
        (f"{HEAD}1,0,firmware,,,\n", "f.csv:5: kind: ", "software or hardware"),
        (f"{HEAD}1,0,software,-1,,\n", "f.csv:5: duration_s: ", "at least 0"),
        (f"{HEAD}1,0,software,,\n", "f.csv:5: ", "expected 6 fields, found 5"),
        (f"{HEAD}1,0,software,,,,\n", "f.csv:5: ", "expected 6 fields, found 7"),
        (f'{HEAD}1,0,software,,,"x\n', "f.csv:5: ", "quotes"),
        (f"{HEAD}\n\n2,9,software,,,\n", "f.csv:7: machine: ", "0..3"),
    ],
)
def test_a_faulty_file_says_where_and_what(text, place, what):
    with pytest.raises(InputError) as caught:
        parse(text, file="f.csv")
    assert str(caught.value).startswith(place)
    assert what in str(caught.value)


def test_bad_rows_are_skipped_only_on_request_and_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"{HEAD}1,0,software,,,\n2,7,software,,,\n3,1,hardware,4,,\nx\n")
    with pytest.raises(InputError, match=r":6: machine"):
        read_trace(path)
    trace, bad = load(path, skip_bad=True)
    assert [(row.line, row.reason.split(":")[0]) for row in bad] == [
        (6, "machine"),
        (8, "expected 6 fields, found 1"),
    ]
    assert [f.time_ns for f in trace.failures] == [10**9, 3 * 10**9]
    assert read_trace(path, skip_bad=True) == trace


def test_a_fault_in_the_head_is_never_skipped():
    with pytest.raises(InputError, match="machines"):
        parse(f"# machines: x\n# span_s: 1\n{HEADER}\n", file="f", skip_bad=True)


def test_files_that_are_no_text_are_refused_with_their_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(HEAD.encode() + b"1,0,software,,,\xff\n")
    with pytest.raises(InputError, match=r"t\.csv:5: expected UTF-8"):
        read_trace(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")


def test_a_windows_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode() + b"1,0,software,,,\r\n")
    assert read_trace(path).failures == (Failure(10**9, 0, "software"),)


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "t.csv"
    trace = make_trace("t", 2, 10, [Failure(1, 0, "hardware", 0, "rack 1", 'a "quoted", cause')])
    write_trace(trace, path)
    assert read_trace(path) == trace
    broken = make_trace("t", 2, 10, [Failure(1, 0, "hardware", cause="\ud800")])
    with pytest.raises(ValueError, match="surrogate"):
        write_trace(broken, path)
    assert read_trace(path) == trace
    assert [p.name for p in path.parent.iterdir()] == ["t.csv"]


def test_arrays_hold_the_same_and_cannot_be_changed():
    trace = make_trace("t", 3, 9, [Failure(5, None, "software"), Failure(2, 1, "hardware", 7)])
    arrays = trace.arrays()
    assert arrays.time_ns.dtype == np.int64
    assert arrays.time_ns.tolist() == [2, 5]
    assert arrays.machine.dtype == np.int32
    assert arrays.machine.tolist() == [1, -1]
    assert arrays.hardware.tolist() == [True, False]
    assert arrays.duration_ns.dtype == np.int64
    assert arrays.duration_ns.tolist() == [7, -1]
    with pytest.raises(ValueError, match="read-only"):
        arrays.time_ns[0] = 0
    assert make_trace("t", 1, 0, []).arrays().time_ns.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"machines": 0}, "machines"),
        ({"machines": 2**31}, "machines"),
        ({"span_ns": -1}, "span_ns"),
        ({"span_ns": 2**63}, "span_ns"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "one line"),
        ({"source": " padded"}, "blanks"),
        ({"notes": (("name", "x"),)}, "note 'name'"),
        ({"notes": (("a", "x"), ("a", "y"))}, "twice"),
        ({"notes": (("a:b", "x"),)}, "colon"),
        ({"failures": (Failure(101, 0, "software"),)}, "time_ns"),
        ({"failures": (Failure(-1, 0, "software"),)}, "time_ns"),
        ({"failures": (Failure(1, 4, "software"),)}, "machine"),
        ({"failures": (Failure(1, -1, "software"),)}, "machine"),
        ({"failures": (Failure(1, 1, "other"),)}, "kind"),
        ({"failures": (Failure(1, 1, "software", -1),)}, "duration_ns"),
        ({"failures": (Failure(1, 1, "software", 1, "a\rb"),)}, "one line"),
        ({"failures": (Failure(2, 1, "software"), Failure(1, 1, "software"))}, "out of order"),
        ({"failures": (Failure(1, 1, "software"), Failure(1, None, "software"))}, "out of order"),
    ],
)
def test_a_trace_that_no_file_could_hold_is_refused(arguments, what):
    good = {"name": "t", "machines": 4, "span_ns": 100, "failures": ()}
    with pytest.raises(ValueError, match=what):
        Trace(**{**good, **arguments})
