"""What a run leaves behind, one form for the simulator and the runtime."""
