"""A job as a person gives it: a script alone, or a job file, and what `--set` and options change.

    script = "gpt2_tiny.py"
    arguments = ["--iterations", "30"]
    nodes = 4
    [traffic]
    mu = 0.8
    chunk = "16MiB"

A path in a file is taken from the file's folder; on a command line, from the current one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model

from castor_configs.document import Document, apply_overrides, read_document
from castor_configs.dump import table_toml
from castor_configs.errors import InputError
from castor_configs.faults import joined, validation_faults
from castor_configs.job import GROUPS, JOB_FILE, TABLES, Flag, Job, LaunchOptions, options_by_key
from castor_configs.option_tables import fields_of, options_from, table_of
from castor_configs.schema import ConfigModel
from castor_configs.toml_lines import KeyPath
from castor_configs.written_options import written_table
from castor_policy.option import OptionError, Unit, flag_of, key_of, options_of

_FIELDS: dict[str, Any] = {
    "script": (str, ...),
    "arguments": (list[str], Field(default_factory=list)),
    **fields_of(LaunchOptions),
}
for _name, _group in GROUPS.items():
    _table = table_of(_group)
    _FIELDS[_name] = (_table, Field(default_factory=_table))
_FILE = create_model("JobFile", __base__=ConfigModel, **_FIELDS)

_FLAGS = {key: flag_of(name, one) for key, _, name, one in options_by_key()}


class GivenJob:
    """What was given of a job, with the place of each value. Options lie over `--set`, over a file.

    Args:
        target: a job file, known by its ".toml", or a script: a job of it alone.
        changes: `key.sub=value`, as `--set` takes them.
        flags: the command line's options.
        arguments: of the script, after those that the file has.

    Raises:
        InputError: the file cannot be read, or is no TOML.
    """

    def __init__(
        self,
        target: Path,
        changes: Sequence[str] = (),
        flags: Sequence[Flag] = (),
        arguments: Sequence[str] = (),
    ) -> None:
        self._origin = target
        self._arguments = arguments
        is_file = target.suffix == JOB_FILE
        self._document = read_document(target) if is_file else Document({"script": str(target)})
        self._faults = apply_overrides(self._document, changes)
        self._flags = {one.flag for one in flags}
        for one in flags:
            self._document.set([str(step) for step in one.key], one.value, file=one.flag)

    def checked(self) -> Job:
        """Return the job.

        Raises:
            InputError: one error for all the faults, each with its file and line and dotted key,
                or with the option.
        """
        try:
            model = _FILE.model_validate(self._document.data)
        except ValidationError as error:
            found = validation_faults(error, self._document, _FILE, file=self._origin)
            raise joined([self._told(one) for one in self._faults + found]) from None
        if self._faults:
            raise joined(self._faults)
        return self._made(model)

    def fault(self, error: OptionError) -> InputError:
        """Return the error of a dotted key as a person meets it: with the place of its value."""
        key = tuple(error.option.split("."))
        place = self._document.place_of(key)
        if place is None and self._origin.suffix != JOB_FILE:
            return InputError(error.message, key=_FLAGS.get(key, error.option))
        return self._told(
            InputError(
                error.message,
                file=place.file if place else self._origin,
                line=place.line if place else None,
                key=error.option,
            )
        )

    def _made(self, model: Any) -> Job:
        groups: dict[str, Any] = {}
        faults = []
        for table, group in TABLES.items():
            try:
                groups[table] = options_from(group, getattr(model, table) if table else model)
            except OptionError as error:
                key = key_of(error.option, options_of(group)[error.option])
                faults.append(self.fault(OptionError(_dotted(table, key), error.message)))
        if faults:
            raise joined(faults)
        for path, _, name, one in options_by_key():
            holder = path[0] if len(path) > 1 else ""
            if one.unit == Unit.PATH and (written := getattr(groups[holder], name)):
                at = partial(self._path, path)
                placed = tuple(map(at, written)) if one.several else at(written)
                groups[holder] = replace(groups[holder], **{name: placed})
        try:
            return Job(
                script=self._path(("script",), model.script),
                arguments=(*model.arguments, *self._arguments),
                launch=groups.pop(""),
                **groups,
            )
        except OptionError as error:
            raise self.fault(error) from None

    def _path(self, key: KeyPath, written: str) -> str:
        if "://" in written:
            return written
        place = self._document.place_of(key)
        in_file = place is not None and place.line is not None
        return str((Path(place.file if in_file and place else ".").parent / written).resolve())

    def _told(self, fault: InputError) -> InputError:
        """Return an option's fault by the option alone: who gave no file has no dotted keys."""
        return InputError(fault.message, key=fault.file) if fault.file in self._flags else fault


def _dotted(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key


def job_toml(job: Job) -> str:
    """Return a job as a job file, with all that it leaves at the default, to be run again."""
    launch = written_table(job.launch)
    if not job.launch.job:
        del launch["job"]  # each run has a name of its own
    groups = {name: written_table(getattr(job, name)) for name in GROUPS}
    return table_toml({"script": job.script, "arguments": [*job.arguments], **launch, **groups})
