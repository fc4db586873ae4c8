"""Simulated against measured: real runs, predicted from as few of them as possible."""
