"""A shell's lines that run an agent, and tell it what the shell is told by signals."""

from __future__ import annotations

from collections.abc import Mapping

_LINES = """\
agent= told= early=
tell() {{
  told=yes
  # Told before it knows its agent: that is told then.
  if [ -z "$agent" ]; then early=$1; return; fi
  for _ in $(seq "$1"); do kill -TERM "$agent" 2> /dev/null; sleep 1; done
}}
{traps}
{command} &
agent=$!
[ -z "$early" ] || tell "$early"
while kill -0 "$agent" 2> /dev/null; do
  wait "$agent"  # a signal ends it before its time, with a code of its own
done
wait "$agent"; code=$?
agent=  # its number may be another's soon: nobody is told any more
"""


def told_agent(command: str, times: Mapping[str, int]) -> str:
    """Return lines of bash that end with the agent, whose code is in $code then.

    $told is "yes" if the shell was sent one of the signals, else empty. No moment is without its
    traps: the agent is started after them.

    Args:
        command: of the agent, as the shell reads it.
        times: how often it is sent SIGTERM for each signal of the shell's. One may drain it; a
            second ends it at once.
    """
    traps = "\n".join(f"trap 'tell {number}' {name}" for name, number in times.items())
    return _LINES.format(command=command, traps=traps)
