"""Summaries, comparisons, advice and pictures of runs."""
