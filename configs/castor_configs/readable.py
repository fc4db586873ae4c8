"""Times, sizes and bandwidths as people read them; `quantities` reads what they write."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Final

DECIMAL_PREFIXES: Final = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15
}  # fmt: skip


def exact_seconds(nanoseconds: int) -> str:
    """Return the shortest decimal of seconds, with its unit: 62_500_000_000 gives "62.5s"."""
    text = format(Decimal(nanoseconds).scaleb(-9), "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "s"


def format_seconds(seconds: float) -> str:
    """Return a time for a person to read: 93.0 gives "1 min 33 s", 0.25 gives "250 ms"."""
    if not math.isfinite(seconds):
        return "infinite" if seconds > 0 else str(seconds)
    if seconds < 0:
        return f"-{format_seconds(-seconds)}"
    if round(seconds, 1) < 60:
        return _up_to_a_minute(seconds)
    if round(seconds) < 3600:
        return _two_units(seconds, (60, "min"), (1, "s"))
    if round(seconds / 60) < 1440:
        return _two_units(seconds, (3600, "h"), (60, "min"))
    return _two_units(seconds, (86_400, "d"), (3600, "h"))


def format_bytes(size_bytes: float) -> str:
    """Return a size for a person to read, in decimal units: 9.4e9 gives "9.4 GB"."""
    return _scaled(size_bytes, "B")


def format_bps(bandwidth_bps: float) -> str:
    """Return a bandwidth for a person to read: 4e11 gives "400 Gbit/s"."""
    return _scaled(bandwidth_bps, "bit/s")


def _up_to_a_minute(seconds: float) -> str:
    if seconds == 0:
        return "0 s"
    for scale, unit in ((1e9, "ns"), (1e6, "us"), (1e3, "ms")):
        text = _three_digits(seconds * scale)
        if float(text) < 1000:
            return f"{text} {unit}"
    return f"{_three_digits(seconds)} s"


def _two_units(seconds: float, large: tuple[int, str], small: tuple[int, str]) -> str:
    """Round once, in the smaller unit, so that 3599.9 s never reads as 59 min 60 s."""
    rounded = round(seconds / small[0]) * small[0]
    whole, rest = divmod(rounded, large[0])
    return f"{whole} {large[1]}" + (f" {rest // small[0]} {small[1]}" if rest else "")


def _scaled(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return f"{value} {unit}"
    magnitude, last = abs(value), list(DECIMAL_PREFIXES)[-1]
    for prefix, size in DECIMAL_PREFIXES.items():
        text = _three_digits(magnitude / size)
        if float(text) < 1000 or prefix == last:
            break
    return f"{'-' if value < 0 else ''}{text} {prefix}{unit}"


def _three_digits(value: float) -> str:
    """Three significant digits without an exponent; whole numbers keep all of theirs."""
    if value >= 100:
        return f"{value:.0f}"
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
