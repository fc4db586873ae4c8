"""Whole runs of `castor train` under faults, seen from outside: for tests and `make soak`."""
