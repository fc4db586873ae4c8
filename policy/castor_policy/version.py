"""The version of the one distribution that holds every room."""

__version__ = "0.1.0"
