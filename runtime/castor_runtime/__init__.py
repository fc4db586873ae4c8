"""The training runtime: agents, checkpoint memory, transport, what trainers call, the launcher."""
