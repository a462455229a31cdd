"""What an hour of a graphics card costs on marketplaces, with source and date: for 'would earn', never for paying.

Lowest marketplace price of each model in USD per GPU-hour, as its renter pays it; marketplaces keep about 20 % of it.
"""

from __future__ import annotations

from msgspec import Struct

FEE_SHARE = 0.20


class Price(Struct, frozen=True):
    """`model`: words that a card's name must all hold. `least_memory_bytes`: of the smallest card that is meant."""

    model: tuple[str, ...]
    least_memory_bytes: int
    usd_per_hour: float
    source: str


PRICES: tuple[Price, ...] = (
    Price(("H100",), 0, 1.80, "Vast, median of asks, 2026-06-21 to 07-20"),
    Price(("A100",), 70 * 10**9, 0.76, "Vast, median of asks, 2026-06-21 to 07-20"),
    Price(("A100",), 0, 0.93, "Vast, median of asks, 2026-04-29"),
    Price(("A10",), 0, 0.255, "Vast, median of asks, 2026-04-29"),
    Price(("L4",), 0, 0.43, "RunPod, 2025-07-13"),
    Price(("RTX", "4090"), 0, 0.34, "RunPod, community, 2026-07"),
    Price(("RTX", "3090"), 0, 0.22, "RunPod, community, 2025-07-13"),
    Price(("RTX", "3060"), 10 * 10**9, 0.16, "Vast, median of single cards, 2026-04-29"),
)


def price_of(model: str, memory_bytes: int) -> Price | None:
    """The price of a card by its name and memory; None where none is known."""
    words = model.upper().replace("-", " ").split()
    for price in PRICES:
        if all(word in words for word in price.model) and memory_bytes >= price.least_memory_bytes:
            return price
    return None


def earned_per_hour(price: Price) -> float:
    """USD that its owner would get for an hour."""
    return price.usd_per_hour * (1 - FEE_SHARE)
