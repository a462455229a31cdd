"""A token bucket: how long to wait so that a rate is held on average, with a bounded burst."""

from __future__ import annotations

from msgspec import Struct

BURST_S = 0.25
"""What may be sent at once, as seconds of the rate."""


class Bucket(Struct, frozen=True):
    """`left`: bytes that may go at once, at `at_s`; negative while what went before is being paid off."""

    rate_per_s: float = 0.0
    """0: no limit."""
    left: float = 0.0
    at_s: float = 0.0


def take(bucket: Bucket, size: float, now_s: float) -> tuple[Bucket, float]:
    """Spend `size`; returns the bucket and the seconds to wait before more is sent. Debts are paid off in order, so
    that many who share a bucket hold its rate together. A clock that goes back gives nothing."""
    if bucket.rate_per_s <= 0:
        return bucket, 0.0
    passed_s = max(0.0, now_s - bucket.at_s)
    left = min(bucket.rate_per_s * BURST_S, bucket.left + passed_s * bucket.rate_per_s) - size
    wait_s = max(0.0, -left / bucket.rate_per_s)
    return Bucket(bucket.rate_per_s, left, max(now_s, bucket.at_s)), wait_s


def with_rate(bucket: Bucket, rate_per_s: float) -> Bucket:
    """The same bucket at another rate. Debts stay debts in seconds."""
    if rate_per_s <= 0 or bucket.rate_per_s <= 0:
        return Bucket(rate_per_s, 0.0, bucket.at_s)
    return Bucket(rate_per_s, bucket.left / bucket.rate_per_s * rate_per_s, bucket.at_s)
