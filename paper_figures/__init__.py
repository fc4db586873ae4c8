"""Every figure of the paper, ours beside the published values."""
