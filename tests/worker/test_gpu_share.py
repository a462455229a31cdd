"""PyTorch is told its part of the device as soon as it is imported, and CUDA is not begun for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from fallow.worker.gpu_share import keep_to_share
keep_to_share()
import json, torch, torch.sub
print(torch.cuda.calls, torch.cuda.begun, torch.sub.here, torch.__spec__.name, len(torch.__path__))
torch.cuda.init()
print(torch.cuda.calls)
"""
CUDA = """
calls, begun, waiting = [], False, []
def _lazy_call(call): waiting.append(call)
def set_per_process_memory_fraction(share, device): calls.append((share, device))
def init():
    global begun
    begun = True
    for call in waiting: call()
"""


def run(folder: Path, share: str) -> list[str]:
    package = folder / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("from torch import cuda\n")
    (package / "cuda.py").write_text(CUDA)
    (package / "sub.py").write_text("here = True\n")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}",
        "FALLOW_GPU_SHARE": share,
    }
    environment["PYTHONPATH"] = f"{folder}:{Path(__file__).parents[2] / 'src'}"
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_limit_is_set_when_cuda_begins(tmp_path: Path) -> None:
    assert run(tmp_path, "0.225") == ["[] False True torch 1", "[(0.225, 0)]"]


def test_without_a_part_nothing_is_touched(tmp_path: Path) -> None:
    assert run(tmp_path, "") == ["[] False True torch 1", "[]"]
