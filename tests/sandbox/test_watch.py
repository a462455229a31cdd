"""The watch of a sandbox's bounds: a reserve is not looked at, and whoever gets it is from the first moment."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

from fallow.sandbox.watch import Watch

WITHIN_S = 30.0
LIMIT_BYTES = 1 << 20


def test_a_reserve_is_not_looked_at_until_it_is_taken(tmp_path: Path) -> None:
    ended = threading.Event()
    inside = subprocess.Popen(["sleep", "600"], start_new_session=True)
    log_out, log_in = os.pipe()
    watch = Watch(inside.pid, (str(tmp_path),), LIMIT_BYTES, 0, (), log_out, str(tmp_path / "log"), ended.set)
    looked = threading.Event()
    look = watch._look

    def watched(deep: bool) -> None:
        looked.set()
        look(deep)

    watch._look = watched  # type: ignore[method-assign]
    assert looked.wait(WITHIN_S), "on until told otherwise"
    watch.guard(False)
    # What is written meanwhile comes to the log: the thread has then seen that it is off.
    os.write(log_in, b"words\n")
    deadline = time.monotonic() + WITHIN_S
    while (tmp_path / "log").stat().st_size < 6:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    looked.clear()
    (tmp_path / "flood").write_bytes(b"x" * (LIMIT_BYTES * 5 // 4))
    assert not looked.wait(0.6), "two looks would have been due"
    assert not ended.is_set()
    watch.guard(True)
    assert ended.wait(WITHIN_S)
    assert "of disk that it may use" in watch.why
    os.close(log_in)
    watch.stop()
    inside.kill()
    inside.wait()
