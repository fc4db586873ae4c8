"""One group whose connections are replaced: ranks are threads here, connections are real."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, ProcessGroup, Work

from castor_runtime.trainer.swap.errors import CannotSwapError, LostRankError
from castor_runtime.trainer.swap.gloo_inside import GlooInside
from castor_runtime.trainer.swap.replaceable_group import HeldWork, ReplaceableGroup

SIZE = 2
LONG = timedelta(seconds=3600)


def make(rank: int) -> ReplaceableGroup:
    return ReplaceableGroup("all", range(SIZE), rank, LONG, GlooInside)


@pytest.fixture
def store() -> HashStore:
    return HashStore()


@pytest.fixture
def both() -> Iterator[Callable[..., list[Any]]]:
    """Do something with each of the groups, at once, and return what came of it."""
    with ThreadPoolExecutor(SIZE) as pool:

        def do(
            what: Callable[[ReplaceableGroup], Any], groups: list[ReplaceableGroup]
        ) -> list[Any]:
            return [one.result(60) for one in [pool.submit(what, group) for group in groups]]

        yield do


@pytest.fixture
def groups(store: HashStore, both: Callable[..., list[Any]]) -> Iterator[list[ReplaceableGroup]]:
    """Those of all ranks, in generation 1."""
    made = [make(rank) for rank in range(SIZE)]
    both(lambda group: group.connect(store, 1, group.rank()), made)
    yield made
    for group in made:
        group.end(99)
        group.let_go()


def test_ranks_that_meet_in_a_file_wait_for_one_that_is_late(
    tmp_path: Path, both: Callable[..., list[Any]]
) -> None:
    """A file's store says of a wait that was too short that it failed, as no other store does."""
    path = str(tmp_path / "meeting")
    patience = timedelta(seconds=30)
    made = [ReplaceableGroup("all", range(SIZE), r, patience, GlooInside) for r in range(SIZE)]

    def meet(group: ReplaceableGroup) -> float:
        time.sleep(2.5 * group.rank())
        file = dist.FileStore(path, SIZE)
        file.set_timeout(patience)
        group.connect(file, 1, group.rank())
        return summed(group)

    assert both(meet, made) == [3.0, 3.0]
    for group in made:
        group.end(1)
        group.let_go()


def summed(group: ReplaceableGroup) -> float:
    tensor = torch.tensor([group.rank() + 1.0])
    group.allreduce([tensor]).wait()
    return float(tensor)


def given() -> torch.Tensor:
    return torch.arange(4.0)


def all_reduced(group: ReplaceableGroup, operation: Any = dist.ReduceOp.SUM) -> Any:
    options = dist.AllreduceOptions()
    options.reduceOp = operation
    tensors = [given()]
    group.allreduce(tensors, options).wait()
    return tensors


def gathered(group: ReplaceableGroup) -> Any:
    outputs = [[torch.zeros(4) for _ in range(SIZE)]]
    group.allgather(outputs, [given()]).wait()
    return outputs


def gathered_flat(group: ReplaceableGroup) -> Any:
    output = torch.zeros(4 * SIZE)
    group._allgather_base(output, given()).wait()
    again = torch.zeros(4 * SIZE)
    group.all_gather_single(again, given()).wait()
    return output, again


def gathered_several(group: ReplaceableGroup) -> Any:
    outputs = [torch.zeros(4 * SIZE), torch.zeros(4 * SIZE)]
    group.allgather_into_tensor_coalesced(outputs, [given(), 2 * given()]).wait()
    return outputs


def scattered(group: ReplaceableGroup) -> Any:
    output = torch.zeros(2)
    group.reduce_scatter([output], [[torch.ones(2), torch.ones(2)]]).wait()
    flat = torch.zeros(2)
    group._reduce_scatter_base(flat, torch.ones(4), dist.ReduceScatterOptions()).wait()
    return output, flat


def exchanged(group: ReplaceableGroup) -> Any:
    output = torch.zeros(4)
    group.alltoall_base(output, torch.full((4,), 3.0), [], []).wait()
    return output


def broadcasted(group: ReplaceableGroup) -> Any:
    tensors = [given()]
    group.broadcast(tensors, dist.BroadcastOptions()).wait()
    group.barrier().wait()
    return tensors


DONE = {
    "sum": all_reduced,
    "product": lambda group: all_reduced(group, dist.ReduceOp.PRODUCT),
    "most": lambda group: all_reduced(group, dist.ReduceOp.MAX),
    "allgather": gathered,
    "flat allgather": gathered_flat,
    "several allgathers": gathered_several,
    "reduce_scatter": scattered,
    "alltoall": exchanged,
    "broadcast": broadcasted,
}


@pytest.mark.parametrize("what", DONE)
def test_alone_it_comes_to_what_equal_ranks_come_to(
    what: str, groups: list[ReplaceableGroup], both: Callable[..., list[Any]]
) -> None:
    connected = both(DONE[what], groups)[0]
    alone = DONE[what](make(0))
    for got, expected in zip(flat(alone), flat(connected), strict=True):
        assert torch.equal(got, expected)


def flat(nested: Any) -> list[torch.Tensor]:
    if isinstance(nested, torch.Tensor):
        return [nested]
    return [tensor for one in nested for tensor in flat(one)]


def test_alone_a_handle_is_done_and_point_to_point_is_refused() -> None:
    group = make(0)
    work = group.allreduce([given()])
    assert work.is_completed()
    assert work.get_future().wait()
    with pytest.raises(CannotSwapError, match="recv asks another rank"):
        group.recv([given()], 1, 0)


def test_whatever_torch_may_call_is_passed_on_or_refused() -> None:
    of_the_object = {"_id", "_backend_id", "_set_default_backend", "boxed", "unbox"}
    names = {
        "get_group_store",
        "bound_device_id",
        "use_pg_for_symm_mem_rendezvous",
    }
    called = {name for name in vars(ProcessGroup) if not name.startswith("__")}
    called -= {name for name in called if isinstance(vars(ProcessGroup)[name], type)}
    called -= {"_pybind11_conduit_v1_", "UNDEFINED", "GLOO", "NCCL", "XCCL", "UCC", "MPI", "CUSTOM"}
    assert called - set(vars(ReplaceableGroup)) == of_the_object | names
    assert {name for name in vars(Work) if not name.startswith("__")} - set(vars(HeldWork)) == {
        "_pybind11_conduit_v1_",
        "boxed",
        "unbox",
    }


def test_it_is_connected_anew_and_an_old_handle_is_never_done(
    groups: list[ReplaceableGroup], store: HashStore, both: Callable[..., list[Any]]
) -> None:
    assert both(summed, groups) == [3.0, 3.0]
    old = both(lambda group: group.allreduce([given()]), groups)
    for work in old:
        work.wait()
    for group in groups:
        group.end(1)
    with pytest.raises(LostRankError):
        summed(groups[0])
    with pytest.raises(LostRankError):
        old[0].wait()
    both(lambda group: group.connect(store, 2, group.rank()), groups)
    assert both(summed, groups) == [3.0, 3.0]
    for ask in (old[0].wait, old[0].is_completed, old[0].get_future):
        with pytest.raises(LostRankError):
            ask()


def test_no_older_generation_is_connected_and_a_late_end_ends_no_newer_one(
    groups: list[ReplaceableGroup], store: HashStore, both: Callable[..., list[Any]]
) -> None:
    both(lambda group: group.connect(store, 3, group.rank()), groups)
    for older in (2, 3):
        with pytest.raises(ValueError, match="was in generation 3"):
            groups[0].connect(store, older, 0)
    groups[0].end(2)
    assert both(summed, groups) == [3.0, 3.0]
    groups[0].end(5)
    with pytest.raises(LostRankError, match="generation 4 has ended"):
        groups[0].connect(store, 4, 0)


def ended_while(waits: Callable[[], Any], group: ReplaceableGroup, generation: int) -> str:
    """End a generation while that waits for another rank; return what it raised."""
    raised: list[str] = []

    def wait() -> None:
        try:
            waits()
        except LostRankError as error:
            raised.append(str(error))

    # A daemon: nothing else gets out of a wait in C++ that does not end.
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    group.end(generation)
    waiting.join(60)
    return raised[0]


def test_a_wait_for_a_rank_that_stands_still_ends(groups: list[ReplaceableGroup]) -> None:
    tensor = torch.zeros(1 << 16)
    work = groups[0].allreduce([tensor])
    assert "was ended" in ended_while(work.wait, groups[0], 1)


def test_a_rank_that_does_not_come_holds_up_no_end(store: HashStore) -> None:
    group = make(0)
    assert ended_while(lambda: group.connect(store, 1, 0), group, 1)
    with pytest.raises(LostRankError):
        summed(group)


def test_a_spare_is_not_ended_before_it_has_others(
    groups: list[ReplaceableGroup], store: HashStore, both: Callable[..., list[Any]]
) -> None:
    spare = make(0)
    for group in (groups[0], spare):
        group.end(1)
    summed(spare)
    both(lambda group: group.connect(store, 2, 1 if group is spare else 0), [groups[0], spare])
    assert spare.rank() == 1
    assert both(summed, [groups[0], spare]) == [3.0, 3.0]
    spare.end(2)


def test_an_error_of_the_caller_stays_what_it_is(groups: list[ReplaceableGroup]) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = 7
    with pytest.raises((ValueError, RuntimeError), match="root"):
        groups[0].broadcast([given()], options)
