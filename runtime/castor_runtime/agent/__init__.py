"""The agent: one process a machine, which owns checkpoint memory and drives the shared protocol."""
