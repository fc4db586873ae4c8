"""Faults of a run on this machine: what a person writes, when each is due, and how it is done."""
