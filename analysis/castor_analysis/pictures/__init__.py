"""A run and an iteration, drawn and traced."""
