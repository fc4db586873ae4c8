"""The trainer's pieces: meta, sections, optimizer state, traffic, idle spans, programs."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from castor_configs.model import Model
from castor_lab.programs.language_model import IGNORED, build_language_model
from castor_lab.programs.text import MASK, TextSampler, masked_batch, read_text
from castor_policy.chunk_schedule import Link
from castor_policy.defaults import SUB_BUFFERS
from castor_policy.interleaving import EAGER, SCHEMES
from castor_policy.job_options import TrafficOptions
from castor_runtime.state.meta import MetaError, decode, encode
from castor_runtime.state.sections import (
    ALIGNMENT,
    WholeSections,
    copy_section,
    fingerprint,
    lay_out,
    part_bytes,
    sections_digest,
)
from castor_runtime.trainer.agent_link import TrainerSettings
from castor_runtime.trainer.idle_spans import Gate, IdleSpans
from castor_runtime.trainer.optimizer_state import OptimizerState
from castor_runtime.trainer.random_state import capture_random_state, restore_random_state
from castor_runtime.trainer.span_profile import (
    CollectiveTimes,
    IterationTimeline,
    Profiler,
    fold_spans,
    typical_iteration,
)
from castor_runtime.trainer.tensor_state import TensorState
from castor_runtime.trainer.traffic import Traffic

pytestmark = pytest.mark.long  # together, not one by one

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=70),
)
keys = st.one_of(st.text(max_size=6), st.sampled_from(["$tuple", "$bytes", "$x"]))
trees = st.recursive(
    scalars,
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(keys, children, max_size=4),
        st.dictionaries(st.one_of(st.integers(), st.booleans()), children, max_size=3),
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@given(st.dictionaries(keys, trees, max_size=5))
def test_meta_comes_back_equal_with_its_types(tree: dict[str, Any]) -> None:
    assert same(decode(encode(tree)), tree)


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**32 - 1))
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 2, shape, generator=generator).to(dtype)
    found = decode(encode({"t": tensor, "again": [tensor.T if tensor.dim() == 2 else tensor]}))
    assert found["t"].dtype == dtype
    assert found["t"].shape == tensor.shape
    assert torch.equal(found["t"], tensor)
    if tensor.dim() == 2:
        assert torch.equal(found["again"][0], tensor.T)


def test_meta_keeps_arrays_counters_dtypes_and_nan() -> None:
    array = np.array([[1.5, np.nan]], dtype=np.float32)
    tree = {
        "a": array,
        "s": np.float64(2.5),
        "u": np.uint32(7),
        "c": Counter({3: 2}),
        "d": torch.bfloat16,
        "n": float("nan"),
        "i": float("-inf"),
    }
    found = decode(encode(tree))
    assert found["a"].tobytes() == array.tobytes()
    assert found["a"].shape == (1, 2)
    assert type(found["s"]) is np.float64
    assert type(found["u"]) is np.uint32
    assert found["c"] == Counter({3: 2})
    assert isinstance(found["c"], Counter)
    assert found["d"] is torch.bfloat16
    assert np.isnan(found["n"])
    assert found["i"] == float("-inf")


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: None, Path("x"), np.array(["x"])])
def test_meta_names_what_it_cannot_keep(value: object) -> None:
    with pytest.raises(MetaError, match=r"state at \.user\.sampler\[1\]\.odd is a "):
        encode({"user": {"sampler": [0, {"odd": value}]}})


@given(st.integers(0, 400), st.booleans())
def test_cut_or_foreign_meta_is_refused(cut: int, foreign: bool) -> None:
    whole = encode({"blob": b"x" * 300, "t": torch.ones(3)})
    damaged = b"not meta" + whole[8:] if foreign else whole[: min(cut, len(whole) - 70)]
    with pytest.raises(MetaError):
        decode(damaged)


@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=2)), max_size=8
    )
)
def test_sections_do_not_overlap_and_hold_their_tensors(
    wanted: list[tuple[torch.dtype, list[int]]],
) -> None:
    sections = lay_out([(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(wanted)])
    part = torch.zeros(part_bytes(sections), dtype=torch.uint8)
    tensors = [torch.full(shape, i % 2, dtype=dtype) for i, (dtype, shape) in enumerate(wanted)]
    for section, tensor in zip(sections, tensors, strict=True):
        assert section.offset % ALIGNMENT == 0
        copy_section(section, part, tensor)
    for section, tensor in zip(sections, tensors, strict=True):
        assert torch.equal(section.view(part), tensor)
    for section in sections:
        copy_section(section, part, None)
    assert not part.any()


def test_the_fingerprint_sees_layout_and_topology() -> None:
    one = lay_out([("a", torch.float32, (3,)), ("b", torch.float32, (3,))])
    others = [
        lay_out([("b", torch.float32, (3,)), ("a", torch.float32, (3,))]),
        lay_out([("a", torch.float32, (3,)), ("b", torch.int32, (3,))]),
        lay_out([("a", torch.float32, (3,)), ("b", torch.float32, (4,))]),
    ]
    assert len({sections_digest(sections) for sections in (one, *others)}) == 4
    digest, rows = sections_digest(one), [[0, 1], [1, 0]]
    marks = {
        fingerprint([digest, digest], 1, rows),
        fingerprint([digest, digest], 2, rows),
        fingerprint([digest, digest], 1, [[0], [1]]),
        fingerprint([digest, sections_digest(others[0])], 1, rows),
    }
    assert len(marks) == 4
    with pytest.raises(ValueError, match="two tensors are called 'a'"):
        lay_out([("a", torch.float32, (3,)), ("a", torch.float32, (3,))])


OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any], set[str]]] = [
    (torch.optim.AdamW, {}, {"exp_avg", "exp_avg_sq"}),
    (torch.optim.Adam, {"amsgrad": True}, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {"momentum_buffer"}),
    (torch.optim.SGD, {"lr": 0.1}, set()),
    (torch.optim.RMSprop, {}, {"square_avg"}),
    (torch.optim.Adagrad, {}, {"sum"}),
]


@pytest.mark.parametrize(("kind", "options", "names"), OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_an_optimizer_goes_on_in_a_fresh_one(
    kind: type[torch.optim.Optimizer], options: dict[str, Any], names: set[str], steps: int
) -> None:
    def make() -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
        torch.manual_seed(1)
        parameters = [torch.randn(5, 3, requires_grad=True), torch.randn(4, requires_grad=True)]
        groups = [{"params": [parameter]} for parameter in parameters]
        return parameters, kind(groups, **options)  # type: ignore[call-arg]  # each takes groups

    def train(parameters: list[torch.Tensor], optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            for parameter in parameters:
                parameter.grad = torch.sin(parameter.detach())
            optimizer.step()

    parameters, optimizer = make()
    untouched = [dict(group) | {"params": None} for group in optimizer.param_groups]
    state = OptimizerState(optimizer, parameters, [0, 1])
    assert [dict(group) | {"params": None} for group in optimizer.param_groups] == untouched
    assert {name.split("/")[0] for name, _, _ in state.tensors()} == names
    train(parameters, optimizer, steps)
    optimizer.param_groups[1]["lr"] = 0.0123
    small = decode(encode(state.small()))
    tensors = [
        torch.zeros(shape, dtype=dtype) if live is None else live.clone()
        for live, (_, dtype, shape) in zip(state.live(), state.tensors(), strict=True)
    ]
    fresh_parameters, fresh = make()
    held = WholeSections(dict(zip([name for name, _, _ in state.tensors()], tensors, strict=True)))
    OptimizerState(fresh, fresh_parameters, [0, 1]).restore(small, held)
    for source, target in zip(parameters, fresh_parameters, strict=True):
        target.data.copy_(source.data)
    train(parameters, optimizer, 2)
    train(fresh_parameters, fresh, 2)
    assert all(map(torch.equal, parameters, fresh_parameters))
    assert fresh.param_groups[1]["lr"] == 0.0123


class Moody(torch.optim.Optimizer):
    """Makes, changes and drops its tensors as it goes."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, _: Any = None) -> None:  # type: ignore[override]  # torch's has overloads
        for parameter in (p for group in self.param_groups for p in group["params"]):
            state = self.state[parameter]
            number = state["number"] = state.get("number", 0) + 1
            if number % 3 == 1:
                state["first"] = parameter.grad.clone()
            elif number % 3 == 2:
                state["second"] = state["first"].double() * number
                state["first"] = state["first"][:2].clone()
            else:
                del state["first"]
            moved = sum(value.double().sum() for key, value in state.items() if key != "number")
            parameter.add_(moved, alpha=-0.01)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_an_optimizer_may_make_change_and_drop_its_tensors(steps: int) -> None:
    def make() -> tuple[torch.Tensor, Moody]:
        parameter = torch.arange(1.0, 6.0, requires_grad=True)
        return parameter, Moody([parameter])

    def train(parameter: torch.Tensor, optimizer: Moody, n: int) -> None:
        for _ in range(n):
            parameter.grad = torch.sin(parameter.detach())
            optimizer.step()

    parameter, optimizer = make()
    state = OptimizerState(optimizer, [parameter], [0])
    assert [name for name, _, _ in state.tensors()] == ["first/0"]
    train(parameter, optimizer, steps)
    small = decode(encode(state.small()))
    tensors = [torch.zeros(5) if live is None else live.clone() for live in state.live()]
    fresh_parameter, fresh = make()
    held = WholeSections(dict(zip([name for name, _, _ in state.tensors()], tensors, strict=True)))
    OptimizerState(fresh, [fresh_parameter], [0]).restore(small, held)
    fresh_parameter.data.copy_(parameter.data)
    assert set(fresh.state[fresh_parameter]) == set(optimizer.state[parameter])
    train(parameter, optimizer, 4)
    train(fresh_parameter, fresh, 4)
    assert torch.equal(parameter, fresh_parameter)


def test_laying_out_does_not_count_as_a_step() -> None:
    parameter = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([parameter])
    seen: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(1))
    OptimizerState(optimizer, [parameter], [0])
    assert seen == []
    assert not optimizer.state


def test_random_state_comes_back() -> None:
    before = decode(encode(capture_random_state()))
    drawn = (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist())  # noqa: NPY002
    restore_random_state(before)
    assert drawn == (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist())  # noqa: NPY002


def test_tensor_state_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="at least one tensor"):
        TensorState({})
    with pytest.raises(ValueError, match="'t' is not contiguous"):
        TensorState({"t": torch.zeros(3, 4).T})


@settings(max_examples=200)
@given(
    scheme=st.sampled_from([EAGER, *SCHEMES]),
    part=st.integers(1, 5000),
    copies=st.integers(0, 3),
    chunk=st.integers(1, 700),
    spans=st.lists(st.integers(0, 10**6), max_size=6),
    bandwidth=st.integers(10**5, 10**10),
)
def test_pieces_cover_every_replica_once_in_byte_order(
    scheme: str, part: int, copies: int, chunk: int, spans: list[int], bandwidth: int
) -> None:
    link = None if scheme == EAGER else Link(100, bandwidth)
    pieces = Traffic(scheme, chunk, copies, tuple(spans), link).pieces(part)
    for replica in range(copies):
        mine = [piece for piece in pieces if piece.replica == replica]
        ends = [0, *(piece.end for piece in mine)]
        assert [piece.start for piece in mine] == ends[:-1]
        assert ends[-1] == part
        assert all(piece.start < piece.end for piece in mine)
    assert len({piece.replica for piece in pieces}) == copies
    assert [piece.span for piece in pieces] == sorted(piece.span for piece in pieces)
    if scheme not in ("naive", "unpipelined"):
        assert all(piece.end - piece.start <= chunk for piece in pieces)
    if scheme == "unpipelined":
        assert all(piece.end - piece.start <= chunk * SUB_BUFFERS for piece in pieces)
    assert max((piece.span for piece in pieces), default=0) <= max(0, len(spans) - 1)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ValueError, match="no scheme 'lazy': choose one of eager, blocking"):
        Traffic("lazy", 1, 1)


class Backend:
    """Stands where DeepSpeed's backend object does."""

    def all_reduce(self, value: int, async_op: bool = False) -> Any:
        return Handle(value) if async_op else None


class Handle:
    def __init__(self, value: int) -> None:
        self.value = value

    def wait(self) -> int:
        return self.value


def test_idle_spans_lie_between_the_collectives() -> None:
    gate = Gate()
    spans = IdleSpans(gate)
    backend = Backend()
    spans.install(backend)
    spans.end_iteration()
    gate.close()
    backend.all_reduce(1)
    gate.wait(1)
    handle = backend.all_reduce(5, async_op=True)
    other = backend.all_reduce(6, async_op=True)
    assert handle.wait() == 5
    assert handle.value == 5
    assert not gate.has_begun(2), "one is still under way"
    other.wait()
    gate.wait(3)
    spans.before_update()
    backend.all_reduce(8)
    found, use = spans.end_iteration()
    assert len(found.spans_ns) == 4, "what the update sends is none of them"
    assert all(span >= 0 for span in found.spans_ns)
    assert found.spans_ns[2] == 0, "two at once"
    first, second, third = found.collectives
    assert first.issued_ns == first.waited_ns < first.resumed_ns == first.ended_ns
    assert second.issued_ns < third.issued_ns < second.waited_ns < second.ended_ns
    assert second.ended_ns <= second.resumed_ns < third.waited_ns
    assert found.before_update_ns + found.update_ns == found.iteration_ns
    assert use.idle_ns + use.train_busy_ns == found.iteration_ns
    late = backend.all_reduce(7, async_op=True)
    spans.end_iteration()
    gate.close()
    late.wait()
    assert not gate.has_begun(1), "a handle of the iteration before releases nothing"
    spans.remove()
    backend.all_reduce(1)
    assert not spans.end_iteration()[0].collectives, "nobody watches any more"


def test_a_wait_for_a_checkpoint_is_no_part_of_the_timeline() -> None:
    spans = IdleSpans(Gate())
    spans.end_iteration()
    time.sleep(0.03)
    spans.waited(30_000_000)
    time.sleep(0.01)
    spans.before_update()
    time.sleep(0.03)
    spans.waited(30_000_000)
    found, use = spans.end_iteration()
    assert found.before_update_ns == found.spans_ns[0]
    assert found.iteration_ns - found.before_update_ns - found.update_ns == 30_000_000
    assert use.idle_ns == found.iteration_ns + 30_000_000


def test_traffic_of_both_kinds_is_told_from_idle_time() -> None:
    spans, backend = IdleSpans(Gate()), Backend()
    spans.install(backend)
    spans.end_iteration()
    spans.transfer_began()
    time.sleep(0.02)
    handle = backend.all_reduce(5, async_op=True)
    time.sleep(0.02)
    spans.transfer_ended()
    handle.wait()
    found, use = spans.end_iteration()
    assert use.train_busy_ns >= 20_000_000
    assert use.idle_ns <= found.iteration_ns - 40_000_000
    spans.remove()


def timeline(*times: tuple[int, int], size: int = 8, update: int = 10) -> IterationTimeline:
    collectives = (CollectiveTimes("all_gather", size, a, a, b, b) for a, b in times)
    return IterationTimeline(tuple(collectives), 100, 100 + update, update)


def test_a_profile_is_the_median_of_those_that_are_alike() -> None:
    strange = timeline((5, 6), (7, 8))
    three = [timeline((10, 20)), timeline((12, 30), update=40), timeline((11, 90))]
    profile = typical_iteration([strange, *three])
    assert profile.spans_ns == (11, 70)
    assert (profile.iterations, profile.timeline.update_ns) == (3, 10)
    assert profile.timeline.collectives == (CollectiveTimes("all_gather", 8, 11, 11, 30, 30),)
    totals = [90, 82, 21]
    mean = sum(totals) / 3
    assert profile.deviation == pytest.approx(
        (sum((total - mean) ** 2 for total in totals) / 3) ** 0.5 / mean
    )
    assert typical_iteration([*three, timeline((1, 2), size=9)]).iterations == 1
    with pytest.raises(ValueError, match="no iteration was measured"):
        typical_iteration([])


def test_spans_lie_after_whatever_is_still_under_way() -> None:
    overlapping = timeline((10, 50), (20, 30), (60, 70))
    assert overlapping.spans_ns == (10, 0, 10, 30)
    assert fold_spans((1, 2, 3, 4), 2) == (1, 9)
    assert fold_spans((1, 2), 2) == (1, 2)


def test_a_profile_is_due_at_the_start_and_when_all_ranks_have_drifted() -> None:
    second = 10**9
    profiler = Profiler(3)
    for _ in range(3):
        profiler.add(timeline((second, 2 * second)))
        assert profiler.due(drift=False) is None
        assert not profiler.has_drifted()
    profiler.add(timeline((second, 2 * second)))
    profile, reason = profiler.due(drift=False) or (None, "")
    assert profile is not None
    assert (profile.spans_ns[0], reason) == (second, "start")
    for _ in range(5):
        profiler.add(timeline((second, 2 * second)))
        assert not profiler.has_drifted()
    seen = []
    for _ in range(3):
        profiler.add(timeline((3 * second, 4 * second)))
        seen.append(profiler.has_drifted())
    assert seen == [False, True, True], "half of the window has moved"
    assert profiler.due(drift=False) is None
    profile, reason = profiler.due(drift=True) or (None, "")
    assert reason == "drift"
    assert profile is not None
    assert profile.spans_ns[0] == 3 * second
    assert not profiler.has_drifted(), "a new window begins"


def test_settings_say_who_sends_to_whom() -> None:
    given = TrainerSettings(
        job="j",
        run="0123456789abcdef",
        rank=3,
        machine=1,
        local_rank=1,
        generation=1,
        ranks_per_machine=2,
        replicas=((0, 1, 2), (1, 2, 0), (2, 0, 1)),
        socket="s",
        control="c",
        started_ns=0,
        traffic=TrafficOptions(mu=0.7),
    )
    text = given.to_json()
    found = TrainerSettings.from_environment({"CASTOR_TRAINER": text})
    assert found is not None
    assert found == given
    assert found.holders() == [5, 1]
    assert found.sources() == [(1, 0), (5, 1)]
    assert TrainerSettings.from_environment({}) is None
    for lost in ("socket", "mu"):
        wrong = text.replace(f'"{lost}"', '"other"')
        with pytest.raises(ValueError, match="start trainers by `castor agent`"):
            TrainerSettings.from_environment({"CASTOR_TRAINER": wrong})


def shape(family: str, **sizes: int) -> Model:
    given_sizes = {
        "hidden": 16,
        "intermediate": 24,
        "layers": 2,
        "heads": 2,
        "vocab": 300,
        "sequence_length": 12,
        "micro_batch": 2,
    }
    return Model.model_validate({"name": family, "family": family} | given_sizes | sizes)


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_model_has_the_parameters_that_the_configuration_counts(family: str, layers: int) -> None:
    wanted = shape(family, layers=layers)
    model = build_language_model(wanted)
    assert sum(p.numel() for p in model.parameters()) == wanted.shape_parameters


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta"])
def test_a_model_learns(family: str) -> None:
    torch.manual_seed(0)
    model = build_language_model(shape(family), dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    tokens = torch.arange(48).view(4, 12) % 7
    losses = []
    for _ in range(30):
        torch.manual_seed(4)
        loss = model(tokens if family == "gpt2" else masked_batch(tokens))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(p.grad is not None for p in model.parameters())


def test_gpt2_does_not_see_what_follows() -> None:
    torch.manual_seed(0)
    model = build_language_model(shape("gpt2"), dropout=0.0)
    tokens = torch.randint(0, 256, (1, 12))
    embedded: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda _m, _i, output: embedded.append(output))
    model(tokens)
    changed = tokens.clone()
    changed[0, 8] += 1
    model(changed)
    assert torch.equal(embedded[0][0, :8], embedded[1][0, :8])
    assert not torch.equal(embedded[0][0, 8:], embedded[1][0, 8:])


def test_a_family_that_cannot_be_trained_is_named() -> None:
    with pytest.raises(ValueError, match="'llama' cannot be trained here"):
        build_language_model(shape("llama"))


def test_masked_batches_hide_tokens_and_mix_pairs() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 256, (64, 20))
    shown, labels, segments, follows = masked_batch(tokens)
    hidden = labels != IGNORED
    assert torch.equal(shown[~hidden], torch.where(hidden, 0, shown)[~hidden])
    assert (shown[hidden] == MASK).all()
    assert 0.1 < hidden[:, 1:].float().mean() < 0.2
    whole = torch.where(hidden, labels, shown)
    for row in range(64):
        source = row if follows[row] else (row + 1) % 64
        assert torch.equal(whole[row, :10], tokens[row, :10])
        assert torch.equal(whole[row, 10:], tokens[source, 10:])
    assert segments[0].tolist() == [0] * 10 + [1] * 10


@given(
    world=st.integers(1, 4), batch=st.integers(1, 3), seed=st.integers(0, 50), at=st.integers(0, 40)
)
@settings(max_examples=40)
def test_ranks_share_an_epoch_and_a_sampler_goes_on_where_it_was(
    world: int, batch: int, seed: int, at: int
) -> None:
    tokens = torch.arange(200, dtype=torch.int64)
    samplers = [
        TextSampler(tokens, sequence=5, batch=batch, rank=rank, world=world, seed=seed)
        for rank in range(world)
    ]
    rounds = 40 // (world * batch)
    epoch = torch.cat([s.next_batch() for _ in range(rounds) for s in samplers])
    assert len(epoch.unique()) == epoch.numel() == rounds * world * batch * 5
    for _ in range(at):
        samplers[0].next_batch()
    other = TextSampler(tokens, sequence=5, batch=batch, rank=0, world=world, seed=seed + 1)
    other.load_state_dict(decode(encode(samplers[0].state_dict())))
    for _ in range(50):
        assert torch.equal(samplers[0].next_batch(), other.next_batch())


def test_texts_are_read_and_too_short_ones_refused(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"\x00\xff" * 10)
    assert read_text(file).tolist() == [0, 255] * 10
    with pytest.raises(ValueError, match="4 windows of 5 tokens, and 3 ranks take 2 each"):
        TextSampler(read_text(file), sequence=5, batch=2, rank=0, world=3)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        read_text(file)
