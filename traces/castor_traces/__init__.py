"""Failure traces: the format, importers of public data sets, generators, statistics."""
