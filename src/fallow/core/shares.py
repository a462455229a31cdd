"""Max-min fair numbers, by progressive filling (Bertsekas and Gallager, Data Networks, 1992, 6.5.2)."""

from __future__ import annotations

from collections.abc import Sequence


def fair_shares(claims: Sequence[tuple[int, int]], slots: int) -> list[int]:
    """How many groups of slots each claim gets. claims: (groups wanted at most, slots a group), in the order in which
    the last slots go where they do not go round. slots: how many there are."""
    shares = [0] * len(claims)
    wanting = [at for at, (most, _) in enumerate(claims) if most > 0]
    left = slots
    while wanting and left > 0:
        level = max(1, left // sum(claims[at][1] for at in wanting))
        still: list[int] = []
        for at in wanting:
            most, width = claims[at]
            give = min(level, most - shares[at], left // width)
            if give <= 0:
                continue
            shares[at] += give
            left -= give * width
            if shares[at] < most:
                still.append(at)
        wanting = still
    return shares
