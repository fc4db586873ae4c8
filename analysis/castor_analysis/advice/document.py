"""An advice as JSON."""

from __future__ import annotations

from typing import Any

from castor_analysis.advice.advise import STORAGE_ONLY
from castor_analysis.advice.failing import DAY_S
from castor_analysis.advice.found import Advice, Alternative, Candidate
from castor_analysis.advice.model import erlang_loss
from castor_analysis.advice.text import assumptions, reasons, survival, train_command


def advice_json(advice: Advice) -> dict[str, Any]:
    """Return what `castor advise --json` prints. Times in seconds, sizes in bytes."""
    case, chosen = advice.case, advice.candidate
    job = case.setup.job
    return {
        "schema": 1,
        "cluster": case.setup.cluster.name,
        "model": case.setup.model.name,
        "machines": job.machines,
        "recommendation": {
            "strategy": "castor" if chosen else STORAGE_ONLY,
            "replicas": chosen.replicas if chosen else 0,
            "placement": chosen.placement.kind if chosen else None,
            "memory_every_iterations": chosen.every if chosen else None,
            "persist_every_s": advice.persist_every_s,
            "standbys": advice.standbys,
        },
        "expected_effective_training_time_ratio": advice.ratio.as_json(),
        "failures": {
            "source": case.failing.source,
            "per_day": case.failing.per_s * DAY_S,
            "machines_lost_per_day": case.failing.lost_per_s * DAY_S,
            "hardware_share": case.failing.hardware_share,
            "joint_groups": list(case.failing.groups),
        },
        "memory": {
            "shard_bytes": job.shard_bytes,
            "machine_bytes": case.setup.cluster.cpu_memory,
            "budget_bytes": case.budget_bytes,
            "needed_bytes": {str(one.replicas): one.memory_bytes for one in advice.candidates},
            "fits": {str(one.replicas): one.fits for one in advice.candidates},
        },
        "survival": _survival_json(chosen) if chosen else None,
        "standbys": {
            "load": advice.closed_form.load,
            "by_cost": advice.closed_form.by_cost,
            "by_shortage": advice.closed_form.by_shortage,
            "chance_of_none": erlang_loss(advice.closed_form.load, advice.standbys),
        },
        "train": train_command(advice),
        "reasons": reasons(advice),
        "alternatives": [_alternative_json(one) for one in advice.alternatives],
        "assumptions": assumptions(advice),
    }


def _survival_json(chosen: Candidate) -> dict[str, Any]:
    return {
        "simultaneous_failures": {
            str(count): {"probability": found.probability, "method": found.method}
            for count, found in survival(chosen)
        },
        "expected_group_losses_per_year": chosen.losses_per_year,
        "domains_survived": chosen.racks_survived,
        "window_s": chosen.window_s,
    }


def _alternative_json(one: Alternative) -> dict[str, Any]:
    candidate = one.candidate
    return {
        "name": one.name,
        "chosen": one.chosen,
        "replicas": candidate.replicas if candidate else 0,
        "placement": candidate.placement.kind if candidate else None,
        "persist_every_s": one.persist_every_s,
        "standbys": one.standbys,
        "memory_bytes": candidate.memory_bytes if candidate else 0,
        "fits_memory": candidate.fits if candidate else True,
        "expected_group_losses_per_year": candidate.losses_per_year if candidate else None,
        "expected_effective_training_time_ratio": one.summary.ratio.as_json(),
        "recovered_from": one.summary.recovered_from,
        "gpu_hours_lost": one.summary.gpu_hours_lost.as_json(),
    }
