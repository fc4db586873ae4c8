"""Hosts on one computer that share nothing but the kernel and what is installed.

An emulated cluster (`castor_lab.emulated_cluster`) has links of a known speed, and one file system.
These have what makes real hosts hard to deploy on: each its own network, processes, shared memory,
home and temporary files, and no name of another that resolves.
"""
