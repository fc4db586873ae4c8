"""What every configuration model shares: the base class and the plain checked types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ConfigModel(BaseModel):
    """A frozen table of a TOML file: an unknown key is an error, a docstring describes its key."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
    )


# Strict, because a lax integer takes true for 1 and "4" for 4.
Count = Annotated[int, Field(strict=True, ge=1)]
"""A whole number from 1."""

CountOrZero = Annotated[int, Field(strict=True, ge=0)]
"""A whole number from 0."""

Flag = Annotated[bool, Field(strict=True)]
"""true or false."""

Name = Annotated[str, Field(min_length=1, max_length=100)]
"""A text that is not empty."""
