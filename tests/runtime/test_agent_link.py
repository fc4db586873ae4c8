"""A trainer's end of the link to its agent, over a real socket: what it does in which order."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from castor_runtime.trainer.agent_link import AgentLink, AgentLostError
from castor_runtime.trainer.swap.errors import LostRankError

PATIENCE_S = 30.0


class Agent:
    """The agent's end."""

    def __init__(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            self.link = AgentLink(path, 1)
            self._end, _ = listener.accept()

    def say(self, op: str, **body: object) -> None:
        self._end.sendall(json.dumps({"op": op, **body}).encode() + b"\n")

    def close(self) -> None:
        self._end.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(str(tmp_path / "agent.sock"))
    yield made
    made.close()
    made.link.close()


def waiting(call: Callable[[], Any]) -> Future[Any]:
    """Call it in a thread; return its end."""
    end: Future[Any] = Future()

    def run() -> None:
        try:
            end.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where it is asked for
            end.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return end


def test_whoever_waits_is_told_that_the_generation_is_over(agent: Agent) -> None:
    link = agent.link
    over: list[tuple[int, bool]] = []
    link.on_leave(lambda generation: over.append((generation, link.is_over)))
    waits = [waiting(call) for call in (link.load_order, link.wait_redundant, link.wait_for_end)]
    assert not link.wait_over(0.01)
    agent.say("leave", generation=1)
    for one in waits:
        with pytest.raises(LostRankError, match="generation 1 is over"):
            one.result(PATIENCE_S)
    # Connections have ended by the time at which anybody is told.
    assert over == [(1, False)]
    assert link.is_over
    assert link.wait_over(0)


def test_an_order_of_the_generation_before_is_not_taken_in_the_next(agent: Agent) -> None:
    link = agent.link
    agent.say("redundant")
    agent.say("load", iteration=5)
    agent.say("leave", generation=1)
    assert link.wait_over(PATIENCE_S)
    with pytest.raises(LostRankError):  # though there is one
        link.load_order()
    assert link.is_redundant
    agent.say("join", generation=3, rendezvous="there")
    assert waiting(link.join_order).result(PATIENCE_S)["rendezvous"] == "there"
    assert (link.is_over, link.is_redundant) == (False, False)
    load = waiting(link.load_order)
    agent.say("leave", generation=2)  # of one that it was never in
    agent.say("load", iteration=6)
    assert load.result(PATIENCE_S)["iteration"] == 6
    assert not link.is_over


def test_a_generation_may_be_over_before_it_is_joined(agent: Agent) -> None:
    link = agent.link
    for message in ("leave", 1), ("join", 2), ("leave", 2), ("join", 3):
        agent.say(message[0], generation=message[1])
    assert waiting(link.join_order).result(PATIENCE_S)["generation"] == 2
    assert link.wait_over(PATIENCE_S)
    with pytest.raises(LostRankError, match="generation 2 is over"):
        link.load_order()
    assert waiting(link.join_order).result(PATIENCE_S)["generation"] == 3
    assert not link.is_over


def test_an_agent_that_is_gone_is_told_from_a_generation_that_is_over(agent: Agent) -> None:
    waits = [waiting(agent.link.join_order), waiting(lambda: agent.link.wait_over(PATIENCE_S))]
    agent.close()
    for one in waits:
        with pytest.raises(AgentLostError, match="it closed the link"):
            one.result(PATIENCE_S)
