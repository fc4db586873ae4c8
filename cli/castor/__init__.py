"""The castor command."""
