"""Failure processes at published rates, each with its source and how sure the number is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from castor_traces.generators import PoissonFailures
from castor_traces.marks import Cause, Marks

_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Preset:
    """A cluster of which the failure rate was published.

    Attributes:
        name: what a person types.
        machines: how many machines the published cluster had.
        days: for how many days it was watched.
        rate_per_s: failures of one machine per second.
        marks: kinds and causes; repair times are not published, so none is given.
        source: where the numbers stand.
        confidence: "primary" (read at the source) or "secondary" (read elsewhere).
        remark: what was inferred, and what the numbers do not say.
    """

    name: str
    machines: int
    days: float
    rate_per_s: float
    marks: Marks
    source: str
    confidence: str
    remark: str

    def process(self) -> PoissonFailures:
        """Return the Poisson process of that cluster, size and rate as published."""
        return PoissonFailures(machines=self.machines, rate_per_s=self.rate_per_s, marks=self.marks)


#: Table 5 of the Llama 3 paper: unexpected interruptions in 54 days, 419 in all. A cause counts
#: as hardware if the machine (and what its CPU memory holds) is lost to the job: its parts, the
#: link that it hangs on, and maintenance that takes it away. Bugs, dependencies and watchdog
#: timeouts end in a restart of the same machine. That gives 356 of 419 (85 %); without the 32
#: maintenance cases 324 (77 %), the "about 78 % hardware" of the paper's text.
LLAMA3_CAUSES: Final = (
    Cause("Faulty GPU", True, 148),
    Cause("GPU HBM3 memory", True, 72),
    Cause("Software bug", False, 54),
    Cause("Network switch/cable", True, 35),
    Cause("Host maintenance", True, 32),
    Cause("GPU SRAM memory", True, 19),
    Cause("GPU system processor", True, 17),
    Cause("NIC", True, 7),
    Cause("NCCL watchdog timeouts", False, 7),
    Cause("Silent data corruption", True, 6),
    Cause("GPU thermal interface + sensor", True, 6),
    Cause("SSD", True, 3),
    Cause("Power supply", True, 3),
    Cause("Server chassis", True, 2),
    Cause("IO expansion board", True, 2),
    Cause("Dependency", False, 2),
    Cause("CPU", True, 2),
    Cause("System memory", True, 2),
)

_LLAMA3_DAYS: Final = 54.0
_LLAMA3_FAILURES: Final = sum(cause.weight for cause in LLAMA3_CAUSES)

_ALL: Final = (
    Preset(
        name="opt-175b",
        machines=124,
        days=60.0,
        rate_per_s=0.015 / _DAY_S,
        marks=Marks(),
        source=(
            "OPT-175B log book, as read by Gemini (SOSP 2023): 992 A100 in 124 machines, 1.5 % of "
            "the machines fail a day, about two failures a day over two months"
        ),
        confidence="primary",
        remark="no share of software failures is published: all are taken as hardware",
    ),
    Preset(
        name="llama3-405b",
        machines=2048,
        days=_LLAMA3_DAYS,
        rate_per_s=_LLAMA3_FAILURES / (_LLAMA3_DAYS * _DAY_S * 2048),
        marks=Marks(causes=LLAMA3_CAUSES),
        source=(
            "The Llama 3 Herd of Models (arXiv 2407.21783), Table 5: 419 unexpected interruptions "
            "in 54 days on 16,384 H100"
        ),
        confidence="secondary",
        remark=(
            "2,048 machines of 8 GPUs; the kind of each cause is our reading; the table prints "
            "30.1 % for Faulty GPU, but 148 of 419 is 35.3 %"
        ),
    ),
    Preset(
        name="meta-rsc-1",
        machines=2000,
        days=330.0,
        rate_per_s=6.50e-3 / _DAY_S,
        marks=Marks(),
        source=(
            "Revisiting Reliability in Large-Scale Machine Learning Research Clusters (HPCA 2025, "
            "arXiv 2410.21680): RSC-1, 6.50 failures per 1000 node-days"
        ),
        confidence="secondary",
        remark='"16k A100" taken as 2,000 machines of 8; all failures taken as hardware',
    ),
    Preset(
        name="meta-rsc-2",
        machines=1000,
        days=330.0,
        rate_per_s=2.34e-3 / _DAY_S,
        marks=Marks(),
        source=(
            "Revisiting Reliability in Large-Scale Machine Learning Research Clusters (HPCA 2025, "
            "arXiv 2410.21680): RSC-2, 2.34 failures per 1000 node-days"
        ),
        confidence="secondary",
        remark='"8k A100" taken as 1,000 machines of 8; all failures taken as hardware',
    ),
)

PRESETS: Final[Mapping[str, Preset]] = MappingProxyType({preset.name: preset for preset in _ALL})
