"""``castor placement``: who holds whose shard, and what failures that survives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castor.commands.placement_drawing import domain_spread, drawing, spread_text
from castor_configs.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from castor_policy.placement import Placement
    from castor_policy.survival import RecoveryProbability

_SHORT_FRACTION = 40
"""Characters up to which a fraction is printed: longer ones nobody reads."""

_MACHINES_MOST = 1_000_000


def placement(
    machines: Annotated[
        int, typer.Option("--machines", "-n", help="Number of machines, N.", show_default=False)
    ],
    replicas: Annotated[
        int,
        typer.Option("--replicas", "-m", help="Copies of each shard, m, a machine's own included."),
    ] = 2,
    kind: Annotated[
        str,
        typer.Option(
            "--placement",
            help="group or mixed (Algorithm 1), ring, random, or domains. "
            "Default: domains if --domains is given, else group.",
            show_default=False,
        ),
    ] = "",
    failures: Annotated[
        int | None,
        typer.Option(
            "--failures",
            "-k",
            help="Machines that fail at once. Default: m, the fewest that can lose a shard.",
            show_default=False,
        ),
    ] = None,
    domains: Annotated[
        str,
        typer.Option(
            "--domains",
            help="Failure domains (racks, switches): how many, or their sizes "
            "(8,8,4), or a file that names each machine's domain on a line.",
            show_default=False,
        ),
    ] = "",
    domain_probability: Annotated[
        float | None,
        typer.Option(
            "--domain-probability",
            help="Probability that a domain goes down whole in one window.",
            show_default=False,
        ),
    ] = None,
    machine_probability: Annotated[
        float | None,
        typer.Option(
            "--machine-probability",
            help="Probability that a machine fails in the same window, besides.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seeds placement and samples.")] = 0,
    samples: Annotated[
        int, typer.Option("--samples", help="Draws where a probability is not countable.")
    ] = 20_000,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
) -> None:
    """Place checkpoint replicas and give the odds of recovering from memory.

    Example: castor placement --machines 16 --replicas 2 --failures 3
    """
    labels = _read_domains(domains, machines) if domains else None
    report = _Report(
        machines=machines,
        replicas=replicas,
        failures=min(replicas, machines) if failures is None else failures,
        kind=kind or ("domains" if labels else "group"),
        domains=labels,
        domain_probability=domain_probability,
        machine_probability=machine_probability,
        seed=seed,
        samples=samples,
    )
    try:
        report.check()
        text: RenderableType = report.as_json() if as_json else report.as_tables()
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
    if isinstance(text, str):
        typer.echo(text)
        return
    from rich.console import Console

    Console(highlight=False).print(text)


def _read_domains(given: str, machines: int) -> list[int]:
    """Return each machine's domain, from a count, a list of sizes, or a file of names."""
    if given.isdecimal():
        count = int(given)
        if not 1 <= count <= max(machines, 1):
            raise InputError(
                f"{count} domains for {machines} machines; use 1 to {machines}", key="--domains"
            )
        return [machine * count // machines for machine in range(machines)]
    parts = given.split(",")
    if all(part.strip().isdecimal() for part in parts):
        labels = [domain for domain, size in enumerate(parts) for _ in range(int(size))]
        source = "the sizes add up to"
    else:
        path = Path(given)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{given!r} is neither a number, nor sizes such as 8,8,4, nor a readable file "
                f"({error})",
                key="--domains",
            ) from error
        names = [line.strip() for line in lines]
        for number, name in enumerate(names, start=1):
            if not name:
                raise InputError("empty line; name a domain on each", file=path, line=number)
        index = {name: position for position, name in enumerate(dict.fromkeys(names))}
        labels = [index[name] for name in names]
        source = f"{given} names"
    if len(labels) != machines:
        raise InputError(
            f"{source} {len(labels)} machines and --machines is {machines}", key="--domains"
        )
    return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """What was asked, and the answers as JSON or as tables."""

    machines: int
    replicas: int
    failures: int
    kind: str
    domains: list[int] | None
    domain_probability: float | None
    machine_probability: float | None
    seed: int
    samples: int

    def check(self) -> None:
        """Refuse what no placement can be made of, naming the option."""
        from castor_policy.placement import KINDS

        if self.kind not in KINDS:
            raise InputError(
                f"unknown placement {self.kind!r}; use one of {', '.join(KINDS)}",
                key="--placement",
            )
        if not 1 <= self.machines <= _MACHINES_MOST:
            raise InputError(
                f"{self.machines} machines; use at least 1 and at most {_MACHINES_MOST:,}",
                key="--machines",
            )
        if not 1 <= self.replicas <= self.machines:
            raise InputError(
                f"{self.replicas} copies on {self.machines} machines; use 1 to {self.machines}, "
                "since each copy lies on another machine",
                key="--replicas",
            )
        if not 0 <= self.failures <= self.machines:
            raise InputError(
                f"{self.failures} of {self.machines} machines cannot fail; "
                f"use 0 to {self.machines}",
                key="--failures",
            )
        if self.samples < 1:
            raise InputError(f"{self.samples} samples; use at least 1", key="--samples")
        if self.kind == "domains" and self.domains is None:
            raise InputError("the domains placement needs --domains", key="--placement")
        for key, value in (
            ("--domain-probability", self.domain_probability),
            ("--machine-probability", self.machine_probability),
        ):
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{value} is no probability; use 0 to 1", key=key)
        if self.domain_probability is not None and self.domains is None:
            raise InputError("needs --domains as well", key="--domain-probability")

    def place(self) -> Placement:
        """Make the placement; the same seed makes the same one."""
        import random

        from castor_policy.placement import place

        return place(
            self.kind,
            self.machines,
            self.replicas,
            domains=self.domains,
            rng=random.Random(self.seed),  # noqa: S311 - a placement is no secret
        )

    def probability(self, made: Placement, failures: int) -> RecoveryProbability:
        """Return the probability for ``failures`` at once; samples do not hang on the order."""
        import random

        from castor_policy.survival import exact_or_estimate

        rng = random.Random(f"{self.seed}/{failures}")  # noqa: S311 - samples are no secret
        return exact_or_estimate(made, failures, samples=self.samples, rng=rng)

    def together(self, made: Placement) -> RecoveryProbability | None:
        """Return the probability when domains fail whole, if its parameters were given."""
        import random

        from castor_policy.survival_domains import domain_recovery_probability

        if self.domain_probability is None and self.machine_probability is None:
            return None
        # Decimal text as typed, not its nearest binary fraction: shorter, so faster to count with.
        return domain_recovery_probability(
            made,
            self.domains or list(range(self.machines)),
            domain_probability=Fraction(str(self.domain_probability or 0)),
            machine_probability=Fraction(str(self.machine_probability or 0)),
            samples=self.samples,
            rng=random.Random(f"{self.seed}/together"),  # noqa: S311 - samples are no secret
        )

    def as_json(self) -> str:
        """Return the JSON object; its keys are documented in docs/."""
        from castor_policy.survival import corollary1_bound, published_ring_formula

        made = self.place()
        answer: dict[str, object] = {
            "placement": made.kind,
            "machines": made.machines,
            "replica_count": made.replica_count,
            "groups": made.groups,
            "replicas": made.replicas,
            "host_sets": len(made.host_sets()),
            "failures": self.failures,
            **_json_of("recovery_probability", self.probability(made, self.failures)),
            "corollary1_bound": float(
                corollary1_bound(self.machines, self.replicas, self.failures)
            ),
        }
        if made.kind not in ("group", "mixed"):
            answer["corollary1_bound_of"] = "group"  # it bounds Algorithm 1, not this placement
        if made.kind == "ring":
            published = published_ring_formula(self.machines, self.replicas, self.failures)
            answer["published_ring_formula"] = float(published)
        if self.domains is not None:
            answer["domains"] = self.domains
            answer["domains_of_a_shard"] = domain_spread(made, self.domains)
        together = self.together(made)
        if together is not None:
            answer["domain_probability"] = self.domain_probability or 0.0
            answer["machine_probability"] = self.machine_probability or 0.0
            answer.update(_json_of("window_recovery_probability", together))
        return json.dumps(answer)

    def as_tables(self) -> RenderableType:
        """Return the placement drawn, and a table of probabilities around ``failures``."""
        from rich.columns import Columns
        from rich.console import Group
        from rich.text import Text

        made = self.place()
        host_sets = len(made.host_sets())
        title = Text.assemble(
            (made.kind, "bold"),
            f" placement of {made.replica_count} "
            f"{'copy' if made.replica_count == 1 else 'copies'} on {made.machines} "
            f"{'machine' if made.machines == 1 else 'machines'}: "
            f"{host_sets} {'set of machines' if host_sets == 1 else 'sets of machines'} "
            "that must not fail together",
        )
        parts: list[RenderableType] = [
            title,
            "",
            Columns(drawing(made, self.domains), padding=(0, 2)),
            "",
        ]
        if self.domains is not None:
            spread = domain_spread(made, self.domains)
            parts += [f"Failure domains of a shard's copies: {spread_text(spread)}", ""]
        parts.append(self._table(made))
        together = self.together(made)
        if together is not None:
            parts += [
                "",
                f"With domains down at {self.domain_probability or 0:g} and machines at "
                f"{self.machine_probability or 0:g} in one window,",
                f"recovery from memory has probability {_shown(together)}.",
            ]
        return Group(*parts)

    def _table(self, made: Placement) -> RenderableType:
        from rich.table import Table

        from castor_policy.survival import corollary1_bound, published_ring_formula

        table = Table(title="Probability of recovery from memory", title_justify="left")
        table.add_column("machines failed\nat once", justify="right")
        table.add_column(f"{made.kind}", justify="right")
        # Corollary 1 speaks of Algorithm 1's placement, so beside others it is a comparison.
        algorithm1 = made.kind in {"group", "mixed"}
        bound_title = "Corollary 1\n(lower bound)" if algorithm1 else "Corollary 1\n(of group)"
        table.add_column(bound_title, justify="right")
        if made.kind == "ring":
            table.add_column("ring as the\npaper plots it", justify="right")
        first = max(0, min(self.replicas - 1, self.failures))
        last = min(self.machines, self.replicas + 4)
        for failures in sorted({*range(first, last + 1), self.failures}):
            cells = [
                str(failures),
                _shown(self.probability(made, failures)),
                f"{float(corollary1_bound(self.machines, self.replicas, failures)):.6f}",
            ]
            if made.kind == "ring":
                published = published_ring_formula(self.machines, self.replicas, failures)
                cells.append(f"{float(published):.6f}")
            table.add_row(*cells, style="bold" if failures == self.failures else None)
        return table


def _json_of(name: str, found: RecoveryProbability) -> dict[str, object]:
    answer: dict[str, object] = {name: found.probability, f"{name}_method": found.method}
    if found.estimate is not None:
        answer[f"{name}_ci95"] = [found.estimate.low, found.estimate.high]
        answer[f"{name}_samples"] = found.estimate.samples
    elif (exact := _short(found.exact)) is not None:
        answer[f"{name}_exact"] = exact
    return answer


def _short(exact: Fraction | None) -> str | None:
    # A fraction of thousands of digits is not even turned into text.
    if exact is None or exact.denominator.bit_length() > 4 * _SHORT_FRACTION:
        return None
    text = str(exact)
    return text if len(text) <= _SHORT_FRACTION else None


def _shown(found: RecoveryProbability) -> str:
    if found.estimate is not None:
        return f"{found.estimate.mean:.4f} ({found.estimate.low:.4f} to {found.estimate.high:.4f})"
    value = found.probability
    if 0 < value < 1e-6:
        return f"{value:.2e}"
    lost = 1 - found.exact if found.exact is not None else None
    if lost is not None and 0 < lost < 1e-5:
        return f"1 - {float(lost):.2e}"
    return f"{value:.6f}"
