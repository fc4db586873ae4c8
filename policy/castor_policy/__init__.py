"""Pure decisions that the simulator and the runtime share: no clock, no I/O, no engine."""
