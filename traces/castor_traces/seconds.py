"""Seconds as decimal text, and integer nanoseconds: one to the other without an error."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from fractions import Fraction

from castor_traces.trace import MAX_NS, NS_PER_S

# A hostile "1e999999999" must cost nothing; 292 years are 19 digits of nanoseconds.
_MAX_CHARACTERS = 64
_MAX_EXPONENT = 40


def ns_from_seconds_text(text: str, *, unit_ns: int = NS_PER_S) -> int:
    """Return the whole nanoseconds nearest to a decimal number of seconds (or of `unit_ns`).

    Digits finer than a nanosecond are rounded, half to even; all else is exact. A minus sign is
    read too: the caller says what range it accepts.

    Raises:
        ValueError: the text is no finite decimal number, or beyond 292 years.
    """
    text = text.strip()
    whole, _, fraction = text.partition(".")
    if unit_ns == NS_PER_S and len(fraction) <= 9 and len(whole) <= 9:
        digits = whole + fraction
        if digits.isascii() and digits.isdigit() and whole:
            return int(whole) * NS_PER_S + int(fraction.ljust(9, "0"))
    if not text or len(text) > _MAX_CHARACTERS or not text.isascii() or "_" in text:
        raise ValueError(f"expected a decimal number, not {text!r}")
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"expected a decimal number, not {text!r}") from None
    if not value.is_finite():
        raise ValueError(f"expected a finite number, not {text!r}")
    if value and abs(value.adjusted()) > _MAX_EXPONENT:
        if value.adjusted() < 0:
            return 0
        raise ValueError(f"{text} is beyond 292 years")
    # A fraction, because a product of decimals is rounded to 28 digits.
    ns = round(Fraction(value) * unit_ns) if value else 0
    if abs(ns) > MAX_NS:
        raise ValueError(f"{text} is beyond 292 years")
    return ns


def seconds_text_from_ns(ns: int) -> str:
    """Return the shortest decimal text of `ns` nanoseconds in seconds; exact."""
    sign = "-" if ns < 0 else ""
    whole, fraction = divmod(abs(ns), NS_PER_S)
    if not fraction:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:09d}".rstrip("0")
