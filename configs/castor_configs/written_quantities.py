"""Times, sizes and bandwidths as a person would write them; `quantities` reads them as equal."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

_TIMES = {"h": Fraction(3600), "min": Fraction(60), "s": Fraction(1), "ms": Fraction(1, 1000)}
_SIZES = {
    "GiB": Fraction(1 << 30),
    "MiB": Fraction(1 << 20),
    "KiB": Fraction(1 << 10),
    "GB": Fraction(10**9),
    "MB": Fraction(10**6),
    "kB": Fraction(10**3),
    "B": Fraction(1),
}
_RATES = {
    "Gbit": Fraction(10**9),
    "Mbit": Fraction(10**6),
    "kbit": Fraction(10**3),
    "bit": Fraction(1),
}


def written_seconds(value_s: float) -> str:
    """Return a time with the unit that makes it a small whole number: 10800.0 gives "3h"."""
    return _written(value_s, _TIMES)


def written_bytes(value_bytes: int) -> str:
    """Return a size with its unit: 16777216 gives "16MiB", 128000000 "128MB"."""
    return _written(value_bytes, _SIZES)


def written_bps(value_bps: int) -> str:
    """Return a bandwidth with its unit: 400000000 gives "400Mbit"."""
    return _written(value_bps, _RATES)


def _written(value: float, units: Mapping[str, Fraction]) -> str:
    # The decimal that a double is shown as is what a person wrote, and what is read again.
    counts = {unit: Fraction(repr(value)) / size for unit, size in units.items()}
    whole = {unit: count for unit, count in counts.items() if count.denominator == 1}
    if whole:
        unit = min(whole, key=lambda unit: whole[unit])
        return f"{whole[unit]}{unit}"
    smallest = list(units)[-1]
    exact = Decimal(repr(value)) / Decimal(str(float(units[smallest])))
    return f"{exact:f}{smallest}"
