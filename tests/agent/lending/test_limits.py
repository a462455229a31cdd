"""Price, rates, priority and spells, on real files, programs and workers."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from fallow.agent.earnings import WorkBook, Worked, an_hour, worth
from fallow.agent.limits.bandwidth import Throttle
from fallow.agent.limits.duties import Duties
from fallow.agent.limits.meter import Meter
from fallow.agent.limits.offer import lent_slots, lent_spec
from fallow.agent.limits.price import READ_LIMIT_BYTES, parse_price, read_price
from fallow.agent.limits.priority import lower_priority
from fallow.agent.settings import parse_settings
from fallow.model.errors import SettingError
from fallow.model.ids import NodeId
from fallow.model.lending import EarnSettings
from fallow.model.node import Device, NodeSpec


async def test_price_of_a_file_and_of_a_command(tmp_path: Path) -> None:
    path = tmp_path / "price"
    path.write_text("EUR 0,2874 per kWh\n")
    assert await read_price(str(path)) == 0.2874
    assert await read_price("! echo -0.05") == -0.05
    with pytest.raises(SettingError, match="there is no number"):
        await read_price("! echo high")
    with pytest.raises(SettingError, match="exit code 3"):
        await read_price("! exit 3")
    with pytest.raises(SettingError, match="cannot be read"):
        await read_price(str(tmp_path / "none"))
    with pytest.raises(SettingError, match="is empty"):
        parse_price("", "x")


async def test_a_price_command_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    assert await read_price("! echo 0.3; yes") == 0.3, f"no more than {READ_LIMIT_BYTES} bytes are read"
    monkeypatch.setattr("fallow.agent.limits.price.COMMAND_WITHIN_S", 0.2)
    with pytest.raises(SettingError, match="within"):
        await read_price("! sleep 987.125")
    assert time.monotonic() - begun < 60
    left = [process for process in psutil.process_iter(["cmdline"]) if "987.125" in (process.info["cmdline"] or [])]
    assert not left


async def test_a_rate_is_held_by_all_together() -> None:
    throttle = Throttle(down_bytes_per_s=1_000_000)
    begun = time.monotonic()

    async def transfer() -> None:
        for _ in range(4):
            await throttle.received(50_000)

    await asyncio.gather(transfer(), transfer())
    assert time.monotonic() - begun >= 0.1, "400 kB at 1 MB/s, less what may come at once"
    throttle.set_rates(0, 0)
    begun = time.monotonic()
    await throttle.received(1 << 40)
    assert time.monotonic() - begun < 30


def test_priority_is_inherited() -> None:
    code = "import os,sys; sys.stdin.readline(); pid=os.fork()\nif not pid: print(os.nice(0)); sys.exit()\nos.wait()"
    import subprocess

    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    lower_priority(process.pid, 19, True)
    out, _ = process.communicate("\n", timeout=60)
    assert out.strip() == "19"


class Sleeper:
    """A real process in the place of a worker."""

    def __init__(self) -> None:
        import subprocess

        self.process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        self.running = True

    def hold(self, on: bool) -> None:
        psutil.Process(self.process.pid).suspend() if on else psutil.Process(self.process.pid).resume()

    @property
    def is_stopped(self) -> bool:
        return bool(psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)


@pytest.mark.slow
async def test_spells_of_work_and_rest() -> None:
    worker = Sleeper()
    duties = Duties(lambda: [(worker, ("cpu",))])  # type: ignore[list-item]
    try:
        duties.set("cpu", 0.3)
        seen: set[bool] = set()
        deadline = time.monotonic() + 60
        while seen != {True, False} and time.monotonic() < deadline:
            seen.add(worker.is_stopped)
            await asyncio.sleep(0.01)
        assert seen == {True, False}
        duties.set("cpu", 0.0)
        while not worker.is_stopped and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert worker.is_stopped
        duties.set("cpu", 1.0)
        while worker.is_stopped and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert not worker.is_stopped
    finally:
        await duties.close()
        assert not worker.is_stopped, "nothing stays stopped"
        worker.process.kill()
        worker.process.wait()


def test_the_meter_counts_a_whole_tree() -> None:
    import subprocess

    inner = "x = bytearray(50 << 20)\nprint(1, flush=True)\nwhile 1: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        meter = Meter(1)
        first = meter.measure([process.pid], [process.pid])
        assert first.cpu_share is None
        assert first.memory_bytes > 50 << 20
        assert first.memory_by_worker == {process.pid: first.memory_bytes}
        deadline = time.monotonic() + 60
        while not (share := meter.measure([process.pid], [process.pid]).cpu_share) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert share
        assert meter.measure([], []).memory_bytes == 0
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_what_is_offered() -> None:
    settings = parse_settings(
        '[share]\ncpu = "50 %"\nmemory = "4 GB"\ndisk = "1 GB"\n[gpu]\nmodels = ["4090"]\n', Path("node.toml")
    )
    cards = (Device("gpu", "NVIDIA GeForce RTX 4090", 24 << 30, "a"), Device("gpu", "NVIDIA T4", 16 << 30, "b"))
    spec = NodeSpec(NodeId("n"), "n", 8, 8, 32 << 30, 100 << 30, "linux", ("3.11",), "0", cards)
    lent = lent_spec(spec, settings)
    assert (lent.memory_bytes, lent.disk_free_bytes, [one.uuid for one in lent.devices]) == (4 * 10**9, 10**9, ["a"])
    assert lent_slots(settings, 8) == 4
    assert lent_slots(settings, 8, asked=2) == 2


def test_the_book_of_work_is_kept(tmp_path: Path) -> None:
    book = WorkBook(tmp_path)
    book.add(10.0, 2.0, 3)
    book.save()
    again = WorkBook(tmp_path)
    assert (again.total.cpu_s, again.today.gpu_s, again.total.tasks) == (10.0, 2.0, 3)
    (tmp_path / "worked.json").write_text("{")
    assert WorkBook(tmp_path).total.tasks == 0


def test_what_work_would_earn() -> None:
    hour = Worked(3600, 3600, 1)
    card = Device("gpu", "NVIDIA GeForce RTX 4090", 24 << 30, "a")
    market = worth(hour, EarnSettings(), (card,))
    assert market is not None
    assert market["amount"] == pytest.approx(0.34 * 0.8)
    assert "RunPod" in market["basis"]
    own = worth(hour, EarnSettings(cpu_per_hour=0.02, gpu_per_hour=0.5, currency="EUR"), (card,))
    assert own is not None
    assert own["amount"] == pytest.approx(0.52)
    assert worth(hour, EarnSettings(), ()) is None
    other = Device("gpu", "NVIDIA H100 80GB HBM3", 80 << 30, "b")
    both = worth(hour, EarnSettings(), (card, other))
    assert both is not None
    assert both["amount"] == pytest.approx((0.34 + 1.80) / 2 * 0.8)
    all_of_it = an_hour(EarnSettings(), 4, (card, other))
    assert all_of_it["amount"] == pytest.approx((0.34 + 1.80) * 0.8)
    assert "H100" in all_of_it["basis"]
    assert "4090" in all_of_it["basis"]
    assert "earn.cpu_per_hour" in all_of_it["unpriced"]
    unknown = an_hour(EarnSettings(cpu_per_hour=0.01), 4, (Device("gpu", "Voodoo 2", 1 << 24, "c"),))
    assert unknown["amount"] == pytest.approx(0.04)
    assert unknown["unpriced"].startswith("no price is known for Voodoo 2; ")
