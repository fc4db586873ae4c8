"""docs/experiments.md has every key of an experiment; run as a program, this file writes it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from castor_sim.experiment import Experiment
from castor_sim.strategies import BUILT_IN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "experiments.md"

HEAD = """# Keys of an experiment

What `castor simulate`, `sweep` and `iterate` read ([the guide](simulate.md)). Times, sizes,
bandwidths and rates are written [with units](../configs/README.md); an unknown key is an error.
This page is made from the models that check the keys: `python tests/sim/test_experiment_keys.py`.
"""


def page() -> str:
    """Return the page."""
    strategies = dict(sorted(BUILT_IN.items()))
    parts = [HEAD, *tables("", Experiment)]
    parts += [section(f"[strategies.{name}]", kind) for name, kind in strategies.items()]
    return "\n".join(parts)


def tables(name: str, model: type[BaseModel]) -> Iterator[str]:
    """Yield a section for a table, and one for each table within it."""
    yield section(f"[{name}]" if name else "At the top", model)
    for key, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            yield from tables(f"{name}.{key}" if name else key, inner)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the model of a key that is a table; a table of tables is told of elsewhere."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    choices = get_args(annotation)
    if type(None) in choices:
        return [model for choice in choices for model in models_in(choice)]
    return []


def section(title: str, model: type[BaseModel]) -> str:
    """Return a table's keys with defaults and meaning."""
    what = (model.__doc__ or "").split("\n\n")[0]
    rows = [
        f"| `{key}` | {default(field)} | {one_line(field.description or '')} |"
        for key, field in model.model_fields.items()
        if key != "kind" and not models_in(field.annotation)
    ]
    head = ["", "| key | default | |", "| --- | --- | --- |", *rows] if rows else []
    return "\n".join([f"## {title}", "", one_line(what), *head, ""])


def default(field: FieldInfo) -> str:
    """Return a key's default as it would be written."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == "":
        return ""
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return f"`{json.dumps(TypeAdapter(kind).dump_python(value, mode='json'))}`"


def one_line(text: str) -> str:
    """Return a text as a cell of a table has it."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def test_the_page_has_every_key_as_the_models_have_it() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(), "run: python tests/sim/test_experiment_keys.py"
    for key in ("placement_domains", "network_idle", "misses", "standbys", "persist_every"):
        assert f"| `{key}` |" in written


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
