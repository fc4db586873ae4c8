"""The cluster simulator: training, checkpoints and recovery driven by failures."""
