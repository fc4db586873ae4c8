"""The agents' protocol as state machines without I/O (Gemini sec. 3 and 6).

`Worker` runs on every machine, `Root` on one of them. An event comes in, a list of effects goes
out; whoever drives them owns clocks, sockets, processes and the store. The runtime's driver and the
simulator's drive these very objects.
"""
