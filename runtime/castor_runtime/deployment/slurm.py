"""Slurm: an array of tasks of one node each, an agent in each, spares included.

One job of several nodes would not do. When one of its nodes fails, Slurm ends the whole job, and
when it is requeued every node's processes go: the survivors' memory with them. The tasks of an
array are jobs of their own.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from castor_configs.errors import InputError
from castor_policy.agents.exit_codes import SETTLED
from castor_runtime.deployment.run_line import draining
from castor_runtime.deployment.told_agent import told_agent

_BODY = """
task=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
# Its time will be over: the agent gives its place away. Cancelled: told twice, it ends at once.
{agent}
case $told$code in {ended}) settled=yes;; *) settled=;; esac
# The controller may be slow, or away for a while: it is asked until it has answered.
for _ in $(seq 720); do
  case $settled$(squeue --noheader --jobs="$task" --format=%T) in
    # It was cancelled: nobody comes again for this node's memory. Slurm tells one process after
    # another: the agent may have ended before this shell was told.
    *COMPLETING|*CANCELLED) {castor} clean --job {job}; break;;
    # Nothing is gained by starting the agent again.
    yes*) break;;
    # The time is over, or the agent died: this task waits in the queue, and comes back as a spare.
    RUNNING) scontrol requeue "$task" && break;;
  esac
  sleep 5
done
exit "$code"
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the tasks are to be.

    Attributes:
        job: name of the job.
        tasks: how many, spares included.
        castor: the program on the nodes.
        words: of the line, after `castor run`.
        before_s: how long before a task's time is over its agent is told.
        options: of sbatch, besides.
    """

    job: str
    tasks: int
    castor: PurePath
    words: Sequence[str]
    before_s: int
    options: Sequence[str] = ()


def batch_script(wanted: Wanted) -> str:
    """Return the script that `sbatch` takes."""
    given = [
        f"--job-name={wanted.job}",
        f"--array=0-{wanted.tasks - 1}",
        "--nodes=1",
        "--ntasks=1",
        "--exclusive",
        "--requeue",
        f"--signal=B:USR1@{wanted.before_s}",
        "--open-mode=append",
        f"--output={wanted.job}-%A_%a.log",
        *wanted.options,
    ]
    castor = shlex.quote(str(wanted.castor))
    body = _BODY.format(
        agent=told_agent(
            shlex.join([str(wanted.castor), "run", *draining(wanted.words, wanted.before_s)]),
            {"USR1": 1, "TERM": 2},
        ),
        ended="|".join(map(str, SETTLED)),
        castor=castor,
        job=shlex.quote(wanted.job),
    )
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {option}" for option in given), body])


def submit(script: str) -> str:
    """Hand a script to Slurm; return what sbatch says.

    Raises:
        InputError: sbatch is not here, or refuses.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise InputError("sbatch is not here: leave --submit out, and submit what is printed")
    done = subprocess.run(  # noqa: S603 - Slurm's own program
        [program], input=script, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise InputError(f"sbatch refuses: {' '.join(done.stderr.split())}")
    return done.stdout.strip()
