"""The castor command."""


def main() -> None:
    """Run the command line."""
