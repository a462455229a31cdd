"""X11 against a real server: a key resets the reading and is told of at once; what fills the screen is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fallow.agent.owner.sensor import Absent, Draft, Failed
from fallow.agent.owner.x11 import ARM_AFTER_S, X11, displays
from fallow.core.owner_readings import Readings
from fallow.model.lending import LendingSettings

from .conftest import XServer, poll, wait_for_news

Read = Callable[..., Readings]


@pytest.fixture
def sensor(x_server: XServer, monkeypatch: pytest.MonkeyPatch) -> X11:
    monkeypatch.setattr("fallow.agent.owner.x11.ARM_AFTER_S", 0.2)
    sensor = X11(x_server.display)
    sensor.open()
    return sensor


def test_a_key_and_a_click_reset_the_idle_time_and_are_told_of(sensor: X11, x_server: XServer, read: Read) -> None:
    assert ARM_AFTER_S > 1
    for touch in (("key", "a"), ("click", "1")):
        poll("rest", lambda: (read(sensor).inputs[0].idle_s or 0) > 0.4)
        assert read(sensor).inputs[0].notifies
        x_server.run(*touch)
        assert wait_for_news(sensor)
        reading = read(sensor).inputs[0]
        assert reading.idle_s == 0.0
        assert reading.proves
        assert not reading.notifies
        assert sensor.files() == []
    sensor.close()


def test_a_server_that_ends_is_said_and_one_that_is_not_there_is_absent(
    sensor: X11, x_server: XServer, read: Read
) -> None:
    read(sensor)
    x_server.end()
    with pytest.raises(Failed, match="does not answer"):
        poll("the end", lambda: read(sensor) and False)
    sensor.close()
    with pytest.raises(Absent):
        X11(x_server.display).open()


def test_a_program_that_fills_the_screen_is_named(sensor: X11, x_server: XServer, read: Read) -> None:
    from Xlib.display import Display

    assert read(sensor).full_screen == ""
    other = Display(x_server.display)
    window = other.screen().root.create_window(0, 0, 640, 480, 0, other.screen().root_depth)
    window.set_wm_class("game", "Game")
    window.map()
    other.sync()
    assert read(sensor).full_screen == "game"
    # With a window manager, the active window's state tells.
    root, check = other.screen().root, other.intern_atom("_NET_SUPPORTING_WM_CHECK")
    root.change_property(check, other.intern_atom("WINDOW"), 32, [window.id])
    root.change_property(other.intern_atom("_NET_ACTIVE_WINDOW"), other.intern_atom("WINDOW"), 32, [window.id])
    other.sync()
    assert read(sensor).full_screen == ""
    state = [other.intern_atom("_NET_WM_STATE_FULLSCREEN")]
    window.change_property(other.intern_atom("_NET_WM_STATE"), other.intern_atom("ATOM"), 32, state)
    other.sync()
    assert read(sensor).full_screen == "game"
    window.destroy()
    other.sync()
    assert read(sensor).full_screen == ""
    off = Draft(LendingSettings())
    sensor.absent(off)
    assert off.readings().full_screen == ""
    other.close()
    sensor.close()


def test_displays_are_found_by_their_sockets(
    quiet_environment: object, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    from pathlib import Path

    sockets = Path(str(tmp_path)) / "sockets"
    sockets.mkdir()
    for name in ("X0", "X12", "other"):
        (sockets / name).touch()
    monkeypatch.setattr("fallow.agent.owner.x11.SOCKETS", str(sockets))
    assert displays() == [":0", ":12"]
    monkeypatch.setenv("DISPLAY", ":12.0")
    assert displays() == [":12.0", ":0"]
