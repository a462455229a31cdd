"""How well a sandbox keeps a stranger's code from the machine that it runs on. A tier includes the lower ones."""

from __future__ import annotations

from enum import IntEnum


class Tier(IntEnum):
    """PROCESS: a plain process of the agent's user, for pools of one's own. ISOLATED: namespaces, system call filter,
    bounded memory, processes and disk, no network unless it is lent. KERNEL: a kernel of its own in user space
    (gVisor). MACHINE: a virtual machine."""

    PROCESS = 0
    ISOLATED = 1
    KERNEL = 2
    MACHINE = 3

    @property
    def word(self) -> str:
        """As settings, options and listings write it."""
        return self.name.lower()


TIER_WORDS: dict[str, Tier] = {tier.word: tier for tier in Tier}
