"""Quantities: exactness, round trips, refusals that say what to write."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from castor_configs.quantities import (
    NS_MAX,
    BitsPerSecond,
    Bytes,
    Fraction01,
    Nanoseconds,
    RatePerSecond,
    Seconds,
    parse_bps,
    parse_bytes,
    parse_fraction,
    parse_ns,
    parse_rate_per_s,
    parse_seconds,
)
from castor_configs.readable import exact_seconds, format_bps, format_bytes, format_seconds


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (93, 93.0),
        (0.5, 0.5),
        ("0", 0.0),
        ("3h", 10_800.0),
        ("5min", 300.0),
        (" 15 s ", 15.0),
        ("3ms", 0.003),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("100μs", 1e-4),
        ("7 ns", 7e-9),
        ("1.5d", 129_600.0),
        ("131 days", 11_318_400.0),
        ("2 Weeks", 1_209_600.0),
        ("1h30min", 5400.0),
        ("1 min 33 s", 93.0),
        ("1d 2h 3min 4s 5ms", 93_784.005),
        ("1e3s", 1000.0),
        (".5 hours", 1800.0),
    ],
)
def test_times_as_people_write_them(written: object, seconds: float) -> None:
    assert parse_seconds(written) == seconds


@pytest.mark.parametrize(
    ("written", "nanoseconds"),
    [("0.1s", 100_000_000), (0.1, 100_000_000), ("0.3ms", 300_000), (62, 62_000_000_000)],
)
def test_decimal_times_are_exact_in_nanoseconds(written: object, nanoseconds: int) -> None:
    assert parse_ns(written) == nanoseconds


def test_half_nanoseconds_go_to_the_even_one() -> None:
    assert [parse_ns(text) for text in ("0.5ns", "1.5ns", "2.5ns")] == [0, 2, 2]
    assert parse_ns(2.5e-9) == 2


@given(st.integers(0, NS_MAX))
def test_any_nanosecond_survives_writing_and_reading(nanoseconds: int) -> None:
    assert parse_ns(exact_seconds(nanoseconds)) == nanoseconds
    assert parse_ns(f"{nanoseconds}ns") == nanoseconds


@given(st.integers(0, 10**15))
def test_it_takes_the_decimal_that_a_float_prints_as(nanoseconds: int) -> None:
    # 15 digits fit a double's shortest decimal, so what was written comes back.
    assert parse_ns(float(Fraction(nanoseconds, 10**9))) == nanoseconds


@given(st.integers(0, 999), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_combined_times_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_ns(f"{days}d{hours}h{minutes}min{seconds}s") == total * 10**9


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (12, 12),
        ("12", 12),
        ("9.4GB", 9_400_000_000),
        ("75.2 GB", 75_200_000_000),
        ("128MiB", 134_217_728),
        ("1.2 TB", 1_200_000_000_000),
        ("8 kB", 8000),
        ("8KB", 8000),
        ("2 PiB", 2 * 2**50),
        ("512 bytes", 512),
        ("0B", 0),
    ],
)
def test_sizes_as_people_write_them(written: object, size: int) -> None:
    assert parse_bytes(written) == size


@pytest.mark.parametrize(
    ("written", "bandwidth"),
    [
        (1000, 1000),
        ("20Gbps", 20 * 10**9),
        ("400 Gbit/s", 400 * 10**9),
        ("400 Gb / s", 400 * 10**9),
        ("12.5GB/s", 100 * 10**9),
        ("12.5 GBps", 100 * 10**9),
        ("50mbit", 50 * 10**6),
        ("10gbps", 10**10),
        ("1 GiB/s", 8 * 2**30),
        ("9600 bps", 9600),
        ("3.2Tbps", 3_200_000_000_000),
    ],
)
def test_bandwidths_as_people_write_them(written: object, bandwidth: int) -> None:
    assert parse_bps(written) == bandwidth


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        (0.25, 0.25),
        ("2/day", float(Fraction(2, 86_400))),
        ("1.5%/day", float(Fraction(15, 86_400_000))),
        ("0.015 per day", float(Fraction(15, 86_400_000))),
        ("1.5 % per day", float(Fraction(15, 86_400_000))),
        ("2 a day", float(Fraction(2, 86_400))),
        ("419 per 54 days", float(Fraction(419, 54 * 86_400))),
        ("1/30d", float(Fraction(1, 30 * 86_400))),
        ("3/s", 3.0),
        ("0/day", 0.0),
    ],
)
def test_rates_as_people_write_them(written: object, rate: float) -> None:
    assert parse_rate_per_s(written) == rate


@pytest.mark.parametrize(
    ("written", "share"), [(0, 0.0), (1, 1.0), (0.25, 0.25), ("1.5%", 0.015), ("100 %", 1.0)]
)
def test_shares_as_people_write_them(written: object, share: float) -> None:
    assert parse_fraction(written) == share


PARSERS = [parse_seconds, parse_ns, parse_bytes, parse_bps, parse_rate_per_s, parse_fraction]


NO_QUANTITIES: list[object] = [-1, -0.5, math.nan, math.inf, -math.inf, True, None, [], {}]
NO_QUANTITIES += ["", " ", "h", "-1", "- 3h", "nan", "inf", "infinity", "3 parsecs", "1,5s"]
NO_QUANTITIES += ["1.2.3", "3h!", "0x10", "1_000", "9" * 5000, "1e999999999 s", "3/0d", "٣ h/"]


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("value", NO_QUANTITIES)
def test_what_is_no_quantity_is_refused(parse: object, value: object) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match=r"^expected "):
        parse(value)


@pytest.mark.parametrize(
    ("parse", "written", "message"),
    [
        (
            parse_seconds,
            "2 months",
            'expected a time such as "3h", "5min", "1h30min" or "15s", not "2 months": a month has '
            "28 to 31 days: write it in days",
        ),
        (parse_seconds, "24", "it has no unit: write 24s, 24min or 24h"),
        (parse_ns, "0.5", "it has no unit: write 0.5s, 0.5min or 0.5h"),
        (parse_rate_per_s, "0.015", "it has no period: write 0.015/day, or 0.015/s"),
        (parse_seconds, "1 year", "365 or 366 days"),
        (parse_seconds, "5m", "`m` could be minutes or months: write min or days"),
        (parse_seconds, "5 minuts", "unknown unit `minuts`, did you mean `minutes`?"),
        (parse_seconds, "5s 1h", "units must descend, each used once"),
        (parse_seconds, "1h 2h", "units must descend, each used once"),
        (parse_seconds, -3, "not -3: it must not be negative"),
        (parse_seconds, True, "not true"),
        (parse_seconds, [1], "not a list"),
        (parse_ns, "200000 days", "at most 292 years"),
        (parse_bytes, "9.4G", "write GB (thousands) or GiB (1024s)"),
        (parse_bytes, "9.4gb", "a small b counts bits: write GB (thousands) or GiB (1024s)"),
        (parse_bytes, "9.4Gbit", "`Gbit` counts bits"),
        (parse_bytes, "9.4GB/s", "`GB/s` is a bandwidth"),
        (parse_bps, "20GB", "`GB` is a size: write GB/s"),
        (parse_bps, "20 Gpbs", "unknown unit `Gpbs`, did you mean `Gbps`?"),
        (parse_rate_per_s, "1.5%", "a share needs its period, as in 1.5%/day"),
        (parse_rate_per_s, "2/month", "a month has 28 to 31 days"),
        (parse_rate_per_s, "2/0 days", "the period is zero"),
        (parse_fraction, 1.5, "not 1.5: it is over 1"),
        (parse_fraction, "150%", "it is over 1"),
    ],
)
def test_refusals_say_what_to_write(parse: object, written: object, message: str) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match=r"^expected ") as caught:
        parse(written)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (5e-9, "5 ns"),
        (1e-4, "100 us"),
        (0.25, "250 ms"),
        (0.99999, "1 s"),
        (12.34, "12.3 s"),
        (59.96, "1 min"),
        (93.0, "1 min 33 s"),
        (3599.9, "1 h"),
        (7500.0, "2 h 5 min"),
        (86_399.0, "1 d"),
        (11_318_400.0, "131 d"),
        (11_332_800.0, "131 d 4 h"),
        (-93.0, "-1 min 33 s"),
        (math.inf, "infinite"),
    ],
)
def test_times_read_well(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.floats(1e-6, 1e9))
def test_a_formatted_time_parses_back_within_its_precision(seconds: float) -> None:
    again = parse_seconds(format_seconds(seconds))
    assert again == pytest.approx(seconds, rel=0.025)


def test_sizes_and_bandwidths_read_well() -> None:
    assert [format_bytes(size) for size in (0, 512, 9.4e9, 1.2e12, 999_999)] == [
        "0 B",
        "512 B",
        "9.4 GB",
        "1.2 TB",
        "1 MB",
    ]
    assert [format_bps(bps) for bps in (4e11, 2e10, 1.25e6)] == [
        "400 Gbit/s",
        "20 Gbit/s",
        "1.25 Mbit/s",
    ]


@given(st.floats(1, 1e18))
def test_formatted_sizes_parse_back_to_three_digits(size: float) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.006, abs=1)
    assert parse_bps(format_bps(size)) == pytest.approx(size, rel=0.006, abs=1)


class Everything(BaseModel):
    seconds: Seconds
    exact: Nanoseconds
    size: Bytes
    link: BitsPerSecond
    rate: RatePerSecond
    share: Fraction01


def test_models_take_the_same_texts() -> None:
    model = Everything.model_validate(
        {
            "seconds": "1.5min",
            "exact": "0.1s",
            "size": "2GB",
            "link": "20Gbps",
            "rate": "2/s",
            "share": "50%",
        }
    )
    assert (model.seconds, model.exact, model.size) == (90.0, 100_000_000, 2_000_000_000)
    assert (model.link, model.rate, model.share) == (20_000_000_000, 2.0, 0.5)
    again = Everything.model_validate_json(model.model_dump_json())
    assert again == model


def test_models_pass_the_refusal_on() -> None:
    with pytest.raises(ValidationError, match="a month has 28 to 31 days"):
        Everything(seconds="1 month", exact=0, size=0, link=0, rate=0, share=0)  # type: ignore[arg-type]  # the refused text itself
