"""What runs inside a trainer: capture of the live state, replication, resuming.

Kept empty of imports: the agent reads the meta encoding without loading torch.
"""
