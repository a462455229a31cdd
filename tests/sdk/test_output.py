"""What tasks print reaches whoever runs the script, however short the script is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pool import Pool

SCRIPT = """
import sys
import fallow

app = fallow.App("hello")

@app.function()
def hello(x):
    print("hello from", x)
    return x

if __name__ == "__main__":
    if "map" in sys.argv:
        print(list(hello.map([7])))
    else:
        print(hello.remote(7))
"""


@pytest.mark.parametrize("how", ["call", "map"])
def test_the_only_line_of_a_task_comes_before_its_script_ends(tmp_path: Path, connected: Pool, how: str) -> None:
    assert connected.url  # of the script's environment
    script = tmp_path / "hello.py"
    script.write_text(SCRIPT)
    for _ in range(2):
        done = subprocess.run([sys.executable, str(script), how], capture_output=True, text=True, timeout=60)
        label = "[hello]" if how == "call" else "[hello 0]"
        assert f"{label} hello from 7" in done.stdout.splitlines(), done.stdout + done.stderr
