"""What a rank's state holds beside its tensors: metadata, buffers, extra states, attributes.

Trainers write it, persistent checkpoints are written from it; it needs neither.
"""
