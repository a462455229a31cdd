"""Holds what the owner set: CPU, memory, disk, network, GPU power and temperature, price."""
