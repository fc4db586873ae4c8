"""Train a small GPT-2 with DeepSpeed ZeRO-3, made failure-proof by Castor.

    castor train examples/gpt2_tiny.py --nodes 4 --iterations 30
    castor train examples/gpt2_tiny.py --nodes 4 --iterations 30 --kill machine:2@10

The lines that Castor needs are the four with `checkpointer`. Text is read as bytes; --text FILE
takes another one, --dataset wikipedia one from Hugging Face. --model takes any gpt2, bert or
roberta model of configs/models, and the options below it make that model smaller.
--paced-layer-ms X waits instead of computing the layers: for measurements without a GPU.
--bucket PARAMETERS of about one layer has DeepSpeed gather and reduce layer by layer, as it does
with large models; tiny ones otherwise travel as a whole.
"""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the cores of one machine

import deepspeed
import torch

from castor import Checkpointer
from castor_configs.model import Model, load_model
from castor_lab.programs.language_model import build_language_model
from castor_lab.programs.text import TextSampler, masked_batch, read_text, read_wikipedia

TEXT = Path(__file__).parent / "text" / "harbour.txt"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt2-tiny", help="name or TOML file of a model")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=320)
    parser.add_argument("--sequence", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4, help="sequences a rank takes at a time")
    parser.add_argument("--accumulate", type=int, default=1, help="batches in an iteration")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--dataset", choices=["wikipedia"], help="instead of --text")
    parser.add_argument("--articles", type=int, default=1000, help="of --dataset wikipedia")
    parser.add_argument(
        "--paced-layer-ms",
        type=float,
        metavar="X",
        help="do not compute a layer but wait X ms forward, twice that backward: processors "
        "stay as free as beside a GPU. Results say that compute was paced.",
    )
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="go on without a restart where another rank is lost",
    )
    parser.add_argument(
        "--bucket",
        type=int,
        metavar="PARAMETERS",
        help="most that DeepSpeed prefetches, keeps and reduces at a time: about a layer's",
    )
    return parser.parse_args()


def model_shape(options: argparse.Namespace) -> Model:
    sizes = {
        "layers": options.layers,
        "hidden": options.hidden,
        "intermediate": 4 * options.hidden,
        "heads": options.heads,
        "vocab": options.vocab,
        "sequence_length": options.sequence,
        "micro_batch": options.batch,
    }
    return load_model(options.model, overrides=[f"{key}={value}" for key, value in sizes.items()])


def deepspeed_configuration(options: argparse.Namespace) -> dict[str, object]:
    stage3: dict[str, object] = {"stage": 3, "stage3_param_persistence_threshold": 256}
    if options.bucket is not None:
        stage3 |= {
            "stage3_prefetch_bucket_size": options.bucket,
            "stage3_max_live_parameters": 2 * options.bucket,  # that in use and the next
            "stage3_max_reuse_distance": options.bucket,  # so backward gathers anew
            "reduce_bucket_size": options.bucket,
        }
    return {
        "train_micro_batch_size_per_gpu": options.batch,
        "gradient_accumulation_steps": options.accumulate,
        "gradient_clipping": 1.0,
        "zero_optimization": stage3,
        "bf16": {"enabled": options.dtype == "bf16"},
        "fp16": {"enabled": options.dtype == "fp16", "initial_scale_power": 12},
        "steps_per_print": 1 << 30,
    }


def main() -> None:
    options = arguments()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    deepspeed.init_distributed()
    torch.manual_seed(options.seed)
    shape = model_shape(options)
    paced_s = None if options.paced_layer_ms is None else options.paced_layer_ms / 1000
    if paced_s is not None:
        print(f"compute: paced, {options.paced_layer_ms:g} ms a layer forward, twice that backward")
    model = build_language_model(shape, dropout=options.dropout, paced_layer_s=paced_s)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_configuration(options),
    )
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(options.seed + 1 + rank)  # each rank drops out other units
    text = read_wikipedia(options.articles) if options.dataset else read_text(options.text)
    sampler = TextSampler(
        text,
        sequence=options.sequence,
        batch=options.batch,
        rank=rank,
        world=world,
        seed=options.seed,
    )

    def train_iteration() -> None:
        for _ in range(options.accumulate):
            tokens = sampler.next_batch()
            batch = tokens if shape.family == "gpt2" else masked_batch(tokens)
            loss = engine(batch)
            engine.backward(loss)
            engine.step()
            checkpointer.step(loss=loss)

    checkpointer = Checkpointer(engine, state={"sampler": sampler})
    while checkpointer.done < options.iterations:
        with checkpointer.iteration() if options.in_place else nullcontext():
            train_iteration()
    checkpointer.finish()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
