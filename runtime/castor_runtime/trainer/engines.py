"""Which adapter reads which engine's state: Castor's own, and those from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from castor_configs.plugins import Registry
from castor_runtime.state.protocol import State
from castor_runtime.trainer.deepspeed_state import DeepSpeedState

Adapter = Callable[[Any], State]
"""Makes the state of an engine; raises ValueError where that cannot be checkpointed."""

ENGINES: Final[Registry[Adapter]] = Registry(
    "engines",
    {"deepspeed.runtime.engine.DeepSpeedEngine": DeepSpeedState},
    callable,
    "class or function from an engine to a castor_runtime.state.protocol.State",
)
"""By the name of the engine's type, so that none need be imported that is not used; an adapter
stands for the types derived from its own, too."""


def state_of(engine: Any) -> State:
    """Return an engine's state, by its type.

    Raises:
        ValueError: no adapter stands for it, or the state cannot be checkpointed.
        InputError: its adapter is a plugin's that cannot be used.
    """
    if isinstance(engine, State):
        return engine
    for base in type(engine).__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name in ENGINES:
            return ENGINES[name](engine)
    raise ValueError(
        f"Checkpointer cannot read the state of a {type(engine).__module__}."
        f"{type(engine).__qualname__}; it knows {', '.join(sorted(ENGINES))} and "
        "castor.TensorState. An adapter for another engine is one file and one line: see "
        "CONTRIBUTING.md, An engine"
    )
