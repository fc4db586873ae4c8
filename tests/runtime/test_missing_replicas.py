"""When a trainer may write replicas that its agent may still be fetching."""

from __future__ import annotations

import pytest

from castor_policy.job_options import DEGRADED, WAIT
from castor_runtime.trainer.missing_replicas import MissingReplicas


class Agent:
    """Fetches until it is waited for."""

    def __init__(self) -> None:
        self.is_redundant = False
        self.waited = 0

    def wait_redundant(self) -> None:
        self.waited += 1
        self.is_redundant = True


@pytest.mark.parametrize(("redundancy", "loaded"), [(WAIT, 5), (DEGRADED, None)])
def test_the_first_checkpoint_waits_and_is_the_only_one_that_does(
    redundancy: str, loaded: int | None
) -> None:
    agent = Agent()
    missing = MissingReplicas(redundancy, loaded, agent)
    assert [missing.wait(loaded), missing.wait(6), missing.wait(7)] == [False, False, False]
    assert agent.waited == 1


def test_degraded_only_what_was_loaded_may_be_fetched_meanwhile() -> None:
    agent = Agent()
    missing = MissingReplicas(DEGRADED, 5, agent)
    # The second one as well: the first was left out.
    assert [missing.wait(5), missing.wait(5)] == [True, True]
    assert agent.waited == 0
    assert not missing.wait(6)
    assert agent.waited == 1


def test_degraded_nothing_is_waited_for_that_is_there() -> None:
    agent = Agent()
    agent.is_redundant = True
    assert not MissingReplicas(DEGRADED, 5, agent).wait(5)
