"""Named streams of random draws that give the same bits on every machine and NumPy version.

NumPy promises that the raw 64-bit words of a bit generator never change; it does not promise that
of `Generator.exponential` and its kin, and their logarithms differ between processors. So only raw
words are taken from NumPy; everything after is ours, by `castor_traces.ieee_math` or in integers.

One cause, one stream: a stream is named by a seed and a path of words. What one cause draws never
shifts the draws of another, so that two runs which differ in one rule share all other randomness.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from castor_traces import ieee_math

Words = NDArray[np.uint64]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_LOW_HALF = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_SHIFT_12 = np.uint64(12)


def uniform(words: Words) -> Floats:
    """Map 64-bit words to numbers strictly between 0 and 1.

    (word >> 12) + 1/2, times 2^-52: with one bit more, the largest word would round up to 1.
    """
    result = (words >> _SHIFT_12).astype(np.float64)
    result += 0.5
    result *= 2.0**-52
    return result


def exponential(words: Words) -> Floats:
    """Map words to exponential draws of mean 1 (inversion: -ln u), above 0 and below 37."""
    result = ieee_math.log(uniform(words))
    return np.negative(result, out=result)


def weibull(words: Words, shape: float) -> Floats:
    """Map words to Weibull draws of scale 1, mean Gamma(1 + 1/shape): E^(1/shape).

    Raises:
        ValueError: if the shape is not positive.
    """
    if not shape > 0.0:
        raise ValueError(f"a Weibull shape must be above 0, got {shape!r}")
    draws = exponential(words)
    if shape == 1.0:
        return draws
    return ieee_math.exp(ieee_math.log(draws) / shape)


def lognormal(words: Words, sigma: float) -> Floats:
    """Map words to log-normal draws of median 1, mean exp(sigma^2 / 2).

    Raises:
        ValueError: if sigma is negative.
    """
    if not sigma >= 0.0:
        raise ValueError(f"sigma of a log-normal distribution must be 0 or more, got {sigma!r}")
    return ieee_math.exp(ieee_math.normal_quantile(uniform(words)) * sigma)


def integers(words: Words, below: int | Integers) -> Integers:
    """Map words to integers 0 .. below - 1: the high half of the 128-bit product word * below.

    Each value has `floor` or `ceil` of 2^64 / below words, so the bias is under below / 2^64.

    Args:
        words: one 64-bit word a draw.
        below: the number of values, 1 to 2^63, one for all or one a draw.

    Raises:
        ValueError: if `below` is less than 1 anywhere.
    """
    bound = np.asarray(below, dtype=np.int64)
    if bound.size and int(bound.min()) < 1:
        raise ValueError("`below` must be 1 or more: there is no integer from 0 to below - 1")
    factor: Words = bound.astype(np.uint64)
    factor_low, factor_high = factor & _LOW_HALF, factor >> _SHIFT_32
    low, high = words & _LOW_HALF, words >> _SHIFT_32
    middle = high * factor_low + ((low * factor_low) >> _SHIFT_32)
    result: Words = middle >> _SHIFT_32
    if not bool(factor_high.any()):
        return result.astype(np.int64)
    carry = (middle & _LOW_HALF) + low * factor_high
    result = high * factor_high + result + (carry >> _SHIFT_32)
    return result.astype(np.int64)


def uniform_ns(words: Words, low_ns: int, high_ns: int) -> Integers:
    """Map words to whole nanoseconds low_ns .. high_ns - 1, all equally likely.

    Raises:
        ValueError: if the range holds no nanosecond.
    """
    if not high_ns > low_ns:
        raise ValueError(f"the range {low_ns} .. {high_ns} ns is empty; make high larger than low")
    return integers(words, high_ns - low_ns) + np.int64(low_ns)


class Draws:
    """One named stream of random draws.

    Args:
        seed: any integer from 0; the one number a person gives for a run.
        path: the name of the stream below that seed, such as `"repairs", 3`.

    Raises:
        ValueError: if the seed is negative.
    """

    __slots__ = ("_bits",)

    def __init__(self, seed: int, *path: str | int) -> None:
        if seed < 0:
            raise ValueError(f"a seed must be 0 or more, got {seed}")
        # JSON keeps 1 and "1" apart, and ("a", "b") and ("a,b",): each name has its own hash.
        name = json.dumps([seed, *path], separators=(",", ":")).encode()
        entropy = int.from_bytes(hashlib.sha256(name).digest(), "little")
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))

    def words(self, n: int) -> Words:
        """Take the next n raw 64-bit words; every draw below uses exactly one word."""
        raw: Words = self._bits.random_raw(n)
        return raw

    def uniform(self, n: int) -> Floats:
        """Draw n numbers strictly between 0 and 1."""
        return uniform(self.words(n))

    def exponential(self, n: int) -> Floats:
        """Draw n exponential numbers of mean 1."""
        return exponential(self.words(n))

    def weibull(self, n: int, shape: float) -> Floats:
        """Draw n Weibull numbers of scale 1 (see `weibull`)."""
        return weibull(self.words(n), shape)

    def lognormal(self, n: int, sigma: float) -> Floats:
        """Draw n log-normal numbers of median 1 (see `lognormal`)."""
        return lognormal(self.words(n), sigma)

    def integers(self, n: int, below: int | Integers) -> Integers:
        """Draw n integers 0 .. below - 1 (see `integers` for the bias)."""
        return integers(self.words(n), below)

    def uniform_ns(self, n: int, low_ns: int, high_ns: int) -> Integers:
        """Draw n whole nanoseconds low_ns .. high_ns - 1."""
        return uniform_ns(self.words(n), low_ns, high_ns)

    def permutation(self, n: int) -> Integers:
        """Draw an order of 0 .. n - 1: the order of n words (equal words: 1 in 2^64 a pair)."""
        return np.argsort(self.words(n), kind="stable").astype(np.int64)


# SplitMix64: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators",
# OOPSLA 2014: a counter of odd step through a mixing function.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class MachineDraws:
    """One stream a machine, advanced for any subset of the machines at once.

    A machine's words hang on the seed, the path and its own number only: not on how many machines
    there are, how far the others have come, or where the horizon lies. Each machine runs SplitMix64
    from a start of its own; two of n machines that draw L words each share one with a chance of
    about n^2 L / 2^64.

    Args:
        machines: how many streams.
        seed: any integer from 0.
        path: the name of the streams below that seed.
    """

    __slots__ = ("_states",)

    def __init__(self, machines: int, seed: int, *path: str | int) -> None:
        self._states = Draws(seed, *path).words(machines)

    def words(self, machines: Integers) -> Words:
        """Take the next word of each of the named machines (each at most once)."""
        state = self._states[machines] + _STEP
        self._states[machines] = state
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        return state ^ (state >> np.uint64(31))
