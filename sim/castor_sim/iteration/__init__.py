"""One training iteration, operation by operation, with its checkpoint traffic in between."""
