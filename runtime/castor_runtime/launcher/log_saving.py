"""Copies the logs of a job's agents into a folder: FOLDER/AGENT/LOG, whole as they are now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from castor_configs.atomic import output_files, replacing
from castor_runtime.agent.own_account import is_served
from castor_runtime.arena.layout import check_name
from castor_runtime.launcher.accounts import AT_ONCE
from castor_runtime.launcher.log_reading import Reader
from castor_runtime.transport import Listing, PartMissingError, PeerError


@dataclass(frozen=True, slots=True)
class Saved:
    """What was copied.

    Attributes:
        files: of each agent that was reached, the files.
        unreached: agents that could not be asked, or not to the end, and why.
    """

    files: Mapping[str, tuple[Path, ...]]
    unreached: Mapping[str, str]


def save_logs(
    readers: Mapping[str, Reader], folder: Path, wanted: Callable[[str], bool], *, overwrite: bool
) -> Saved:
    """Copy logs, many agents' at once; nothing is written unless all may be.

    Args:
        readers: of the agents, by name; they are closed.
        folder: where they go; it is made.
        wanted: says of a log, by its name, whether it is to be copied.
        overwrite: replace what Castor did not write.

    Raises:
        InputError: a file is there that Castor did not write, or the folder cannot be written.
        OSError: there is no room for them.
        ValueError: an agent has a name that none can have.
    """
    for name in readers:
        check_name("agent", name)  # it is to be a folder's name, and comes from the store
    unreached: dict[str, str] = {}

    def ask(name: str) -> Listing | None:
        try:
            return readers[name].listing()
        except PeerError as error:
            unreached[name] = str(error)
            return None

    def copy(name: str) -> tuple[Path, ...]:
        found = []
        for file, size_bytes in zip(files[name], sizes[name].values(), strict=True):
            try:
                _copy(readers[name], file, size_bytes)
            except PartMissingError:
                continue  # put away meanwhile
            except PeerError as error:
                unreached[name] = str(error)
                break
            found.append(file)
        return tuple(found)

    try:
        with ThreadPoolExecutor(AT_ONCE, "castor-logs") as pool:
            names = sorted(readers)
            listings = zip(names, pool.map(ask, names), strict=True)
            sizes = {
                name: {
                    log: size
                    for log, size in sorted(listing.files.items())
                    if is_served(log) and wanted(log)
                }
                for name, listing in listings
                if listing is not None
            }
            files = {
                name: output_files(folder / name, logs, overwrite=overwrite)
                for name, logs in sizes.items()
            }
            return Saved(dict(zip(files, pool.map(copy, files), strict=True)), unreached)
    finally:
        for reader in readers.values():
            reader.close()


def _copy(reader: Reader, file: Path, size_bytes: int) -> None:
    """Copy a log as far as it went when it was listed: it may grow for as long as it is read."""
    with replacing(file) as beside, beside.open("wb") as out:
        while (offset := out.tell()) < size_bytes:
            _, piece = reader.read(file.name, offset)
            if not piece:
                return
            out.write(piece[: size_bytes - offset])
