"""Load a TOML file as a checked model; report every fault at once, each with its place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from castor_configs.document import Document, apply_overrides, read_document
from castor_configs.dump import dump_toml
from castor_configs.faults import joined, validation_faults
from castor_configs.find import available_configs, find_config

__all__ = ["available_configs", "dump_toml", "find_config", "load_toml"]

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_toml(
    path: str | Path,
    model_class: type[ModelT],
    *,
    overrides: Sequence[str] = (),
    base: Mapping[str, object] | None = None,
) -> ModelT:
    """Return the configuration in `path`, checked against `model_class`.

    Layers, each over the one before: `base`, the files that the file `extends`, the file itself,
    `overrides`. Tables merge key by key; a list replaces a list.

    Args:
        path: a TOML file; `extends = "other.toml"` at its top names one to lay it over.
        model_class: a model of one's own, or of this package; `ConfigModel` refuses unknown keys.
        overrides: `key.sub=value`, as `--set` takes them. In a list of tables, the entry's index
            or its `name` is a step: `strategies.gemini.every=2`.
        base: nested tables of defaults.

    Raises:
        InputError: the file cannot be read, or something in it is wrong. One error tells all the
            faults: for each the file, the line, the dotted key, and what was expected.
    """
    document = Document(copy.deepcopy(dict(base)) if base else {})
    document.overlay(read_document(path))
    faults = apply_overrides(document, overrides)
    try:
        model = model_class.model_validate(document.data)
    except ValidationError as error:
        faults += validation_faults(error, document, model_class, file=path)
    else:
        if not faults:
            return model
    raise joined(faults)
