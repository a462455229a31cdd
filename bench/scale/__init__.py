"""How far a pool goes: thousands of agents, coordinators and servers that die, nodes far away."""
