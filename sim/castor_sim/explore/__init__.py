"""The agents of `castor_policy.agents` under faults, in a model of all that surrounds them.

`castor explore` runs it: the very same `Worker` and `Root` as the runtime's, a model of the store,
of the network, of machines and of training, a schedule of faults drawn from a seed, and the
invariants checked after every event.
"""
