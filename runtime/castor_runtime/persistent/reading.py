"""A rank's part of a persistent checkpoint, where DeepSpeed can read it, and known to be whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from xxhash import xxh3_128_digest

from castor_runtime.persistent.address import tier_at
from castor_runtime.persistent.manifest import (
    Attempt,
    DamagedCheckpointError,
    ForeignStorageError,
    Manifest,
)
from castor_runtime.persistent.storage import checkpoint_manifest, files_folder, tag
from castor_runtime.persistent.tier import FilesDamagedError, Tier
from castor_runtime.state.protocol import DamagedError, PersistentPart


@contextmanager
def whole_part(part: PersistentPart) -> Iterator[Path]:
    """Yield a folder with the rank's files of the checkpoint, read and compared with the manifest.

    From the first tier that has them whole. Collective where there are several.

    Raises:
        DamagedError: no tier has them whole; says of each why not.
        OSError: a tier that may have them cannot be read, and no other has them.
    """
    faults: list[Exception] = []
    found: list[tuple[Tier, Manifest]] = []
    for url in part.tiers:
        tier = tier_at(url)
        try:
            manifest = checkpoint_manifest(tier, part.iteration, part.job, part.fingerprint)
        except (DamagedCheckpointError, ForeignStorageError, OSError) as error:
            faults.append(error)
        else:
            found.append((tier, manifest))
    if len(part.tiers) > 1:
        names = list(dict.fromkeys(_name(manifest.attempt) for _, manifest in found))
        agreed = part.agree(names)
        found = [one for one in found if _name(one[1].attempt) == agreed]
    with ExitStack() as stack:
        yield _first_whole(stack, part, found, faults)


def _first_whole(
    stack: ExitStack,
    part: PersistentPart,
    found: list[tuple[Tier, Manifest]],
    faults: list[Exception],
) -> Path:
    for tier, manifest in found:
        folder = files_folder(tier, manifest.attempt)
        whole = tier.whole(folder, manifest.files([part.rank]), tag(part.iteration), part.pacer)
        try:
            return stack.enter_context(whole)
        except (FilesDamagedError, OSError) as error:
            told = f"{tier.at(tag(part.iteration))}: {error}"
            sys.stderr.write(f"persistent storage: {told}\n")
            faults.append(error if isinstance(error, OSError) else DamagedCheckpointError(told))
    unread = next((one for one in faults if isinstance(one, OSError)), None)
    if unread is not None:
        raise unread
    told = "; ".join(map(str, faults)) or "the ranks can read no writing of it that is the same"
    raise DamagedError(told)


def _name(attempt: Attempt) -> bytes:
    return xxh3_128_digest(json.dumps(asdict(attempt), sort_keys=True).encode())
