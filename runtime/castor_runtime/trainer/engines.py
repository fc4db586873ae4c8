"""Which adapter reads which engine's state; one from outside is registered likewise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from castor_runtime.state.protocol import State
from castor_runtime.trainer.deepspeed_state import DeepSpeedState

Adapter = Callable[[Any], State]
"""Makes the state of an engine; raises ValueError where that cannot be checkpointed."""

_ADAPTERS: dict[str, Adapter] = {"deepspeed.runtime.engine.DeepSpeedEngine": DeepSpeedState}
"""By the type's name, so that no engine need be imported that is not used."""


def register(engine_type: str, adapter: Adapter) -> None:
    """Have `state_of` use an adapter for engines of a type, and of types derived from it.

    Args:
        engine_type: "module.Class", by name, so that nothing need be imported for it.
        adapter: see `Adapter`.

    Raises:
        ValueError: there is another one for that type.
    """
    if _ADAPTERS.setdefault(engine_type, adapter) is not adapter:
        raise ValueError(f"{engine_type} has an adapter already")


def state_of(engine: Any) -> State:
    """Return an engine's state, by its type.

    Raises:
        ValueError: no adapter stands for it, or the state cannot be checkpointed.
    """
    if isinstance(engine, State):
        return engine
    for base in type(engine).__mro__:
        adapter = _ADAPTERS.get(f"{base.__module__}.{base.__qualname__}")
        if adapter is not None:
            return adapter(engine)
    raise ValueError(
        f"Checkpointer cannot read the state of a {type(engine).__module__}."
        f"{type(engine).__qualname__}; it knows {', '.join(sorted(_ADAPTERS))} and "
        "castor.TensorState. An adapter for another engine is registered by "
        "castor_runtime.trainer.engines.register"
    )
