"""In what setting a run was made, as its result.json says: what a prediction may know of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from castor_analysis.compare.points import SettingValue
from castor_configs.errors import InputError
from castor_configs.readable import format_bps, format_bytes
from castor_policy.agents.job_spec import PROTOCOL, JobSpec
from castor_policy.interleaving import NONE
from castor_policy.job_options import CPU
from castor_records.result import Result
from castor_records.run_files import RunFiles

TRAFFIC: Final = ("replicas", "mu", "buffer", "sub_buffers", "copies", "send")
"""Keys of a point's setting that only a scheme with checkpoints has."""

_ITERATIONS: Final = "--iterations"
_NAMED: Final = ("--model", "--layers", "--hidden")
"""Arguments of Castor's programs that name a model; others only where models differ in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What tells a run from others before it is made.

    Attributes:
        link_bps: bandwidth of each machine's link; 0: not on an emulated cluster.
        storage_bps: of the storage host's link; 0 likewise.
        script: the program's name.
        arguments: its options and their values but for the number of iterations, sorted.
        scheme: when checkpoint traffic is sent; "none": no checkpoint.
        nodes, ranks_per_node: machines, and trainers on each.
        replicas: m, copies of each shard in memory.
        mu: share of an idle span that is used.
        buffer_bytes, sub_buffers: R and p.
        shortest_span_s: idle spans below it are left alone.
        paced_copy_bps: of the stand-in for a GPU's copy engine; 0: none.
        send: what checkpoints are sent by; "nccl": what arrives takes the hop to CPU memory.
    """

    link_bps: int
    storage_bps: int
    script: str
    arguments: tuple[tuple[str, str], ...]
    scheme: str
    nodes: int
    ranks_per_node: int
    replicas: int
    mu: float
    buffer_bytes: int
    sub_buffers: int
    shortest_span_s: float
    paced_copy_bps: int
    send: str = CPU

    @property
    def model(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The model and its data: program and arguments."""
        return self.script, self.arguments

    @property
    def link(self) -> str:
        """The link's bandwidth for people; "-" where there is no emulated cluster."""
        return format_bps(self.link_bps) if self.link_bps else "-"

    def to_json(self, model: str | None = None) -> dict[str, SettingValue]:
        """Return the setting as a `Point` carries it.

        Args:
            model: its name among several (`model_names`); by default what the arguments give.
        """
        found: dict[str, SettingValue] = {
            "link": self.link,
            "model": model_names([self])[self.model] if model is None else model,
            "scheme": self.scheme,
            "nodes": self.nodes,
            "ranks_per_node": self.ranks_per_node,
        }
        if self.scheme != NONE:
            found |= {
                "replicas": self.replicas,
                "mu": self.mu,
                "buffer": format_bytes(self.buffer_bytes),
                "sub_buffers": self.sub_buffers,
                "copies": format_bps(self.paced_copy_bps) if self.paced_copy_bps else "-",
                "send": self.send,
            }
        return found


def refuse_twice(folders: Sequence[Path]) -> None:
    """Check that no run is given twice: it would weigh as two, or check itself.

    Raises:
        InputError: one is.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("names a run twice", key="RUN")


def setting_of(folder: RunFiles) -> Setting:
    """Return a run's setting.

    Raises:
        InputError: it is no run folder, the run has not ended, an earlier version of Castor wrote
            a result without what is needed, or the result is damaged.
    """
    result = folder.result()
    if (result.spec or {}).get("protocol") != PROTOCOL:
        raise InputError(
            "was written by another version of Castor, which notes the setting otherwise: run it "
            "again",
            file=folder.result_file,
        )
    try:
        spec = job_spec_of(result)
        every = spec.traffic.checkpoint_every
        if spec.traffic.scheme != NONE and every != 1:
            raise InputError(
                f"took a checkpoint every {every} iterations, and what is predicted is one of "
                "each: run it again without --checkpoint-every, or leave it out",
                file=folder.result_file,
            )
        return _setting(spec, result.cluster or {})
    except ValueError as error:
        raise InputError(
            f"is damaged: {error}; copy it again, or leave the run out", file=folder.result_file
        ) from None


def job_spec_of(result: Result) -> JobSpec:
    """Return the job that a result is of.

    Raises:
        ValueError: it says none that this version of Castor reads.
    """
    return JobSpec.from_json(json.dumps(result.spec))


def _setting(spec: JobSpec, rates: Mapping[str, Any]) -> Setting:
    """Return the setting that a job and its cluster's rates say.

    Raises:
        ValueError: a rate is no whole number, or no shard is held by anyone.
    """
    if not all(spec.replicas) or not spec.replicas:
        raise ValueError(f"replicas: expected the machines of each shard, not {spec.replicas}")
    traffic = spec.traffic
    return Setting(
        link_bps=_rate(rates, "bandwidth_bps"),
        storage_bps=_rate(rates, "storage_bandwidth_bps"),
        script=spec.script.rpartition("/")[2],
        arguments=_options(spec.arguments),
        scheme=traffic.scheme,
        nodes=spec.machines,
        ranks_per_node=spec.ranks_per_machine,
        replicas=len(spec.replicas[0]),
        mu=traffic.mu,
        buffer_bytes=traffic.buffer_bytes or traffic.sub_buffers * traffic.chunk_bytes,
        sub_buffers=traffic.sub_buffers,
        shortest_span_s=traffic.shortest_span_s,
        paced_copy_bps=spec.device.paced_copy_bps,
        send=traffic.send,
    )


def _rate(rates: Mapping[str, Any], key: str) -> int:
    value = rates.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"cluster.{key}: expected a whole number of 0 or more, not {value!r}")
    return value


def model_names(
    settings: Iterable[Setting],
) -> dict[tuple[str, tuple[tuple[str, str], ...]], str]:
    """Return a short name for each model, by what tells it from the others.

    A name has --model, --layers and --hidden where they are given, and of what else differs among
    the settings as much as it takes to tell all of them apart.
    """
    models = sorted({setting.model for setting in settings})
    options = _in_order({name for _, arguments in models for name, _ in arguments})
    shown = [option for option in options if option in _NAMED]
    for option in options:
        seen = {(script, *(dict(given).get(name) for name in shown)) for script, given in models}
        if len(seen) == len(models):
            break
        if option not in shown and len({dict(given).get(option) for _, given in models}) > 1:
            shown.append(option)
    several_scripts = len({script for script, _ in models}) > 1
    names = {}
    for script, arguments in models:
        given = dict(arguments)
        words = [f"{name[2:]} {given[name]}".strip() for name in shown if name in given]
        if several_scripts or not words:
            words.insert(0, script.removesuffix(".py"))
        names[script, arguments] = ", ".join(words)
    return names


def _in_order(options: Iterable[str]) -> list[str]:
    places = {name: place for place, name in enumerate(_NAMED)}
    return sorted(options, key=lambda name: (places.get(name, len(places)), name))


def _options(arguments: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return a program's options with their values; what is no option has the name ""."""
    found: dict[str, str] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            found[name] = value
        else:
            found[name] = f"{found.get(name, '')} {argument}".strip()
    found.pop(_ITERATIONS, None)
    return tuple(sorted(found.items()))
