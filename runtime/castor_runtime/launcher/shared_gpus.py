"""Emulated machines on a computer with GPUs: each has its own, by `CUDA_VISIBLE_DEVICES`.

Every emulated machine counts its ranks from 0, and a rank's GPU is the one of that number: without
a share of its own each machine would train on the same ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from castor_configs.errors import InputError
from castor_runtime.launcher.site import Place, Site

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""One of them is there where a GPU's driver is: NVIDIA's, that under WSL, AMD's."""

_ASK = "import torch; print(torch.cuda.device_count())"
_ASK_S = 120.0


def is_driver_here() -> bool:
    """Return whether a GPU's driver is on this computer; asks no library, which takes seconds."""
    return any(Path(driver).exists() for driver in _DRIVERS)


def count_gpus() -> int:
    """Return how many GPUs torch could use here.

    Another process is asked: one that has used a GPU cannot fork others that do.
    """
    if not is_driver_here():
        return 0
    done = subprocess.run(  # noqa: S603 - this very interpreter
        [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=_ASK_S, check=False
    )
    said = done.stdout.strip()
    return int(said) if said.isdigit() else 0


def visible_gpus(
    environment: Mapping[str, str] = os.environ, count: Callable[[], int] = count_gpus
) -> tuple[str, ...]:
    """Return the GPUs that training uses here, as `CUDA_VISIBLE_DEVICES` names them.

    None where the user trains on something else (`DS_ACCELERATOR=cpu`).

    Args:
        environment: of the user.
        count: says how many torch sees with it.
    """
    if environment.get("DS_ACCELERATOR", "cuda") != "cuda":
        return ()
    seen = count()
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(map(str, range(seen)))
    return tuple(name.strip() for name in named.split(","))[:seen]


class SharedGpus:
    """A site whose agents have a share of this computer's GPUs each; else it is that site.

    Args:
        site: where the agents run.
        ranks_per_machine: GPUs of a share.
        gpus: asked once, for all that may be used.
    """

    def __init__(
        self,
        site: Site,
        ranks_per_machine: int,
        gpus: Callable[[], tuple[str, ...]] = visible_gpus,
    ) -> None:
        self._site = site
        self._ranks = ranks_per_machine
        self._gpus = gpus
        self._free: list[str] = []
        self._shares: dict[str, str] = {}
        self._ended: list[str] = []
        self._has_gpus = False

    @property
    def gateway(self) -> str:
        """See `Site.gateway`."""
        return self._site.gateway

    def open(self, *, machines: int, standbys: int, log: Path) -> None:
        """See `Site.open`.

        Raises:
            InputError: there are GPUs, and fewer than ranks.
        """
        gpus, ranks = self._gpus(), self._ranks
        self._has_gpus = bool(gpus)
        needed = (machines + standbys) * ranks
        if gpus and len(gpus) < needed:
            spare = f" and {standbys} to stand by" if standbys else ""
            each = f"{ranks} rank{'s' if ranks > 1 else ''} each"
            raise InputError(
                f"{machines} emulated machines{spare}, of {each}, need {needed} GPUs, and this "
                f"computer has {len(gpus)}: train with fewer (--nodes, --ranks-per-node, "
                "--standby), or on the CPU: DS_ACCELERATOR=cpu castor train ...",
                key="--nodes",
            )
        cut = range(0, len(gpus) - ranks + 1, ranks)
        self._free = [",".join(gpus[first : first + ranks]) for first in cut]
        self._site.open(machines=machines, standbys=standbys, log=log)

    def close(self) -> None:
        """See `Site.close`."""
        self._site.close()

    def address(self, agent: str) -> str:
        """See `Site.address`."""
        return self._site.address(agent)

    def place(self, agent: str) -> Place:
        """See `Site.place`.

        Raises:
            InputError: no host, or no GPU, is left for it.
        """
        place = self._site.place(agent)
        if not self._has_gpus:
            return place
        share = {"CUDA_VISIBLE_DEVICES": self._share(agent)}
        return replace(place, environment={**place.environment, **share})

    def left(self, agent: str) -> None:
        """Hear that an agent has ended: its GPUs are another's, if no others are free."""
        if agent in self._shares and agent not in self._ended:
            self._ended.append(agent)

    def to_json(self) -> dict[str, Any] | None:
        """See `Site.to_json`."""
        return self._site.to_json()

    def _share(self, agent: str) -> str:
        if agent in self._shares:
            if agent in self._ended:
                self._ended.remove(agent)
        elif self._free:
            self._shares[agent] = self._free.pop(0)
        elif self._ended:
            self._shares[agent] = self._shares.pop(self._ended.pop(0))
        else:
            raise InputError(f"no GPUs are left for {agent}: start the run with fewer machines")
        return self._shares[agent]
