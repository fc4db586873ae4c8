"""What lets a trainer outlive the loss of another rank: it keeps its process and its engine."""
