"""`castor trace generate`: a random trace at published or given rates."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from castor.commands.overwriting import Overwrite
from castor.commands.trace_files import check_output, exact_seconds, naming, write
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from castor_traces.failure_stream import FailureProcess
    from castor_traces.generators import Lemons
    from castor_traces.marks import Marks, RepairTime
    from castor_traces.merge import WhileDown
    from castor_traces.presets import Preset

_DAY_S = 86_400.0
_DEFAULT_DAYS = 30.0
_REPAIR_EXPECTED = (
    'expected a repair time such as "4h", "exponential:4h", "lognormal:1h,4h" (median, mean) or '
    '"uniform:4min,7min"'
)


class Process(StrEnum):
    """How the failures of a machine follow each other."""

    POISSON = "poisson"
    WEIBULL = "weibull"
    LOGNORMAL = "lognormal"
    REGULAR = "regular"


class WhileDownChoice(StrEnum):
    """Whether a machine may fail during its repair."""

    KEEP = "keep"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of the command, as a person typed them."""

    preset: Preset | None
    machines: int | None
    process: Process
    rate: str | None
    shape: float
    sigma: float
    warm_up: str | None
    hardware_share: str | None
    repair: str | None
    software_repair: str | None
    lemons: str | None
    domain_size: int | None
    domain_rate: str | None
    early: str | None
    while_down: WhileDownChoice

    @property
    def failing_while_down(self) -> WhileDown:
        """The choice as the generators know it."""
        return "none" if self.while_down is WhileDownChoice.NONE else "keep"


def generate(
    preset: Annotated[
        str | None,
        typer.Argument(
            help="Published rates: opt-175b, llama3-405b, meta-rsc-1, meta-rsc-2. Options below "
            "replace parts of them.",
            show_default=False,
        ),
    ] = None,
    *,
    as_list: Annotated[bool, typer.Option("--list", help="List the presets.")] = False,
    machines: Annotated[
        int | None, typer.Option(help="How many machines.", min=1, metavar="N", show_default=False)
    ] = None,
    days: Annotated[
        float | None,
        typer.Option(
            help="How long a trace (default: the preset's, else 30).",
            metavar="D",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed.", min=0, metavar="N")] = 0,
    process: Annotated[
        Process,
        typer.Option(
            help="Gaps of a machine: exponential, Weibull or log-normal; regular: the cluster "
            "fails evenly, one failure in each slot of time."
        ),
    ] = Process.POISSON,
    rate: Annotated[
        str | None,
        typer.Option(
            help='Failures of a machine: "1.5%/day", "2 per 1000 days".',
            metavar="RATE",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[float, typer.Option(help="Weibull shape.", metavar="X")] = 0.7,
    sigma: Annotated[float, typer.Option(help="Log-normal sigma.", metavar="X")] = 1.0,
    warm_up: Annotated[
        str | None,
        typer.Option(
            help="Weibull, log-normal: age of the machines at the start (default: ten mean gaps; "
            "0 for new ones).",
            metavar="TIME",
            show_default=False,
        ),
    ] = None,
    hardware_share: Annotated[
        str | None,
        typer.Option(help="Share of hardware failures: 80%.", metavar="SHARE", show_default=False),
    ] = None,
    repair: Annotated[
        str | None,
        typer.Option(
            help='Repair after a hardware failure: "4h", "exponential:4h", "lognormal:1h,4h" '
            '(median, mean), "uniform:4min,7min". Without it, durations are left open.',
            metavar="REPAIR",
            show_default=False,
        ),
    ] = None,
    software_repair: Annotated[
        str | None,
        typer.Option(
            help="The same after a software failure.", metavar="REPAIR", show_default=False
        ),
    ] = None,
    lemons: Annotated[
        str | None,
        typer.Option(
            help='Machines that fail more often: "2%x10" makes 2 % of them fail 10 times as often.',
            metavar="SHARExN",
            show_default=False,
        ),
    ] = None,
    domain_size: Annotated[
        int | None,
        typer.Option(
            help="Machines of a rack, switch or power feed that fails whole.",
            min=1,
            metavar="N",
            show_default=False,
        ),
    ] = None,
    domain_rate: Annotated[
        str | None,
        typer.Option(
            help="Failures of one such domain: 1 per 365 days.", metavar="RATE", show_default=False
        ),
    ] = None,
    early: Annotated[
        str | None,
        typer.Option(
            help='Infant mortality: "0.5:30d" adds half a failure a machine within the first 30 '
            'days, growing rarer; "0.5:30d:0.4" also gives the Weibull shape (default 0.5).',
            metavar="N:TIME",
            show_default=False,
        ),
    ] = None,
    while_down: Annotated[
        WhileDownChoice,
        typer.Option(help="Failures of a machine during its repair: keep them, or have none."),
    ] = WhileDownChoice.KEEP,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write the trace; - is standard output."
        ),
    ] = "-",
    overwrite: Overwrite = False,
) -> None:
    """Make a random trace: the same options and seed give the same file, byte for byte.

    Examples: castor trace generate llama3-405b --seed 1 -o llama.csv

    castor trace generate --machines 16 --days 365 --rate 1.5%/day --repair 4h -o small.csv
    """
    from castor_traces.failure_stream import to_trace

    if as_list:
        from castor.commands.trace_tables import print_presets

        print_presets()
        return
    check_output(output, (), overwrite=overwrite)
    options = _Options(
        _preset(preset),
        machines,
        process,
        rate,
        shape,
        sigma,
        warm_up,
        hardware_share,
        repair,
        software_repair,
        lemons,
        domain_size,
        domain_rate,
        early,
        while_down,
    )
    published = options.preset
    if days is None:
        days = published.days if published else _DEFAULT_DAYS
    horizon_ns = int(exact_seconds(f"{days!r}d", "--days") * 1_000_000_000)
    with naming("--days"):
        trace = to_trace(
            _process(options),
            seed,
            horizon_ns,
            name=published.name if published else process.value,
            source=published.source if published else "",
        )
    write(trace, output)


def _preset(name: str | None) -> Preset | None:
    from castor_configs.nearest import nearest_name
    from castor_traces.presets import PRESETS

    if name is None or name in PRESETS:
        return PRESETS[name] if name else None
    near = nearest_name(name, PRESETS)
    hint = f"did you mean {near}?" if near else f"expected one of {', '.join(PRESETS)}"
    raise InputError(f"no preset is called {name!r}; {hint}", key="PRESET")


def _process(options: _Options) -> FailureProcess:
    from castor_traces.generators import DomainFailures, EarlyFailures, MergedFailures

    if options.while_down is WhileDownChoice.NONE and options.repair is None:
        raise InputError("none needs a repair time; give --repair too", key="--while-down")
    preset = options.preset
    machines = options.machines or (preset.machines if preset else 0)
    if not machines:
        raise InputError("expected a number of machines, or a preset", key="--machines")
    marks = _marks(options)
    parts: list[FailureProcess] = [_single_machines(options, machines, marks)]
    if (options.domain_size is None) != (options.domain_rate is None):
        raise InputError("give --domain-size and --domain-rate together", key="--domain-size")
    if options.domain_size is not None and options.domain_rate is not None:
        rate_per_s = _rate(options.domain_rate, "--domain-rate")
        with naming("--domain-size, --domain-rate"):
            parts.append(
                DomainFailures(machines, options.domain_size, rate_per_s, _hardware_of(marks))
            )
    if options.early is not None:
        expected, within_s, shape = _early(options.early)
        with naming("--early"):
            parts.append(EarlyFailures(machines, shape, expected, within_s, marks))
    if len(parts) == 1:
        return parts[0]
    return MergedFailures(tuple(parts), options.failing_while_down)


def _single_machines(options: _Options, machines: int, marks: Marks) -> FailureProcess:
    from castor_traces.generators import (
        LognormalGaps,
        PoissonFailures,
        RegularFailures,
        RenewalFailures,
        WeibullGaps,
    )

    lemons, while_down = _lemons(options.lemons), options.failing_while_down
    rate_per_s = options.preset.rate_per_s if options.preset else None
    if options.rate is not None:
        rate_per_s = _rate(options.rate, "--rate")
    if rate_per_s is None:
        raise InputError('expected a rate such as "1.5%/day", or a preset', key="--rate")
    if options.process is Process.REGULAR:
        if lemons:
            raise InputError("a regular process has no lemons; leave one out", key="--lemons")
        with naming("--rate"):
            return RegularFailures(machines, rate_per_s * machines * _DAY_S, marks, while_down)
    if options.process is Process.POISSON or rate_per_s == 0.0:
        with naming("--rate"):
            return PoissonFailures(machines, rate_per_s, lemons, marks, while_down)
    mean_s = 1.0 / rate_per_s
    # The renewal density of such gaps has settled well before ten of them.
    warm_up_s = min(10.0 * mean_s, 2e9)
    if options.warm_up is not None:
        warm_up_s = float(exact_seconds(options.warm_up, "--warm-up"))
    with naming("--shape, --sigma, --rate, --warm-up"):
        gaps = (
            WeibullGaps(options.shape, mean_s)
            if options.process is Process.WEIBULL
            else LognormalGaps(options.sigma, mean_s)
        )
        return RenewalFailures(machines, gaps, lemons, warm_up_s, marks, while_down)


def _marks(options: _Options) -> Marks:
    from castor_configs.quantities import parse_fraction
    from castor_traces.marks import Marks

    share, causes = 1.0, options.preset.marks.causes if options.preset else ()
    if options.hardware_share is not None:
        if causes:
            raise InputError(
                "the preset's table of causes says what is hardware; leave this option out",
                key="--hardware-share",
            )
        with naming("--hardware-share"):
            share = parse_fraction(options.hardware_share)
    return Marks(
        hardware_share=share,
        causes=causes,
        hardware_repair=_repair(options.repair, "--repair"),
        software_repair=_repair(options.software_repair, "--software-repair"),
    )


def _hardware_of(marks: Marks) -> Marks:
    """Return the marks of a domain that goes down whole: always hardware, repaired alike."""
    from castor_traces.marks import Marks

    return Marks(hardware_repair=marks.hardware_repair)


def _rate(text: str, option: str) -> float:
    from castor_configs.quantities import parse_rate_per_s

    with naming(option):
        return parse_rate_per_s(text)


def _repair(text: str | None, option: str) -> RepairTime | None:
    from castor_traces.marks import (
        ExponentialRepair,
        FixedRepair,
        LognormalRepair,
        UniformRepair,
    )

    if text is None:
        return None
    family, colon, rest = text.partition(":")
    if not colon:
        family, rest = "fixed", text
    times_s = [float(exact_seconds(part, option)) for part in rest.split(",")]
    with naming(option):
        match family.strip(), times_s:
            case "fixed", [mean_s]:
                return FixedRepair(mean_s)
            case "exponential", [mean_s]:
                return ExponentialRepair(mean_s)
            case "lognormal", [median_s, mean_s]:
                return LognormalRepair(median_s, mean_s)
            case "uniform", [low_s, high_s]:
                return UniformRepair(low_s, high_s)
    raise InputError(f"{_REPAIR_EXPECTED}, not {text!r}", key=option)


def _lemons(text: str | None) -> Lemons | None:
    from castor_configs.quantities import parse_fraction
    from castor_traces.generators import Lemons

    if text is None:
        return None
    share, cross, factor = text.partition("x")
    try:
        if cross:
            return Lemons(parse_fraction(share), float(factor))
    except ValueError as error:
        raise InputError(
            f'expected lemons such as "2%x10", not {text!r}: {error}', key="--lemons"
        ) from error
    raise InputError(f'expected lemons such as "2%x10", not {text!r}', key="--lemons")


def _early(text: str) -> tuple[float, float, float]:
    expected, _, rest = text.partition(":")
    within, _, shape = rest.partition(":")
    try:
        count, exponent = float(expected), float(shape or "0.5")
    except ValueError:
        raise InputError(
            f'expected early failures such as "0.5:30d", not {text!r}', key="--early"
        ) from None
    return count, float(exact_seconds(within, "--early")), exponent
