"""How the shells wait."""

from __future__ import annotations

import ast

from .source import modules, parsed


def test_no_wait_swallows_a_cancellation() -> None:
    """Python 3.11's `asyncio.wait_for` returns its result to one who was cancelled in the moment when it came: the
    cancellation is lost, and who closes waits for a task that goes on. `asyncio.timeout` loses none."""
    found = [
        module.at(node.lineno)
        for module in modules().values()
        for node in ast.walk(parsed(module.path))
        if isinstance(node, ast.Attribute)
        and node.attr == "wait_for"
        and isinstance(node.value, ast.Name)
        and node.value.id == "asyncio"
    ]
    assert not found, f"`async with asyncio.timeout(...)` instead of asyncio.wait_for: {found}"
