"""What can happen in a run: a dataclass for each kind of event, pure, standard library only."""
