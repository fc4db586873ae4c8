"""Times, sizes, bandwidths, rates and shares as people write them.

A number is in the base unit (seconds, bytes, bits per second, per second, share of one); a text
carries its unit, and a time or a rate without one is refused: "--mtbf 24" was meant in hours.
Arithmetic on the way is rational, so that "0.1s" is exactly
100,000,000 ns. Every parser raises a ValueError which says what it expected, with an example.

The `Annotated` types at the end are for pydantic models. **A bare number for `Nanoseconds` is in
seconds too**, in TOML and in Python: one rule for all time fields. It is held as an integer of
nanoseconds, and written back as text with its unit, so that it round-trips.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, PlainSerializer

from castor_configs.nearest import nearest_name
from castor_configs.readable import DECIMAL_PREFIXES, exact_seconds

NS_PER_S: Final = 1_000_000_000
NS_MAX: Final = 2**63 - 1
"""The engines hold times in 64 signed bits: about 292 years."""

_LENGTH_MAX = 80
_NUMBER = r"\d+(?:\.\d*)?(?:[eE][+-]?\d{1,2})?|\.\d+(?:[eE][+-]?\d{1,2})?"
_NUMBER_ALONE = re.compile(rf"\s*({_NUMBER})\s*")
_PERCENT = re.compile(rf"\s*({_NUMBER})\s*%\s*")
_NUMBER_AND_UNIT = re.compile(rf"\s*({_NUMBER})\s*([^\W\d_/]+(?:\s*/\s*[^\W\d_]+)?)")
_RATE = re.compile(
    rf"\s*({_NUMBER})\s*(%?)\s*(?:/|per\b|an?\b)\s*({_NUMBER})?\s*([^\W\d_]+)\s*", re.IGNORECASE
)

_TIME_UNIT_NAMES: tuple[tuple[Fraction, tuple[str, ...]], ...] = (
    (Fraction(1, NS_PER_S), ("ns", "nanosecond", "nanoseconds")),
    (Fraction(1, 1_000_000), ("us", "µs", "μs", "microsecond", "microseconds")),
    (Fraction(1, 1000), ("ms", "millisecond", "milliseconds")),
    (Fraction(1), ("s", "sec", "secs", "second", "seconds")),
    (Fraction(60), ("min", "mins", "minute", "minutes")),
    (Fraction(3600), ("h", "hr", "hrs", "hour", "hours")),
    (Fraction(86_400), ("d", "day", "days")),
    (Fraction(604_800), ("w", "week", "weeks")),
)
_TIME_UNITS = {name: size for size, names in _TIME_UNIT_NAMES for name in names}
_TIME_AMBIGUOUS = {
    "m": "`m` could be minutes or months: write min or days",
    **dict.fromkeys(
        ("month", "months", "mo", "mon"), "a month has 28 to 31 days: write it in days"
    ),
    **dict.fromkeys(
        ("y", "yr", "yrs", "year", "years", "a"),
        "a year has 365 or 366 days: write it in days",
    ),
}

_BINARY_PREFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def _byte_units() -> dict[str, Fraction]:
    units = {"byte": Fraction(1), "bytes": Fraction(1), "KB": Fraction(1000)}
    for prefix, size in (DECIMAL_PREFIXES | _BINARY_PREFIXES).items():
        units[f"{prefix}B"] = Fraction(size)
    return units


def _bandwidth_units() -> dict[str, Fraction]:
    """All spellings: a small b or the word bit means bits, a capital B means bytes."""
    units: dict[str, Fraction] = {}
    prefixes: dict[str, int] = {}
    for prefix, size in (DECIMAL_PREFIXES | _BINARY_PREFIXES).items():
        # Tools write "50mbit" and "10gbps"; nobody means millibits.
        prefixes |= {prefix: size, prefix.lower(): size, prefix[:1].upper() + prefix[1:]: size}
    for prefix, size in prefixes.items():
        units |= {f"{prefix}{name}": Fraction(size) for name in ("bit", "Bit")}
        for per in ("ps", "/s", "/sec"):
            units |= {f"{prefix}{name}{per}": Fraction(size) for name in ("b", "bit", "Bit")}
            units |= {f"{prefix}{name}{per}": Fraction(8 * size) for name in ("B", "Byte")}
    return units


_BYTE_UNITS = _byte_units()
_BANDWIDTH_UNITS = _bandwidth_units()

_TYPE_NAMES = {"dict": "a table", "list": "a list", "NoneType": "nothing"}

_TIME_EXPECTED = 'a time such as "3h", "5min", "1h30min" or "15s"'
_BYTES_EXPECTED = 'a size such as "9.4GB" or "128MiB" (a bare number is in bytes)'
_BPS_EXPECTED = (
    'a bandwidth such as "20Gbps", "400 Gbit/s" or "12.5GB/s" (a bare number is in bits per second)'
)
_RATE_EXPECTED = 'a rate such as "2/day", "1.5%/day" or "0.015 per day"'
_SHARE_EXPECTED = 'a share from 0 to 1, such as 0.015 or "1.5%"'


def parse_seconds(value: object) -> float:
    """Return a time in seconds: 93, "93s", "1min 33s", "1.5d", "131 days".

    A text needs a unit (0 needs none). Combined units must descend, each used once. Months and
    years are refused as ambiguous.

    Raises:
        ValueError: not a time, or negative, infinite or not a number.
    """
    return _to_float(_time(value), _TIME_EXPECTED)


def parse_ns(value: object) -> int:
    """Return a time in whole nanoseconds, exact, halves to even; see `parse_seconds`.

    The double 0.1 counts as the decimal 0.1: what a person wrote, not its binary neighbour.

    Raises:
        ValueError: as `parse_seconds`, or over `NS_MAX` (about 292 years).
    """
    return _ns_of(_time(value))


def parse_bytes(value: object) -> int:
    """Return a size in whole bytes: "9.4GB" counts in thousands, "128MiB" in 1024s.

    Raises:
        ValueError: not a size, in bits, or negative, infinite or not a number.
    """
    return round(_quantity(value, _BYTE_UNITS, _BYTES_EXPECTED, _byte_hint))


def parse_bps(value: object) -> int:
    """Return a bandwidth in whole bits per second: "20Gbps", "400 Gbit/s", "12.5GB/s", "50mbit".

    A small b counts bits, a capital B bytes.

    Raises:
        ValueError: not a bandwidth, or negative, infinite or not a number.
    """
    return round(_quantity(value, _BANDWIDTH_UNITS, _BPS_EXPECTED, _bandwidth_hint))


def parse_rate_per_s(value: object) -> float:
    """Return a rate per second: "2/day", "1.5%/day", "0.015 per day", "419 per 54 days".

    A text needs a period (0 needs none).

    Raises:
        ValueError: not a rate, or negative, infinite or not a number.
    """
    if not isinstance(value, str):
        return _to_float(_number(value, _RATE_EXPECTED), _RATE_EXPECTED)
    text = _checked_text(value, _RATE_EXPECTED)
    if alone := _NUMBER_ALONE.fullmatch(text):
        if Fraction(alone[1]) == 0:
            return 0.0
        raise _refusal(
            _RATE_EXPECTED, value, f"it has no period: write {alone[1]}/day, or {alone[1]}/s"
        )
    match = _RATE.fullmatch(text)
    if match is None:
        hint = "a share needs its period, as in 1.5%/day" if _PERCENT.fullmatch(text) else ""
        raise _refusal(_RATE_EXPECTED, value, hint)
    count, percent, periods, unit = match.groups()
    period = Fraction(periods or 1) * _unit(
        unit, _TIME_UNITS, _RATE_EXPECTED, value, _time_hint, fold=True
    )
    if period == 0:
        raise _refusal(_RATE_EXPECTED, value, "the period is zero")
    return _to_float(Fraction(count) / (100 if percent else 1) / period, _RATE_EXPECTED)


def parse_fraction(value: object) -> float:
    """Return a share from 0 to 1: 0.015, "0.015" or "1.5%".

    Raises:
        ValueError: not a share, or outside 0..1.
    """
    share: Fraction
    if not isinstance(value, str):
        share = _number(value, _SHARE_EXPECTED)
    elif match := _PERCENT.fullmatch(_checked_text(value, _SHARE_EXPECTED)):
        share = Fraction(match[1]) / 100
    else:
        share = _quantity(value, {}, _SHARE_EXPECTED, lambda _: "")
    if share > 1:
        raise _refusal(_SHARE_EXPECTED, value, "it is over 1")
    return float(share)


def _time(value: object) -> Fraction:
    if not isinstance(value, str):
        return _number(value, _TIME_EXPECTED)
    text = _checked_text(value, _TIME_EXPECTED).strip()
    if alone := _NUMBER_ALONE.fullmatch(text):
        if Fraction(alone[1]) == 0:
            return Fraction(0)
        number = alone[1]
        raise _refusal(
            _TIME_EXPECTED, value, f"it has no unit: write {number}s, {number}min or {number}h"
        )
    if not text:
        raise _refusal(_TIME_EXPECTED, value)
    total, smallest, position = Fraction(0), None, 0
    while position < len(text):
        match = _NUMBER_AND_UNIT.match(text, position)
        if match is None:
            raise _refusal(_TIME_EXPECTED, value)
        unit = _unit(match[2], _TIME_UNITS, _TIME_EXPECTED, value, _time_hint, fold=True)
        if smallest is not None and unit >= smallest:
            raise _refusal(_TIME_EXPECTED, value, "units must descend, each used once")
        total, smallest, position = total + Fraction(match[1]) * unit, unit, match.end()
    return total


def _quantity(
    value: object,
    units: Mapping[str, Fraction],
    expected: str,
    hint: Callable[[str], str],
) -> Fraction:
    if not isinstance(value, str):
        return _number(value, expected)
    text = _checked_text(value, expected).strip()
    if alone := _NUMBER_ALONE.fullmatch(text):
        return Fraction(alone[1])
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise _refusal(expected, value)
    unit = re.sub(r"\s*/\s*", "/", match[2])
    return Fraction(match[1]) * _unit(unit, units, expected, value, hint)


def _unit(
    unit: str,
    units: Mapping[str, Fraction],
    expected: str,
    value: object,
    hint: Callable[[str], str],
    *,
    fold: bool = False,
) -> Fraction:
    size = units.get(unit.lower() if fold else unit)
    if size is not None:
        return size
    known = hint(unit)
    if not known:
        near = nearest_name(unit, units)
        known = f"unknown unit `{unit}`" + (f", did you mean `{near}`?" if near else "")
    raise _refusal(expected, value, known)


def _time_hint(unit: str) -> str:
    return _TIME_AMBIGUOUS.get(unit.lower(), "")


def _byte_hint(unit: str) -> str:
    if unit in _BANDWIDTH_UNITS:
        if unit.lower().endswith("bit"):
            return f"`{unit}` counts bits: write bytes, with a capital B"
        return f"`{unit}` is a bandwidth"
    if match := re.fullmatch(r"([kKmMgGtTpP])(i?)b?", unit):
        prefix = match[1].upper()
        if not unit.endswith("b"):
            return f"write {prefix}B (thousands) or {prefix}iB (1024s)"
        return f"a small b counts bits: write {prefix}B (thousands) or {prefix}iB (1024s)"
    return ""


def _bandwidth_hint(unit: str) -> str:
    if f"{unit}ps" in _BANDWIDTH_UNITS:
        return f"`{unit}` is a size: write {unit}/s"
    return ""


def _number(value: object, expected: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise _refusal(expected, value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refusal(expected, value, "it must be finite")
        value = Fraction(repr(value))
    if value < 0:
        raise _refusal(expected, value, "it must not be negative")
    return Fraction(value)


def _checked_text(value: str, expected: str) -> str:
    text = value.strip()
    if len(text) > _LENGTH_MAX:
        raise _refusal(expected, f"{text[:20]}...")
    if re.match(r"[-−]\s*[\d.]", text):
        raise _refusal(expected, value, "it must not be negative")
    if re.fullmatch(r"[+-]?(?:nan|inf|infinity)\w*", text, re.IGNORECASE):
        raise _refusal(expected, value, "it must be finite")
    return text


def _ns_of(seconds: Fraction) -> int:
    nanoseconds = round(seconds * NS_PER_S)
    if nanoseconds > NS_MAX:
        raise ValueError("expected a time of at most 292 years (106,751 days)")
    return nanoseconds


def _to_float(value: Fraction, expected: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"expected {expected}; the number is too large") from None


def _refusal(expected: str, value: object, reason: str = "") -> ValueError:
    if isinstance(value, str):
        shown = f'"{value}"'
    elif isinstance(value, Fraction):
        shown = str(value.numerator if value.denominator == 1 else float(value))
    else:
        shown = _TYPE_NAMES.get(type(value).__name__, str(value).lower())
    return ValueError(f"expected {expected}, not {shown}" + (f": {reason}" if reason else ""))


Seconds = Annotated[float, BeforeValidator(parse_seconds)]
"""A time, held in seconds."""

Nanoseconds = Annotated[
    int,
    BeforeValidator(parse_ns),
    PlainSerializer(exact_seconds, return_type=str, when_used="json"),
]
"""A time, held exactly in whole nanoseconds; a bare number given to the model is in seconds."""

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
"""A size, held in whole bytes."""

BitsPerSecond = Annotated[int, BeforeValidator(parse_bps)]
"""A bandwidth, held in whole bits per second."""

RatePerSecond = Annotated[float, BeforeValidator(parse_rate_per_s)]
"""A rate, held per second."""

Fraction01 = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, le=1)]
"""A share, held as a float from 0 to 1."""
