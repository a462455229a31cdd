"""Load, programs, power, input devices and other systems."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fallow.agent.owner import evdev, load
from fallow.agent.owner.evdev import EVENT, Evdev, bits, is_of_a_person, person_devices
from fallow.agent.owner.load import ForeignCpu, Programs, program_names, tree_cpu_s
from fallow.agent.owner.others import WslInput, idle_of_ioreg, idle_of_ticks, state_of_line
from fallow.agent.owner.power import Battery, Heat
from fallow.agent.owner.sensor import Absent, Draft, Failed, clock_s
from fallow.core.owner_readings import Readings
from fallow.model.lending import LendingSettings, OwnerSettings

from .conftest import poll, wait_for_news

Read = Callable[..., Readings]
BUSY = "import sys\nwhile True: pass"


@pytest.fixture
def busy_process() -> Any:
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_busy_process_is_foreign_unless_it_is_ours(busy_process: subprocess.Popen[bytes], read: Read) -> None:
    """Both sensors see the same machine at the same time: they differ by the process."""
    mine = ForeignCpu(lambda: (busy_process.pid,))
    theirs = ForeignCpu(lambda: ())
    mine.open()
    theirs.open()
    shares: list[tuple[float, float]] = []

    def differ() -> bool:
        shares.append((read(theirs).foreign_cpu_share or 0.0, read(mine).foreign_cpu_share or 0.0))
        return shares[-1][0] - shares[-1][1] > 0.2 / (psutil.cpu_count() or 1)

    poll("the process to show", differ)
    assert 0.0 < shares[-1][0] <= 1.0


def test_time_of_children_that_have_ended_counts_as_ours() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(3*10**6))']); print(1); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert tree_cpu_s([process.pid]) > sum(psutil.Process(process.pid).cpu_times()[:2])
        process.communicate(b"\n")
    assert tree_cpu_s([process.pid]) == 0.0


def test_named_programs_are_found_when_they_start_and_gone_when_they_end(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "Half-Life.exe"
    program.symlink_to("/bin/sleep")
    owner = OwnerSettings(exclusive_programs=("half-life",), gpu_exclusive_programs=("no-such-thing",))
    draft, sensor = Draft(LendingSettings(owner=owner)), Programs()
    assert read(sensor, draft=draft).programs == ()
    process = subprocess.Popen([program, "1000"])
    try:
        poll("the program", lambda: read(sensor, draft=draft).programs == ("half-life",))
        monkeypatch.setattr(load, "RECHECK_S", 0.0)
        read(sensor, draft=draft)
        monkeypatch.setattr(load, "program_names", lambda pid: pytest.fail("a known process is not read again"))
        known = set(sensor._names)
        monkeypatch.setattr(psutil, "pids", lambda: list(known))
        assert read(sensor, draft=draft).programs == ("half-life",)
        monkeypatch.undo()
    finally:
        process.kill()
        process.wait()
    assert read(sensor, draft=draft).programs == ()
    assert program_names(process.pid) == frozenset()


Charge = namedtuple("Charge", "percent secsleft power_plugged")
Degrees = namedtuple("Degrees", "label current high critical")


@pytest.mark.parametrize(
    ("battery", "says"),
    [(None, False), (Charge(50, 60, True), False), (Charge(50, 60, False), True), (Charge(50, 60, None), None)],
)
def test_battery(read: Read, monkeypatch: pytest.MonkeyPatch, battery: Any, says: bool | None) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery)
    assert read(Battery()).on_battery is says


def test_heat_is_the_hottest_core_and_a_sensor_that_goes_is_unknown(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    chips = {"nvme": [Degrees("", 99.0, None, None)], "coretemp": [Degrees("", 50.0, 1, 1), Degrees("", 61.0, 1, 1)]}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: chips)
    draft, sensor = Draft(LendingSettings()), Heat()
    assert read(sensor, draft=draft).cpu_temperature_c == 61.0
    chips.clear()
    with pytest.raises(Failed):
        read(sensor, draft=draft)
    with pytest.raises(Absent):
        read(sensor)


# ------------------------------------------------------------ input devices

KEYBOARD = "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe"
MOUSE = "1f0000 0 0 0 0"
POWER_BUTTON = "10000000000000 0"


def test_what_people_touch_is_told_from_buttons_and_jacks() -> None:
    assert is_of_a_person(bits("120013"), bits(KEYBOARD))
    assert is_of_a_person(bits("17"), bits(MOUSE))
    assert not is_of_a_person(bits("3"), bits(POWER_BUTTON))
    assert not is_of_a_person(bits("21"), bits("0"))
    assert bits("3 8000000000000001") == {0, 63, 64, 65}


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """Two device files, as pipes: what comes is readable, and nothing is a rest."""
    for number, keys in enumerate((KEYBOARD, POWER_BUTTON)):
        folder = tmp_path / "sys" / f"event{number}" / "device" / "capabilities"
        folder.mkdir(parents=True)
        (folder / "ev").write_text("120013\n")
        (folder / "key").write_text(keys + "\n")
        (tmp_path / "dev").mkdir(exist_ok=True)
        os.mkfifo(tmp_path / "dev" / f"event{number}")
    return tmp_path


def test_only_what_people_touch_is_opened_and_its_input_told(
    devices: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evdev, "ARM_AFTER_S", 0.05)
    dev, sysfs = devices / "dev", devices / "sys"
    assert person_devices(dev, sysfs) == [dev / "event0"]
    sensor = Evdev(dev, sysfs)
    sensor.open()
    hand = os.open(dev / "event0", os.O_WRONLY)
    poll("rest", lambda: (read(sensor).inputs[0].idle_s or 0.0) > 0.05)
    os.write(hand, bytes(24))
    assert wait_for_news(sensor)
    reading = read(sensor).inputs[0]
    assert reading.idle_s == pytest.approx(0.0, abs=20.0)
    assert reading.proves
    os.close(hand)
    sensor.close()


def test_who_moves_the_mouse_is_not_listened_to_and_what_waited_is_as_old_as_it_is(
    devices: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor = Evdev(devices / "dev", devices / "sys")
    sensor.open()
    hand = os.open(devices / "dev" / "event0", os.O_WRONLY)
    os.write(hand, EVENT.pack(int(time.time()), 0, 2, 0, 1) * 100)
    assert not read(sensor).inputs[0].notifies
    assert sensor.files() == []
    monkeypatch.setattr(sensor, "_input_s", clock_s() - 1000.0)
    for seconds in (70, 50):
        os.write(hand, EVENT.pack(int(time.time()) - seconds, 0, 2, 0, 1))
    reading = read(sensor).inputs[0]
    assert reading.idle_s == pytest.approx(50.0, abs=20.0), "of the last one, which has waited to be read"
    assert reading.notifies
    assert sensor.files()
    os.close(hand)
    sensor.close()


def test_devices_that_cannot_be_read_are_absent_and_some_prove_nothing(
    devices: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev, sysfs = devices / "dev", devices / "sys"
    (dev / "event2").symlink_to("/nowhere")
    sensor = Evdev(dev, sysfs)
    sensor.open()
    hand = os.open(dev / "event0", os.O_WRONLY)
    assert not read(sensor).inputs[0].proves
    os.close(hand)
    sensor.close()
    (dev / "event0").unlink()
    with pytest.raises(Absent):
        Evdev(dev, sysfs).open()


@pytest.mark.skipif(
    not Path("/dev/uinput").exists(), reason="no /dev/uinput here: no keyboard can be made for the test"
)
def test_a_real_input_device_is_found() -> None:
    import fcntl
    import struct

    ui_set_evbit, ui_set_keybit, ui_dev_create, ui_dev_destroy = 0x40045564, 0x40045565, 0x5501, 0x5502
    before = set(person_devices())
    file = os.open("/dev/uinput", os.O_WRONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(file, ui_set_evbit, evdev.EV_KEY)
        for key in range(1, 60):
            fcntl.ioctl(file, ui_set_keybit, key)
        os.write(file, struct.pack("80sHHHHI", b"fallow test", 3, 1, 1, 1, 0) + bytes(4 * 64 * 4))
        fcntl.ioctl(file, ui_dev_create)
        poll("the device", lambda: set(person_devices()) - before)
    finally:
        fcntl.ioctl(file, ui_dev_destroy)
        os.close(file)


# ------------------------------------------------------------ other systems


def test_macos_and_windows_in_their_own_words() -> None:
    text = '    | |   "HIDParameters" = {"x"=1}\n    | |   "HIDIdleTime" = 2345678901\n'
    assert idle_of_ioreg(text) == pytest.approx(2.345678901)
    assert idle_of_ioreg("nothing") is None
    assert idle_of_ticks(5_000, 2_000) == 3.0
    assert idle_of_ticks(1_000, (1 << 32) - 1_000) == 2.0
    assert state_of_line("1500 5\r\n") == (1.5, False)
    assert state_of_line("1500 3") == (1.5, True)
    assert state_of_line("unknown 0") == (None, False)


def test_the_helper_under_wsl(read: Read, tmp_path: Path) -> None:
    sensor = WslInput(("sh", "-c", "echo '61000 3'; echo '62000 3'; exec sleep 1000"))
    sensor.open()
    reading = poll("a line", lambda: next((r for r in [read(sensor)] if r.inputs[0].idle_s is not None), None))
    assert reading.inputs[0].idle_s >= 62.0
    assert reading.full_screen == "a program"
    sensor.close()
    ended = WslInput(("sh", "-c", "exit 0"))
    ended.open()
    with pytest.raises(Failed, match="has ended"):
        poll("the end", lambda: read(ended) and False)
    ended.close()
    with pytest.raises(Failed, match=r"/etc/wsl\.conf"):
        WslInput((str(tmp_path / "no-such-powershell"),)).open()
