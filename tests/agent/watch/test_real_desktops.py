"""Real compositors without a screen: what the watch reads of them, at rest and when a key comes through their doors.

Each skips aloud where its program is not installed (Debian packages mutter, kwin-wayland, sway, weston, wtype).
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from jeepney import DBusAddress, MessageType, new_method_call
from jeepney.io.blocking import open_dbus_connection

from fallow.agent.owner.bus import Bus
from fallow.agent.owner.desktop import Mutter, ScreenSaver
from fallow.agent.owner.find import Finder
from fallow.agent.owner.sensing import Sensing
from fallow.agent.owner.sensor import Absent
from fallow.agent.owner.wayland import Wayland, wayland_sockets
from fallow.core.owner_policy import OwnerState, look
from fallow.core.owner_readings import Readings
from fallow.model.lending import LendingSettings, OwnerSettings

from .conftest import DEADLINE_S, _need, poll

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="Wayland needs Linux")]

RESTED_S = 3.0
REMOTE = "org.gnome.Mutter.RemoteDesktop"
FAKE = "org_kde_kwin_fake_input"

Start = Callable[..., str]


@pytest.fixture
def bus(bus: str, quiet_environment: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A session bus for the desktop alone."""
    quiet_environment.chmod(0o700)
    monkeypatch.setenv("HOME", str(quiet_environment))
    return bus


@pytest.fixture
def start(bus: str, quiet_environment: Path) -> Iterator[Start]:
    """Starts a compositor, and returns the path of its socket."""
    with ExitStack() as ends:

        def started(*words: str, **variables: str) -> str:
            log = (quiet_environment / "log").open("wb")
            compositor = subprocess.Popen(
                words,
                env={**os.environ, "LIBGL_ALWAYS_SOFTWARE": "1", **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            ends.callback(_end, compositor)
            log.close()
            said = quiet_environment / "log"
            poll("the compositor", lambda: wayland_sockets() or compositor.poll() is not None)
            assert compositor.poll() is None, said.read_text(errors="replace")[-2000:]
            return wayland_sockets()[0]

        yield started


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Looks:
    """All sensors that the agent would use, read as it reads them."""

    def __init__(self) -> None:
        self.seen = Readings()
        settings = LendingSettings(owner=OwnerSettings(idle_s=RESTED_S))
        self.settings = settings
        self._sensing = Sensing(Finder(settings), settings, self._look)
        self._sensing._found_s = float("-inf")

    def _look(self, readings: Readings) -> float:
        self.seen = readings
        return 0.1

    def now(self) -> Readings:
        self._sensing._due_s = dict.fromkeys(self._sensing._due_s, 0.0)
        self._sensing.step()
        return self.seen

    @property
    def paused(self) -> str:
        """What the policy makes of it, for an agent that has just come."""
        return look(OwnerState(), self.now(), self.settings, time.monotonic(), 0)[1].paused

    def idle_s(self) -> float:
        return min((one.idle_s for one in self.now().inputs if one.proves and one.idle_s is not None), default=-1.0)

    def close(self) -> None:
        for name in list(self._sensing._open):
            self._sensing._close(name)


@pytest.fixture
def looks(bus: str) -> Iterator[Looks]:
    made = Looks()
    yield made
    made.close()


def _rests(looks: Looks) -> None:
    poll("rest", lambda: looks.idle_s() >= RESTED_S)
    assert "keyboard or mouse" not in looks.paused
    assert not [words for words in looks.seen.troubles if "Wayland" in words or "GNOME" in words]


def _is_seen(looks: Looks, press: Callable[[], None]) -> None:
    press()
    poll("the key", lambda: looks.idle_s() < 1.0, 2.0)
    assert "keyboard or mouse used" in looks.paused


def test_gnomes_compositor(start: Start, looks: Looks, bus: str) -> None:
    if not bus:
        pytest.skip("dbus-daemon serves nobody who is not in the list of users")
    start(_need("mutter"), "--headless", "--wayland", "--no-x11", "--virtual-monitor", "1280x720")
    poll("its name on the bus", lambda: _is_there(Mutter(Bus("SESSION"))))
    _rests(looks)
    _is_seen(looks, lambda: _press_remotely(bus))
    _rests(looks)


def _is_there(sensor: Mutter | ScreenSaver) -> bool:
    try:
        sensor.open()
    except Absent:
        return False
    return True


def _press_remotely(address: str) -> None:
    """As a remote desktop does it."""
    with open_dbus_connection(address) as connection:

        def call(path: str, interface: str, method: str, signature: str = "", *values: object) -> tuple[object, ...]:
            message = new_method_call(DBusAddress(path, REMOTE, interface), method, signature or None, values)
            reply = connection.send_and_get_reply(message, timeout=DEADLINE_S)
            assert reply.header.message_type is not MessageType.error, reply.body
            return tuple(reply.body)

        (session,) = call("/org/gnome/Mutter/RemoteDesktop", REMOTE, "CreateSession")
        call(str(session), f"{REMOTE}.Session", "Start")
        for pressed in (True, False):
            call(str(session), f"{REMOTE}.Session", "NotifyKeyboardKeycode", "ub", 30, pressed)
        call(str(session), f"{REMOTE}.Session", "Stop")


def test_kdes_compositor(start: Start, looks: Looks, tmp_path: Path) -> None:
    # A copy: the installed one has a capability, which a container may refuse.
    program = shutil.copy(_need("kwin_wayland"), tmp_path / "kwin_wayland")
    path = start(
        program, "--virtual", "--width", "1280", "--height", "720", "--socket", "wayland-0",
        KWIN_WAYLAND_NO_PERMISSION_CHECKS="1", KWIN_COMPOSE="Q",
    )  # fmt: skip
    _rests(looks)
    _is_seen(looks, lambda: _press_falsely(path))
    _rests(looks)


def _press_falsely(path: str) -> None:
    """Through the protocol with which KDE's own programs play a hand."""
    client = Wayland(path)
    client.open()
    number, version = client._globals[FAKE]
    assert version >= 4
    fake = client._bind(number, FAKE, 4)
    word = struct.pack("=I", 5) + b"test\0\0\0\0"
    client._send(fake, 0, word * 2)
    for pressed in (1, 0):
        client._send(fake, 9, struct.pack("=II", 30, pressed))
    client._roundtrip()
    client.close()


def test_sway(start: Start, looks: Looks, quiet_environment: Path) -> None:
    sway, wtype = _need("sway"), _need("wtype")
    if os.geteuid() == 0:
        pytest.skip("sway refuses to run as root")
    (quiet_environment / "config").write_text("output HEADLESS-1 resolution 1280x720\n")
    path = start(
        sway, "-c", str(quiet_environment / "config"),
        WLR_BACKENDS="headless", WLR_LIBINPUT_NO_DEVICES="1", WLR_RENDERER="pixman",
    )  # fmt: skip
    _rests(looks)
    variables = {**os.environ, "WAYLAND_DISPLAY": os.path.basename(path)}
    _is_seen(looks, lambda: subprocess.run([wtype, "a"], env=variables, check=True, timeout=DEADLINE_S) and None)
    _rests(looks)


def test_a_compositor_that_tells_nothing_is_in_use(start: Start, looks: Looks) -> None:
    start(_need("weston"), "--backend=headless-backend.so", "--socket=wayland-1")
    assert "nothing here tells whether keyboard or mouse are used" in looks.paused
    assert not looks.seen.nobody
    assert any("ext-idle-notify" in words for words in looks.seen.troubles)
