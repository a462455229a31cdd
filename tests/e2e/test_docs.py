"""Every Python block of the guides runs on a pool and prints what the guide says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.pool import Pool

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    where: str
    code: str
    output: str | None


def blocks() -> list[Block]:
    found = []
    for path in (ROOT / "README.md", ROOT / "docs" / "customer.md"):
        text = path.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{path.name}:{line}", match["code"], match["output"]))
    return found


def test_there_are_blocks() -> None:
    assert len(blocks()) >= 8


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.where)
def test_block(pool: Pool, block: Block) -> None:
    done = pool.script(block.code)
    assert done.returncode == 0, done.stderr
    if block.output is not None:
        assert done.stdout == block.output, done.stderr
