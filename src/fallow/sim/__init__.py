"""The real core with simulated nodes, owners, networks, coordinators and faults, in virtual time, by seed."""
