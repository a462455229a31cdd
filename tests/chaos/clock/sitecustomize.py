"""Put on PYTHONPATH of a pool's processes: their wall clock is the machine's plus what a file says, in seconds.

It reaches time.time and time.time_ns, which is how our code reads the wall clock; programs in C keep the machine's.
libfaketime would reach those too, but with it time.sleep of Python 3.11 fails (EINVAL).
"""

import os
import time

_path = os.environ.get("FALLOW_TEST_CLOCK", "")
_read_at = -1.0
_offset_ns = 0
_time_ns = time.time_ns
_monotonic = time.monotonic


def _fake_ns() -> int:
    global _read_at, _offset_ns
    now = _monotonic()
    if now - _read_at > 0.5:
        _read_at = now
        try:
            with open(_path) as file:
                _offset_ns = int(file.read()) * 1_000_000_000
        except (OSError, ValueError):
            pass
    return _time_ns() + _offset_ns


if _path:
    time.machines_time = time.time  # for notes of a test that are to be compared with others'
    time.time_ns = _fake_ns
    time.time = lambda: _fake_ns() / 1e9
