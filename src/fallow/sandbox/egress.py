"""Network for a sandbox: public addresses alone."""

from __future__ import annotations

from fallow.sandbox.protocol import Layer


def egress_layer() -> Layer:
    """Whether it can be given here."""
    return Layer("egress", False, "not available")
