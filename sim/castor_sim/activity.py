"""What a simulated job is doing, and how long it has done each."""

from __future__ import annotations

from enum import IntEnum

from castor_sim.tally import Tally


class Activity(IntEnum):
    """What the job is doing; each has a bucket of its own."""

    TRAINING = 0
    DETECTION = 1
    SERIALISATION = 2
    REPLACEMENT_WAIT = 3
    RETRIEVAL = 4
    WARM_UP = 5


class TimeSpent:
    """The activity that goes on, and the time of each so far, in ns.

    Attributes:
        activity: since `enter` was called last.
    """

    def __init__(self) -> None:
        self.activity = Activity.TRAINING
        self._since_ns = 0
        self._total_ns = [0] * len(Activity)

    def enter(self, activity: Activity, now_ns: int) -> None:
        """End the activity that goes on, and begin another, or the same anew."""
        self._total_ns[self.activity] += now_ns - self._since_ns
        self.activity = activity
        self._since_ns = now_ns

    def book(self, tally: Tally) -> None:
        """Write the totals into a tally whose useful time and stalls are known."""
        total = self._total_ns
        trained_ns = total[Activity.TRAINING] - tally.slow_ns - tally.checkpoint_stall_ns
        tally.lost_progress_ns = trained_ns - tally.useful_ns
        tally.detection_ns = total[Activity.DETECTION]
        tally.serialisation_ns = total[Activity.SERIALISATION]
        tally.replacement_wait_ns = total[Activity.REPLACEMENT_WAIT]
        tally.retrieval_ns = total[Activity.RETRIEVAL]
        tally.warm_up_ns = total[Activity.WARM_UP]
