"""What training meets when a rank is lost."""


class LostRankError(Exception):
    """A collective will never end, because the generation of groups that it belongs to is over.

    No RuntimeError: a script that catches those goes on as if nothing had happened.
    """


class CannotSwapError(Exception):
    """This process cannot go on in place; says why. Restart it instead."""
