"""The paper's job, GPT-2 100B on 16 p4d machines, as formulas and as experiments take it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from castor_configs.cluster import load_cluster
from castor_configs.model import load_model
from castor_policy.defaults import NETWORK_EFFICIENCY
from castor_policy.frequency import highfreq_interval_iterations
from castor_sim.run import Engine, run_once
from castor_sim.setup import Setup, load_setup
from castor_sim.tally import Tally

EXPERIMENT = "gpt2-100b-p4d"
"""The shipped experiment that every simulated value starts from."""

STRAWMAN_INTERVAL_S = 3 * 3600.0
DAY_S = 86_400.0
MINUTE_S = 60.0

DETECTION_S = 15.0
SERIALISATION_S = 162.0
WARM_UP_S = 253.0
HIGHFREQ_SAVE_S = 81.0
"""Recovery as sec. 7.3 measures it; torch.save of one shard for each of HighFreq's checkpoints."""


@dataclass(frozen=True, slots=True)
class PaperJob:
    """Times of the job in seconds, from the shipped cluster and model.

    Attributes:
        iteration_s: T_iter, 62 s by the paper's text.
        storage_s: t_ckpt to storage and back: size over 20 Gbps.
        peer_s: one shard between two machines, at the 60 % of the network that Fig. 8 implies.
    """

    iteration_s: float
    storage_s: float
    peer_s: float

    @property
    def highfreq_iterations(self) -> int:
        """HighFreq's period by its definition, ceil(t_ckpt / T_iter)."""
        return highfreq_interval_iterations(self.storage_s, self.iteration_s)


def paper_job() -> PaperJob:
    """Return the job with what the text states.

    Raises:
        InputError: the shipped configurations are missing.
    """
    cluster, model = load_cluster("p4d"), load_model("gpt2-100b")
    shard_bits = 8 * model.checkpoint_bytes / cluster.machines
    return PaperJob(
        iteration_s=model.iteration_time_ns(cluster.name) / 1e9,
        storage_s=8 * model.checkpoint_bytes / cluster.storage.bandwidth,
        peer_s=shard_bits / (NETWORK_EFFICIENCY * cluster.network_bandwidth),
    )


def setup_of(settings: Mapping[str, str]) -> Setup:
    """Return the experiment with `settings` (dotted key to TOML value) laid over it.

    Raises:
        InputError: the experiment is missing or refuses a setting.
    """
    return load_setup(EXPERIMENT, tuple(f"{key}={value}" for key, value in settings.items()))


def run_all(work: Sequence[tuple[Setup, str, int]]) -> Iterator[Tally]:
    """Yield the tally of each (setup, strategy, seed), in order, by the sweep engine.

    The engine leaves Python's global lock, so threads use every core; results do not hang on how
    many there are.
    """

    def run(item: tuple[Setup, str, int]) -> Tally:
        setup, strategy, seed = item
        return run_once(setup, strategy, seed, Engine.JUMP)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield from pool.map(run, work)
