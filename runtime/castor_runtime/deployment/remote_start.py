"""The shell script that starts a host's agent and follows what it says; sent to `ssh HOST sh`.

The agent is in a session of its own, with a file for what it says, so that neither the end of the
connection nor that of whoever started it reaches it. The same script again finds it alive and
follows it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final

STARTED: Final = "castor-launch started "
"""Begins the line that says that the host could be reached; the number of a process follows."""
FOLLOWED: Final = "castor-launch follows "
"""The same, of one that was alive already."""

_FOLDER: Final = "${XDG_STATE_HOME:-$HOME/.local/state}/castor"

_START = """
set -eu
umask 077
folder={folder}/{job}
mkdir -p "$folder"
log=$folder/launch.log; pid=$folder/launch.pid; code=$folder/launch.code
cd {directory} || {{
  echo "there is no folder {directory} here: make it, or launch from another one"
  exit 2
}}
command -v {castor} > /dev/null || {{
  echo "castor is not at {castor} here: say where by --castor PATH"
  exit 2
}}
if [ -s "$pid" ] && grep -q launch.code "/proc/$(cat "$pid")/cmdline" 2> /dev/null; then
  echo "{followed}$(cat "$pid")"
  from=1
else
  [ -e "$log" ] || : > "$log"
  from=$(($(wc -c < "$log") + 1))
  rm -f "$code"
  {exports}
  setsid sh -c 'trap : TERM; "$@"; echo $? > "$0"' "$code" {command} >> "$log" 2>&1 < /dev/null &
  echo $! > "$pid"
  echo "{started}$!"
fi
tail -c "+$from" -f -s 0.5 --pid="$(cat "$pid")" "$log"
exit "$(cat "$code" 2>/dev/null || echo 137)"
"""

_STOP = """
pid={folder}/{job}/launch.pid
[ -s "$pid" ] && kill -TERM "-$(cat "$pid")"
"""


def start_script(
    job: str,
    castor: PurePath,
    words: Sequence[str],
    directory: PurePath,
    environment: Mapping[str, str],
) -> str:
    """Return the script that starts an agent, or finds it alive, and prints all that it says.

    It exits with the agent's code, or with 137 if the agent was killed.

    Args:
        job: name of the job.
        castor: the program there.
        words: of the line, after `castor run`.
        directory: where it runs, so that paths mean what they mean here.
        environment: what is set besides.
    """
    exports = "; ".join(f"export {name}={shlex.quote(to)}" for name, to in environment.items())
    return _START.format(
        folder=_FOLDER,
        job=shlex.quote(job),
        directory=shlex.quote(str(directory)),
        castor=shlex.quote(str(castor)),
        command=shlex.join([str(castor), "run", *words]),
        exports=exports or ":",
        started=STARTED,
        followed=FOLLOWED,
    )


def stop_script(job: str) -> str:
    """Return the script that ends a host's agent as SIGTERM does."""
    return _STOP.format(folder=_FOLDER, job=shlex.quote(job))
