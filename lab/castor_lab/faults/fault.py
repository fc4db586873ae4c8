"""What a person writes to have something fail, as a value: `KIND[:TARGET[,TARGET]]@WHEN[/OPTION]`.

machine:2@10            kill -9 of machine 2's agent and trainers, and its memory is gone
machine:1,2@10          both at once
machine:spare-0@40s     an agent by its name, 40 s after the first iteration ended
rank:5@20               kill -9 of one trainer
agent:1@20              kill -9 of an agent alone
root@15                 the machine on which the root runs then
store@12/10s            kill -9 of the embedded etcd, restarted after 10 s
flip:0@8                a flipped bit in machine 0's own part, then kill -9 of its trainer
stop:3@20               SIGSTOP of a trainer (a rank)
agentstop:1@20          SIGSTOP of an agent
forkstop:1@20           SIGSTOP of the process that forks a machine's trainers
wipe@12/1s              the embedded etcd is killed, and comes back after 1 s without its data
storagehang@8/5s        who reads the persistent storage waits, for 5 s
storagefull@8/5s        the persistent storage has no room for 5 s (a small file system of its own)
twin:1@20               a second agent of the name of machine 1's is started
stranger@20             a standby with another job's secret is started
machine:3@recovery      as soon as the first recovery is under way
machine:3@recovery+0.5s half a second later

On an emulated cluster (`castor cluster up`) also:

link:2@10               machine 2's link is cut, both directions
link:2@10/5s            and restored after 5 s
slow:1@10/10mbit        machine 1's link has 10 Mbit/s from then on
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from castor_configs.errors import InputError
from castor_configs.nearest import nearest_name
from castor_configs.quantities import parse_bps, parse_seconds

STORE_OUTAGE_S: Final = 10.0
"""How long a killed store stays away where the fault does not say."""

FOR_GOOD: Final = math.inf
"""A link that was cut stays so, where the fault does not say."""

_SHAPE = re.compile(
    r"(?P<kind>[^:@/]*)(?::(?P<targets>[^@/]*))?(?:@(?P<when>[^/]*))?(?:/(?P<option>.*))?"
)
_RECOVERY = re.compile(r"recovery(?:\+(?P<delay>.+))?")


class FaultKind(StrEnum):
    """What fails."""

    MACHINE = "machine"
    RANK = "rank"
    AGENT = "agent"
    ROOT = "root"
    STORE = "store"
    FLIP = "flip"
    STOP = "stop"
    AGENTSTOP = "agentstop"
    LINK = "link"
    SLOW = "slow"
    FORKSTOP = "forkstop"
    WIPE = "wipe"
    STORAGEHANG = "storagehang"
    STORAGEFULL = "storagefull"
    TWIN = "twin"
    STRANGER = "stranger"


_OF_STORAGE = (FaultKind.STORAGEHANG, FaultKind.STORAGEFULL)
_OF_STRANGERS = (FaultKind.TWIN, FaultKind.STRANGER)
_AROUND = (FaultKind.STORE, FaultKind.WIPE, *_OF_STORAGE, *_OF_STRANGERS)
_WITHOUT_TARGET = (
    FaultKind.ROOT,
    FaultKind.STORE,
    FaultKind.WIPE,
    FaultKind.STRANGER,
    *_OF_STORAGE,
)
_LASTING = (FaultKind.STORE, FaultKind.LINK, FaultKind.WIPE, *_OF_STORAGE)
_OF_RANKS = (FaultKind.RANK, FaultKind.STOP)
_OF_LINKS = (FaultKind.LINK, FaultKind.SLOW)


@dataclass(frozen=True, slots=True)
class AtIteration:
    """As soon as any rank has ended this iteration."""

    iteration: int

    def __str__(self) -> str:
        return str(self.iteration)


@dataclass(frozen=True, slots=True)
class AtRecovery:
    """So many seconds after the first failure of the run was detected."""

    delay_s: float = 0.0

    def __str__(self) -> str:
        return "recovery" + (f"+{self.delay_s:g}s" if self.delay_s else "")


@dataclass(frozen=True, slots=True)
class AtTime:
    """So many seconds after the run's first iteration ended."""

    after_s: float

    def __str__(self) -> str:
        return f"{self.after_s:g}s"


@dataclass(frozen=True, slots=True)
class Now:
    """At once."""

    def __str__(self) -> str:
        return "now"


When = AtIteration | AtRecovery | AtTime | Now


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to break.

    Attributes:
        kind: what fails.
        targets: machine numbers, ranks (RANK, STOP) or names of agents; none for ROOT, and for
            what is no machine's.
        when: at what moment.
        outage_s: how long store, storage or link are not as they should be.
        signal: KILL, STOP or TERM, sent instead of what the kind says; "" for that.
        cause: free text for the event, such as a trace's.
        bandwidth_bps: that the link has from then on (SLOW only).
    """

    kind: FaultKind
    targets: tuple[int | str, ...] = ()
    when: When = field(default_factory=Now)
    outage_s: float = STORE_OUTAGE_S
    signal: str = ""
    cause: str = ""
    bandwidth_bps: int = 0

    def __str__(self) -> str:
        targets = ":" + ",".join(map(str, self.targets)) if self.targets else ""
        return f"{self.kind}{targets}@{self.when}{self._option()}"

    def _option(self) -> str:
        if self.kind == FaultKind.SLOW:
            return f"/{self.bandwidth_bps}bit"
        lasts = self.kind in _LASTING and self.outage_s != FOR_GOOD
        return f"/{self.outage_s:g}s" if lasts else ""

    @property
    def of_link(self) -> bool:
        """It happens to a link, which only an emulated cluster has."""
        return self.kind in _OF_LINKS

    @property
    def is_around(self) -> bool:
        """It happens to no machine, but to what is around them all: see `surroundings`."""
        return self.kind in _AROUND

    @property
    def needs_own_store(self) -> bool:
        """Only a store that the launcher has started can have it."""
        return self.kind in (FaultKind.STORE, FaultKind.WIPE)

    @property
    def needs_storage(self) -> bool:
        """Only a run with persistent checkpoints can have it."""
        return self.kind in _OF_STORAGE

    @property
    def takes_machine(self) -> bool:
        """The memory of the machine is lost with it."""
        return self.kind in (FaultKind.MACHINE, FaultKind.ROOT) and self.signal in ("", "KILL")


def parse_fault(text: str, *, machines: int, ranks_per_machine: int) -> Fault:
    """Read one fault as the module's head describes it.

    Args:
        text: `KIND[:TARGET[,TARGET]]@WHEN[/OPTION]`; WHEN may be "now".
        machines: how many machines train.
        ranks_per_machine: trainers on each.

    Raises:
        InputError: not that; the message is one line.
    """
    match = _SHAPE.fullmatch(text.strip())
    if match is None or not match["kind"]:
        raise _refusal(text, "expected KIND[:TARGET]@WHEN, such as machine:2@10 or rank:1@20")
    kind = _kind(match["kind"], text)
    if match["when"] is None:
        raise _refusal(text, f"say when: {match['kind']}...@10 for after iteration 10")
    ranks = machines * ranks_per_machine
    limit = ranks if kind in _OF_RANKS else machines
    outage_s, bandwidth_bps = _option(kind, match["option"], text)
    return Fault(
        kind=kind,
        targets=_targets(kind, match["targets"], limit, text),
        when=_when(match["when"].strip(), text),
        outage_s=outage_s,
        bandwidth_bps=bandwidth_bps,
    )


def _option(kind: FaultKind, given: str | None, text: str) -> tuple[float, int]:
    """Return how long the fault lasts, in seconds, and the bandwidth that it leaves."""
    if kind == FaultKind.SLOW:
        if given is None:
            raise _refusal(text, "say how slow: slow:1@10/10mbit")
        try:
            return STORE_OUTAGE_S, parse_bps(given)
        except ValueError as error:
            raise _refusal(text, str(error)) from None
    if given is None:
        return FOR_GOOD if kind == FaultKind.LINK else STORE_OUTAGE_S, 0
    if kind not in _LASTING:
        lasting = ", ".join(_LASTING)
        raise _refusal(text, f"only {lasting} and slow take an option, {kind} does not")
    return _seconds(given, text), 0


def _kind(name: str, text: str) -> FaultKind:
    try:
        return FaultKind(name.strip())
    except ValueError:
        near = nearest_name(name.strip(), list(FaultKind))
        meant = f", did you mean {near}?" if near else ""
        known = ", ".join(FaultKind)
        raise _refusal(text, f"unknown kind {name.strip()!r}{meant} (there are {known})") from None


def _targets(kind: FaultKind, given: str | None, limit: int, text: str) -> tuple[int | str, ...]:
    if kind in _WITHOUT_TARGET:
        if given is not None:
            raise _refusal(text, f"{kind} takes no target: write {kind}@10")
        return ()
    what = "a rank" if kind in _OF_RANKS else "a machine"
    words = [word.strip() for word in (given or "").split(",")]
    if not all(words):
        raise _refusal(text, f"{kind} needs {what}: {kind}:0@10 or {kind}:0,1@10")
    targets: list[int | str] = []
    for word in words:
        if word.isascii() and word.isdigit():
            if int(word) >= limit:
                raise _refusal(text, f"there is no {what[2:]} {word}; use 0..{limit - 1}")
            targets.append(int(word))
        elif kind in _OF_RANKS or kind == FaultKind.FLIP or not word[0].isalpha():
            raise _refusal(text, f"{word!r} is not {what}; use 0..{limit - 1}")
        else:
            targets.append(word)
    if len(set(targets)) != len(targets):
        raise _refusal(text, "names a target twice")
    return tuple(targets)


def _when(when: str, text: str) -> When:
    if when == "now":
        return Now()
    if when.isascii() and when.isdigit():
        if int(when) == 0:
            raise _refusal(text, "iterations count from 1; write @1 or @now")
        return AtIteration(int(when))
    if recovery := _RECOVERY.fullmatch(when):
        return AtRecovery(_seconds(recovery["delay"], text) if recovery["delay"] else 0.0)
    if when[:1].isdigit() or when[:1] == ".":
        return AtTime(_seconds(when, text))
    raise _refusal(text, "WHEN is an iteration (10), a time (40s), recovery, recovery+0.5s or now")


def _seconds(value: str, text: str) -> float:
    try:
        return parse_seconds(value)
    except ValueError as error:
        raise _refusal(text, str(error)) from None


def _refusal(text: str, reason: str) -> InputError:
    return InputError(f"{text.strip()!r}: {reason}", key="--kill")
