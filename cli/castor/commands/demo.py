"""castor demo: the main job in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from castor.commands import simulate as simulate_command


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results go.")] = Path(
        "castor-demo"
    ),
) -> None:
    """Simulate training through real failures, and draw what happened.

    Replays the InfiniteHBD trace of 400 GPU servers if it is on this computer
    (see castor trace fetch), and generated failures at published rates if not. Failures are found
    out as Gemini's artifact does it; under "castor" as this runtime does, by leases.
    """
    from castor_configs.errors import InputError
    from castor_configs.written_quantities import written_seconds
    from castor_policy.membership import LIMITS
    from castor_traces.fetch import locate

    stderr = Console(stderr=True, highlight=False)
    try:
        found = locate("infinitehbd")
    except InputError as error:
        stderr.print(str(error))
        found = None
    if found is not None:
        experiment = "infinitehbd"
        stderr.print(f"using the real failure trace InfiniteHBD from {found}")
    else:
        experiment = "opt-175b"
        stderr.print(
            "no failure trace on this computer (castor trace fetch infinitehbd gets one): "
            "using generated failures at OPT-175B's published rate"
        )
    lease = written_seconds(LIMITS.lease_s)
    own = f'strategies.castor.detection={{lease="{lease}"}}'
    simulate_command.simulate(experiment, out=out, plot=True, overrides=[own])
    stderr.print(f"pictures: {out}/comparison.png, {out}/timeline-gemini.png")
    stderr.print(f"for ui.perfetto.dev: {out}/timeline.perfetto.json")
