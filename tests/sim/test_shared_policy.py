"""Both twins take their decisions from `castor_policy` itself: no copy that could part from it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import castor_sim
from castor_configs import schemes
from castor_policy import in_place, interleaving, membership, period, recovery
from castor_sim import (
    corruption,
    jump_kernel,
    jump_memory,
    jump_trainers,
    memory,
    path,
    simpy_engine,
    trainers,
)

DECISIONS = (
    recovery.choose,
    recovery.assign_sources,
    in_place.goes_on_in_place,
    membership.known_ns,
    membership.detection_ns,
    period.is_due,
    period.last_due,
)
CLOSED_FORMS = (
    path.stalls_ns,
    path.end_of_iteration_ns,
    path.iterations_at,
    path.stalled_ns,
    path.memory_checkpoint_at,
    path.storage_checkpoint_at,
    path.spares_begun_at,
    path.retrieval_ns,
)


def test_both_engines_call_the_very_objects_of_the_policy() -> None:
    for engine in (simpy_engine, jump_kernel):
        assert engine.choose is recovery.choose
        assert engine.known_ns is membership.known_ns
    for holder in (corruption, jump_kernel):
        assert holder.NO_ITERATION is recovery.NO_ITERATION
    for holder in (trainers, jump_trainers):
        assert holder.goes_on_in_place is in_place.goes_on_in_place
    for holder in (memory, jump_memory):
        for state in ("WHOLE", "OWN_ONLY", "NOTHING"):
            assert getattr(holder, state) is getattr(recovery, state)


def test_the_kernel_compiles_those_objects_and_what_it_calls_by_these_names() -> None:
    assert set(jump_kernel.COMPILED_FROM) == {*DECISIONS, *CLOSED_FORMS}
    for function in jump_kernel.COMPILED_FROM:
        # numba resolves a name through the globals of the module that calls it.
        modules = (jump_kernel, jump_trainers, membership, path, recovery)
        callers = [module for module in modules if hasattr(module, function.__name__)]
        assert callers
        assert all(getattr(module, function.__name__) is function for module in callers)


def test_the_schemes_that_both_choose_from_are_the_policys() -> None:
    assert schemes.SCHEMES.built_in is interleaving.SCHEMES


def test_no_module_of_the_simulator_defines_a_decision_again() -> None:
    names = {function.__name__ for function in (*DECISIONS, *CLOSED_FORMS)}
    defined = []
    for file in sorted(Path(castor_sim.__file__).parent.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        defined += [
            (node.name, file.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name in names
        ]
    assert sorted(defined) == sorted((function.__name__, "path.py") for function in CLOSED_FORMS)


# ---- every decision that both twins take ---------------------------------------------------------

ROOT = Path(__file__).parents[2]

Call = tuple[str, str]
"""(what is called, where): names of `castor_policy`, and module:scope."""


@dataclass(frozen=True)
class Decision:
    """Where each twin calls what decides; a call within policy leads on to the one after it."""

    runtime: tuple[Call, ...]
    simulator: tuple[Call, ...]


RUNTIME_AGENTS: tuple[Call, ...] = (
    ("agents.life.AgentLife", "castor_runtime.agent.driver:Agent.__init__"),
    ("agents.root.Root", "castor_policy.agents.life:take_office"),
)
EXPLORED_AGENTS: tuple[Call, ...] = (
    ("agents.life.AgentLife", "castor_sim.explore.agent:SimulatedAgent.__init__"),
)
CHOOSES = (
    ("agents.gathering.decided", "castor_policy.agents.root:Root._choose"),
    ("recovery.plan_recovery", "castor_policy.agents.gathering:decided"),
    ("recovery.newest_safe", "castor_policy.recovery:plan_recovery"),
    ("recovery.choose", "castor_policy.recovery:plan_recovery"),
)

BOTH: dict[str, Decision] = {
    "iteration and tier of a recovery": Decision(
        (*RUNTIME_AGENTS, *CHOOSES),
        (
            ("recovery.choose", "castor_sim.simpy_engine:SimpyEngine._choose"),
            ("recovery.choose", "castor_sim.jump_kernel:_plan"),
        ),
    ),
    "whether all trainers are restarted": Decision(
        (
            *RUNTIME_AGENTS,
            ("in_place.goes_on_in_place", "castor_policy.agents.gathering:decided"),
        ),
        (
            ("in_place.goes_on_in_place", "castor_sim.trainers:Trainers.begin"),
            ("in_place.goes_on_in_place", "castor_sim.jump_trainers:begin_generation"),
        ),
    ),
    "when warm spares are started": Decision(
        (("in_place.SPARES_AFTER", "castor_runtime.agent.warm_spares:WarmSpares.keep"),),
        (
            ("in_place.SPARES_AFTER", "castor_sim.path:spares_begun_at"),
            ("in_place.SPARES_AFTER", "castor_sim.exact_engine:ExactEngine.training"),
        ),
    ),
    "which peer serves whom": Decision(
        (("recovery.assign_sources", "castor_policy.recovery:choose"),),
        (("recovery.assign_sources", "castor_policy.recovery:choose"),),
    ),
    "when a lost machine is known": Decision(
        (
            (
                "agents.lease_keeping.LeaseKeeper",
                "castor_runtime.agent.session:StoreSession.__init__",
            ),
            ("membership.Lease", "castor_policy.agents.lease_keeping:LeaseKeeper.answered"),
            ("membership.WatchLimits", "castor_policy.job_options:JobOptions"),
        ),
        (
            ("membership.Lease", "castor_sim.detection:DetectionConfig.heartbeats"),
            ("membership.check_lease", "castor_sim.detection:DetectionConfig._no_false_alarm"),
            ("membership.known_ns", "castor_sim.simpy_engine:SimpyEngine._strike"),
            ("membership.known_ns", "castor_sim.jump_kernel:advance"),
            ("membership.Lease", "castor_analysis.compare.recovery_model:RecoveryModel.predict"),
            ("membership.Lease", "castor_analysis.compare.ettr_model:predict_ettr"),
        ),
    ),
    "when a process is known to have failed": Decision(
        (
            ("trainer_watch.TrainerWatch", "castor_runtime.agent.watchdog:Watchdog._look"),
            ("membership.LIMITS", "castor_policy.job_options:JobOptions"),
        ),
        (
            ("membership.EXIT_S", "castor_sim.detection:DetectionConfig.watched"),
            ("agents.job_spec.JobSpec", "castor_sim.explore.world:Shape.spec"),
        ),
    ),
    "where replicas go": Decision(
        (("placement.place", "castor_runtime.launcher.train_options:_placed"),),
        (
            ("placement.place", "castor_sim.setup:_placement"),
            ("placement.place", "castor_sim.setup:Setup.placement"),
            ("placement.place", "castor_sim.explore.world:Shape.spec"),
        ),
    ),
    "which iterations are checkpointed": Decision(
        (
            ("period.is_due", "castor_runtime.trainer.session:TrainerSession.step"),
            ("period.next_due", "castor_policy.agents.persist_rounds:PersistRounds.due"),
        ),
        (
            ("period.is_due", "castor_sim.exact_engine:ExactEngine.training"),
            ("period.last_due", "castor_sim.path:memory_checkpoint_at"),
            ("period.last_due", "castor_sim.path:storage_checkpoint_at"),
            ("period.is_due", "castor_sim.explore.group:SimulatedGroup._is_taken"),
        ),
    ),
    "when each chunk travels": Decision(
        (("interleaving.SCHEMES", "castor_runtime.trainer.traffic:Traffic.schedule"),),
        (("interleaving.SCHEMES", "castor_sim.iteration.run:schedule_of"),),
    ),
    "how many chunks a scheme lets be received at once": Decision(
        (
            (
                "in_flight.chunks_in_flight",
                "castor_runtime.trainer.traffic:Traffic.pieces_in_flight",
            ),
        ),
        (("in_flight.chunks_in_flight", "castor_sim.iteration.run:_sending"),),
    ),
    "which buffer may be written, and what is offered": Decision(
        (
            ("checkpoint_memory.buffer_to_write", "castor_runtime.arena.replica:Replica.begin"),
            ("checkpoint_memory.offered", "castor_runtime.arena.replica:Replica.offered"),
            ("checkpoint_memory.is_of_run", "castor_runtime.arena.replica:Replica.open"),
        ),
        (
            (
                "checkpoint_memory.buffer_to_write",
                "castor_sim.explore.checkpoint_model:Replica.begin",
            ),
            ("checkpoint_memory.offered", "castor_sim.explore.checkpoint_model:Replica.offered"),
            ("checkpoint_memory.is_of_run", "castor_sim.explore.earlier_run:take_up"),
        ),
    ),
    "what the agents do": Decision(
        (
            *RUNTIME_AGENTS,
            ("agents.worker.Worker", "castor_policy.agents.life:AgentLife.__init__"),
        ),
        (
            *EXPLORED_AGENTS,
            ("agents.worker.Worker", "castor_policy.agents.life:AgentLife.__init__"),
        ),
    ),
    "what an agent sees in the store, and writes there": Decision(
        (
            ("agents.store_view.StoreView", "castor_runtime.agent.session:StoreSession.__init__"),
            ("agents.store_writes", "castor_runtime.agent.session:StoreSession.write_as_root"),
            ("agents.store_writes", "castor_runtime.agent.session:StoreSession.campaign"),
        ),
        (
            ("agents.store_view.StoreView", "castor_sim.explore.session:Session.__init__"),
            ("agents.store_writes", "castor_sim.explore.agent:SimulatedAgent._write_as_root"),
            ("agents.store_writes", "castor_sim.explore.session:Session.campaign"),
        ),
    ),
    "who may have an agent's name, and keep its lease": Decision(
        (
            ("agents.own_report.NameClaim", "castor_runtime.agent.session:StoreSession.__init__"),
            (
                "agents.lease_keeping.LeaseKeeper",
                "castor_runtime.agent.session:StoreSession.__init__",
            ),
        ),
        (
            ("agents.own_report.NameClaim", "castor_sim.explore.session:Session.__init__"),
            ("agents.lease_keeping.LeaseKeeper", "castor_sim.explore.session:Session.__init__"),
        ),
    ),
}


@cache
def _tree(module: str) -> ast.Module:
    room = module.partition(".")[0].removeprefix("castor_")
    return ast.parse((ROOT / room / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def _scope(tree: ast.Module, names: str) -> ast.AST:
    scope: ast.AST = tree
    for name in names.split("."):
        scope = next(
            node
            for node in ast.iter_child_nodes(scope)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and node.name == name
        )
    return scope


def _imported(module: str, tree: ast.Module) -> dict[str, str]:
    """What each name of a module stands for, where it is of policy and nothing hides it."""
    names = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "castor_configs.schemes":
            names["SCHEMES"] = "castor_policy.interleaving.SCHEMES"  # and those from outside
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("castor_policy"):
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = f"{module}.{node.name}"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {ast.unparse(target): f"{module}.{ast.unparse(target)}" for target in targets}
    return names


def uses(call: Call) -> bool:
    """Whether the place refers to that very object of policy."""
    what, (module, scope) = f"castor_policy.{call[0]}", call[1].split(":")
    tree = _tree(module)
    names = _imported(module, tree)
    return any(
        _meant(node, names) == what
        for node in ast.walk(_scope(tree, scope))
        if isinstance(node, ast.Name | ast.Attribute)
    )


def _meant(node: ast.Name | ast.Attribute, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    first, dot, rest = ast.unparse(node).partition(".")
    return names.get(first, "") + dot + rest


@pytest.mark.parametrize("decision", BOTH)
@pytest.mark.parametrize("twin", ["runtime", "simulator"])
def test_each_twin_calls_what_policy_decides_with(decision: str, twin: str) -> None:
    calls: tuple[Call, ...] = getattr(BOTH[decision], twin)
    assert calls
    assert [call for call in calls if not uses(call)] == []


def test_a_twin_that_calls_another_function_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    call = ("period.is_due", "castor_runtime.trainer.session:TrainerSession.step")
    assert uses(call)
    session = (ROOT / "runtime/castor_runtime/trainer/session.py").read_text(encoding="utf-8")
    for broken in (
        session.replace("if is_due(", "if self._is_due("),
        session.replace("castor_policy.period import is_due", "castor_runtime.own import is_due"),
        session + "\ndef is_due(iteration, every): return True\n",
    ):
        assert broken != session
        monkeypatch.setitem(globals(), "_tree", lambda _module, text=broken: ast.parse(text))
        assert not uses(call)
