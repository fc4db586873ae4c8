"""Training programs that Castor ships: language models of the configured shapes, on text."""
