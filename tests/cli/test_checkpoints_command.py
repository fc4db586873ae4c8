"""`castor checkpoints`: what lies in a tier, whether it is whole, and what is never replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from castor.app import app
from castor_configs.errors import InputError
from castor_runtime.persistent.local_tier import LocalTier
from castor_runtime.persistent.manifest import Attempt, Receipt, write_receipt
from castor_runtime.persistent.object_tier import ObjectTier
from castor_runtime.persistent.storage import files_folder, publish_if_complete, start_attempt
from castor_runtime.persistent.tier import Tier


def write(tier: Tier, iteration: int, ranks: int = 1) -> Attempt:
    """Write rank 0's share; with one rank, that is a checkpoint."""
    attempt = Attempt("gpt2", "0f" * 16, iteration, 2, ranks, run="ab" * 8)
    staging = start_attempt(tier, attempt)
    assert staging is not None
    with tier.writing(f"{staging}/part") as file:
        file.write(bytes(1500))
    write_receipt(tier, staging, Receipt(attempt, 0, (file.record("part"),)))
    publish_if_complete(tier, attempt)
    return attempt


def castor(*words: str) -> Result:
    result = CliRunner().invoke(app, ["checkpoints", *words])
    if isinstance(result.exception, InputError):
        raise result.exception
    return result


@pytest.mark.parametrize("kind", ["local", "object"])
def test_all_that_is_there_is_listed_with_its_condition(kind: str, tmp_path: Path) -> None:
    tier: Tier = LocalTier(tmp_path)
    if kind == "object":
        from castor_runtime.persistent.listing import listed  # noqa: PLC0415

        tier = ObjectTier(f"file://{tmp_path}", "file", {"auto_mkdir": True})
    for iteration in (100, 200):
        write(tier, iteration)
    write(tier, 300, ranks=2)
    (tmp_path / files_folder(tier, write(tier, 400)) / "part").unlink()
    (tmp_path / "global_step500").mkdir()
    if kind == "object":
        found = [(one.iteration, one.condition, one.job) for one in listed(tier)]
    else:
        told = json.loads(castor("list", str(tmp_path), "--json").stdout)
        found = [(one["iteration"], one["condition"], one["job"]) for one in told]
    assert found == [
        (100, "complete", "gpt2"),
        (200, "complete", "gpt2"),
        (300, "unfinished", "gpt2"),
        (400, "damaged", "gpt2"),
        (500, "not Castor's", ""),
    ]


def test_the_table_fits_and_says_why(tmp_path: Path) -> None:
    write(LocalTier(tmp_path), 100)
    write(LocalTier(tmp_path), 300, ranks=2)
    shown = castor("list", str(tmp_path)).stdout
    assert "complete" in shown
    assert "machines are still writing it, or did not come to its end" in shown
    assert "abababab " in shown
    assert castor("list", str(tmp_path / ".castor")).stdout.startswith("there are no checkpoints")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for iteration in (100, 200):
        write(LocalTier(tmp_path), iteration)
    well = castor("verify", str(tmp_path))
    assert well.exit_code == 0
    assert well.stdout.splitlines() == [f"iteration {i}: 1.5 kB, as written" for i in (100, 200)]
    damaged = tmp_path / "global_step200" / "part"
    damaged.write_bytes(bytes(1499) + b"\1")
    told = castor("verify", str(tmp_path))
    assert told.exit_code == 1
    assert f"iteration 200: {damaged} is not as it was written" in told.output
    assert castor("verify", str(tmp_path), "--iteration", "100").exit_code == 0
    told = castor("verify", str(tmp_path), "--iteration", "200", "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout)[0]["faults"] == [f"{damaged} is not as it was written"]
    damaged.unlink()
    assert castor("verify", str(tmp_path)).exit_code == 1


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    write(LocalTier(store), 100)
    out.mkdir()
    (out / "latest").write_text("mine")
    with pytest.raises(InputError, match="latest is there already: give another folder"):
        castor("export", str(store), "--out", str(out))
    (out / "model.safetensors").write_text("mine")
    with pytest.raises(InputError, match=r"model\.safetensors is there already"):
        castor("export", str(store), "--format", "safetensors", "--out", str(out))
    assert sorted(path.name for path in out.iterdir()) == ["latest", "model.safetensors"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("list", "nowhere"), "there is no folder nowhere"),
        (("list", "memory://x"), "is no object store"),
        (("verify", ".", "--iteration", "7"), "there is no checkpoint global_step7"),
        (("export", ".", "--out", "x"), r"there is no complete checkpoint in \."),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(
    words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=told):
        castor(*words)
