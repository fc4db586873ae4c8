"""A cluster on one machine: each host a network namespace, each link shaped to a bandwidth.

What is emulated is the network: addresses, links of a bandwidth both ways, a switch, a storage host
with a link of its own, and links that are cut or slow. Processors, memory and disk are shared.
docs/emulated-cluster.md says what to trust of it.
"""
