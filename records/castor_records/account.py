"""What one agent tells of its job: small, whole, and the same from a live agent or after the end.

An agent gives it to whoever asks and knows the secret, and leaves it in the store when it ends, so
that what happened is known when no agent is there any more. It holds what recoveries, result and
event lines are made from (`History`), not every iteration; the whole log stays on the agent's host,
and the account says where.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from castor_records.clocks import Log
from castor_records.events.event import Entry, Event
from castor_records.events.line import parse_line

TEXT_BYTES: Final = 64 << 10
"""An account is no longer: etcd takes values of 1.5 MiB, and a job may have a thousand agents."""

_READ_BYTES: Final = 16 << 20
"""So much is unpacked at most: whoever writes into the store can write anything."""

_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What an agent tells.

    Attributes:
        agent: its name.
        run: which run of the job.
        host: its machine's name.
        folder: where its logs lie there.
        entries: what happened, by its own clock.
        left_out: how many older entries there was no room for.
        final: what it says of the final state, `final.json`; None: it has not come to one.
    """

    agent: str
    run: str
    host: str = ""
    folder: str = ""
    entries: Sequence[Entry[Event]] = ()
    left_out: int = 0
    final: Mapping[str, Any] | None = None

    @property
    def log(self) -> Log:
        """Its entries, to be put in order with those of others."""
        return Log(self.agent, self.entries)

    def to_text(self) -> str:
        """Return it as it travels and as the store has it; where it is too long, its newest."""
        account = self
        while len(text := account._packed()) > TEXT_BYTES and account.entries:
            fewer = max(1, len(account.entries) // 4)
            account = replace(
                account,
                entries=account.entries[fewer:],
                left_out=account.left_out + fewer,
            )
        return text

    def _packed(self) -> str:
        document = {
            "schema": _SCHEMA,
            "agent": self.agent,
            "run": self.run,
            "host": self.host,
            "folder": self.folder,
            "left_out": self.left_out,
            "final": self.final,
        }
        lines = [json.dumps(document), *(entry.to_line() for entry in self.entries)]
        return base64.b64encode(zlib.compress("\n".join(lines).encode())).decode("ascii")

    @classmethod
    def of_text(cls, text: str) -> Account:
        """Read it; events of kinds that this version does not know are left out.

        Raises:
            ValueError: it is none, or of another version.
        """
        try:
            unpacking = zlib.decompressobj()
            packed = base64.b64decode(text, validate=True)
            head, *lines = unpacking.decompress(packed, _READ_BYTES).decode("utf-8").split("\n")
            document = json.loads(head)
            if document["schema"] != _SCHEMA:
                raise ValueError(f"an account of schema {document['schema']!r}")
            entries = [parse_line(line) for line in lines]
            return cls(
                agent=str(document["agent"]),
                run=str(document["run"]),
                host=str(document["host"]),
                folder=str(document["folder"]),
                entries=tuple(entry for entry in entries if entry is not None),
                left_out=int(document["left_out"]),
                final=document["final"],
            )
        except (KeyError, TypeError, zlib.error, binascii.Error) as error:
            raise ValueError(f"no account of an agent: {error!r}") from error
