"""The engines take their decisions from `castor_policy` itself: no copy that could part from it."""

from __future__ import annotations

import ast
from pathlib import Path

import castor_sim
from castor_policy import membership, recovery
from castor_sim import detection, jump_kernel, path, simpy_engine

DECISIONS = (recovery.assign_sources, membership.detection_ns)
OF_THE_SIMULATOR = (detection.known_ns,)
CLOSED_FORMS = (
    path.stalls_ns,
    path.end_of_iteration_ns,
    path.iterations_at,
    path.stalled_ns,
    path.memory_checkpoint_at,
    path.storage_checkpoint_at,
)


def test_both_engines_call_the_very_objects_of_the_policy() -> None:
    for engine in (simpy_engine, jump_kernel):
        assert engine.assign_sources is recovery.assign_sources
        assert engine.known_ns is detection.known_ns
        for state in ("WHOLE", "OWN_ONLY", "NOTHING"):
            assert getattr(engine, state) is getattr(recovery, state)
    assert detection.detection_ns is membership.detection_ns


def test_the_kernel_compiles_those_objects_and_what_it_calls_by_these_names() -> None:
    assert set(jump_kernel.COMPILED_FROM) == {*DECISIONS, *OF_THE_SIMULATOR, *CLOSED_FORMS}
    for function in jump_kernel.COMPILED_FROM:
        # numba resolves a name through the globals of the module that calls it.
        callers = [m for m in (jump_kernel, detection, path) if hasattr(m, function.__name__)]
        assert callers
        assert all(getattr(module, function.__name__) is function for module in callers)


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
