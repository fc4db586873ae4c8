"""What Castor writes for DeepSpeed is what DeepSpeed writes, and resumes bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.manifest import Attempt
from castor_runtime.persistent.reading import whole_part
from castor_runtime.persistent.storage import checkpoint_manifest, complete_iterations
from castor_runtime.state.protocol import DamagedError, PersistentPart

pytestmark = pytest.mark.long  # each starts real DeepSpeed, which imports for seconds

PROGRAM = Path(__file__).with_name("persistent_deepspeed_program.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return out


@pytest.fixture(params=["fp32", "bf16"])
def run(request: pytest.FixtureRequest, runs: Path) -> Path:
    return runs / str(request.param)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return where two trees differ, in any bit or type, or in the order of an OrderedDict."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        equal = a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        order: Any = list if isinstance(a, OrderedDict) else set
        if order(a) == order(b):
            return [line for key in a for line in differences(a[key], b[key], f"{path}.{key}")]
        equal = False
    elif isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [line for i, (x, y) in pairs for line in differences(x, y, f"{path}[{i}]")]
    elif type(a).__name__.endswith("LossScaler"):
        equal = type(a) is type(b) and vars(a) == vars(b)
    else:
        equal = bool(a == b)
    return [] if equal else [f"{path}: {a!r} != {b!r}"]


def in_any_order(content: dict[str, Any]) -> dict[str, Any]:
    """A buffer that training made stands last in our files: nobody asks for their order."""
    if "module" in content:
        ordered = OrderedDict(sorted(content["module"].items()))
        vars(ordered).update(vars(content["module"]))
        content["module"] = ordered
        content["buffer_names"] = sorted(content["buffer_names"])
    return content


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def test_the_files_hold_what_deepspeed_saves(run: Path) -> None:
    folders = [("castor", "deepspeed", "global_step3")]
    if run.name == "fp32":
        folders.append(("castor-untrained", "deepspeed-untrained", "global_step0"))
    for castor, deepspeed, step in folders:
        names = sorted(path.name for path in (run / deepspeed / step).glob("*.pt"))
        assert len(names) == 4
        for name in names:
            ours = in_any_order(load(run / castor / step / name))
            theirs = in_any_order(load(run / deepspeed / step / name))
            assert differences(ours, theirs, name) == []
            if "module" in ours:
                assert vars(ours["module"]) == vars(theirs["module"])
        assert (run / castor / "latest").read_text() == step
        script = (run / castor / "zero_to_fp32.py").read_bytes()
        assert script == (run / deepspeed / "zero_to_fp32.py").read_bytes()
        assert os.access(run / castor / "zero_to_fp32.py", os.X_OK)


def test_files_load_with_torchs_default(run: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import (  # noqa: PLC0415 - seconds, for all who collect
        DynamicLossScaler,
        LossScaler,
    )

    folder = run / "castor" / "global_step3"
    for path in folder.glob("*_model_states.pt"):
        assert "module" in torch.load(path)
    for path in folder.glob("*_optim_states.pt"):
        # DeepSpeed's loss scaler has to be DeepSpeed's; nothing else needs a permission.
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        assert unsafe == ["deepspeed.runtime.fp16.loss_scaler.LossScaler"]
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler]):
            assert "optimizer_state_dict" in torch.load(path)


def test_plain_deepspeed_loads_it_and_goes_on_as_from_its_own(run: Path) -> None:
    for rank in range(2):
        plain, own = load(run / f"plain-{rank}.pt"), load(run / f"own-{rank}.pt")
        # Neither restores the buffer that DeepSpeed does not save, nor the random state.
        assert differences(plain["loaded"], own["loaded"]) == []
        assert differences(plain["losses"], own["losses"]) == []
        assert differences(plain["end"], own["end"]) == []
        saved = load(run / f"uninterrupted-{rank}.pt")["saved"]["sections"]
        for name, tensor in saved.items():
            if name not in ("buffer/unsaved", "buffer/cache", "buffer/late"):
                assert differences(plain["loaded"]["sections"][name], tensor, name) == []


def test_a_trainer_that_lost_its_memory_resumes_bit_for_bit(run: Path) -> None:
    for rank in range(2):
        resumed = load(run / f"castor-{rank}.pt")
        whole = load(run / f"uninterrupted-{rank}.pt")
        assert differences(resumed["loaded"], whole["saved"]) == []
        assert differences(resumed["losses"], whole["losses"][3:]) == []
        assert differences(resumed["end"], whole["end"]) == []
        own = load(run / f"own-{rank}.pt")
        assert differences(own["end"], whole["end"]) != []  # the comparison can fail


def test_zero_to_fp32_gives_the_gathered_parameters(run: Path) -> None:
    ours, theirs = load(run / "fp32-castor.pt"), load(run / "fp32-deepspeed.pt")
    assert differences(dict(ours), dict(theirs)) == []
    full = load(run / "uninterrupted-0.pt")["full"]
    assert set(full) <= set(ours)
    assert torch.equal(ours["head.weight"], ours["embedding.weight"])
    for name, tensor in full.items():
        if tensor.dtype == torch.float32:
            assert differences(tensor, ours[name], name) == []
        else:
            assert torch.equal(tensor, ours[name].to(tensor.dtype))


def read_whole(folder: Path, iteration: int, rank: int, job: str, fingerprint: str) -> None:
    with whole_part(PersistentPart((str(folder),), iteration, rank, job, fingerprint)):
        pass


def test_what_is_not_whole_is_refused_before_an_engine_loads(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(run / "castor", folder)
    key = {"job": "persistent-test", "fingerprint": "5c" * 16}
    manifest = checkpoint_manifest(LocalTier(folder), 3, **key)
    for rank in range(2):
        for record in manifest.files([rank]):
            path = folder / "global_step3" / record.name
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
            with pytest.raises(DamagedError, match=record.name):
                read_whole(folder, 3, rank, **key)
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
    with pytest.raises(DamagedError, match="job 'persistent-test', this is job 'mine'"):
        read_whole(folder, 3, 0, "mine", "5c" * 16)
    with pytest.raises(DamagedError, match="its machines, ranks, model or layout"):
        read_whole(folder, 3, 0, "persistent-test", "5d" * 16)
    with pytest.raises(DamagedError, match="global_step4 has no castor-manifest"):
        read_whole(folder, 4, 0, **key)
    assert complete_iterations(LocalTier(folder)) == (3,)


def test_a_dynamic_loss_scale_is_written_as_deepspeed_keeps_it(runs: Path, tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler  # noqa: PLC0415 - as above

    from castor_runtime.persistent.deepspeed_format import write_rank_files  # noqa: PLC0415
    from castor_runtime.persistent.template import read_template  # noqa: PLC0415
    from castor_runtime.state.meta import decode, encode  # noqa: PLC0415

    # CPUs train without fp16, so the scaler is put into the template of an fp32 run.
    template = read_template(runs / "fp32" / "template-0")
    scaler = DynamicLossScaler(2.0**16, 1000, 1.0, 2, False)
    template["loss_scaler"] = {"class": "DynamicLossScaler", "attributes": dict(vars(scaler))}
    torch.save(template, tmp_path / "template")
    for _ in range(3):
        scaler.update_scale(overflow=False)
    scaler.cur_scale = 2.0**13
    folder = runs / "fp32" / "castor"
    meta = decode((folder / "global_step3" / "castor_rank_0_meta.bin").read_bytes())
    meta["loss_scaler"] = {key: value for key, value in vars(scaler).items() if key != "dtype"}
    tier = LocalTier(folder)
    attempt = checkpoint_manifest(tier, 3, job="persistent-test", fingerprint="5c" * 16).attempt
    sections = load(runs / "fp32" / "uninterrupted-0.pt")["sections"]
    data = memoryview(bytearray(1 << 20))
    into = (LocalTier(tmp_path), ".")
    arguments = (tmp_path / "template", data, sections, encode(meta), *into, attempt)
    receipt = write_rank_files(*arguments, 0)
    found = load(tmp_path / receipt.files[1].name)["optimizer_state_dict"]["loss_scaler"]
    assert type(found) is DynamicLossScaler
    assert vars(found) == vars(scaler)
    assert found.loss_scale == 2.0**13
    # Written already: a process that takes over writes nothing again.
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert write_rank_files(*arguments, 0) == receipt
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="is the template of rank 0 of 2, expected 1 of 2"):
        write_rank_files(*arguments, 1)
    other = Attempt(attempt.job, attempt.fingerprint, 4, attempt.generation, 2)
    with pytest.raises(ValueError, match="snapshot of rank 0 is of iteration 3, expected 4"):
        write_rank_files(*arguments[:-1], other, 0)
    with pytest.raises(ValueError, match=r"no section 'fp32/0', which the template needs"):
        write_rank_files(
            tmp_path / "template",
            data,
            [section for section in sections if section["name"] != "fp32/0"],
            encode(meta),
            LocalTier(tmp_path),
            "other",
            attempt,
            0,
        )
