"""The persistent tier: DeepSpeed's own ZeRO-3 checkpoints, written out of checkpoint memory.

`storage`, `manifest`, `retention`, `durable_files` and `memory_copy` import no torch, so an agent
may use them; `template` runs in the trainer, `deepspeed_format` and `persist` in a process that has
torch.
"""
