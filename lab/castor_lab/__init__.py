"""What experiments need and production does not: emulated machines, faults, programs, the soak."""
