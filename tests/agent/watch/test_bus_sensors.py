"""What desktops, logind and NetworkManager say on a real bus, through stand-in services."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from fallow.agent.owner import logins, screen_on
from fallow.agent.owner.bus import Bus
from fallow.agent.owner.desktop import MUTTER, MUTTER_PATH, SCREEN_SAVER, Mutter, ScreenSaver
from fallow.agent.owner.logins import LOGIND, MANAGER, NOBODY_LOGGED_IN, PATH, SERVER, Logins
from fallow.agent.owner.power import NETWORK_MANAGER, NETWORK_MANAGER_PATH, Metered
from fallow.agent.owner.screen_on import ScreenOn
from fallow.agent.owner.sensor import Absent, Draft, Failed
from fallow.core.owner_readings import Input, Readings, Session
from fallow.model.lending import LendingSettings

from .conftest import poll, wait_for_news
from .dbus_service import Services

Read = Callable[..., Readings]
SEAT = "/org/freedesktop/login1/session/_31"


def test_gnome_tells_the_idle_time_and_of_the_first_input(services: Services, read: Read) -> None:
    idle_ms = [500]
    services.own(MUTTER)
    services.answer(MUTTER_PATH, "GetIdletime", lambda: ("t", (idle_ms[0],)))
    services.answer(MUTTER_PATH, "AddUserActiveWatch", lambda: ("u", (7,)))
    services.start()
    sensor = Mutter(Bus("SESSION"))
    sensor.open()
    assert read(sensor).inputs == (Input("keyboard or mouse", 0.5),)
    assert sensor.files() == []
    idle_ms[0] = 400_000
    assert read(sensor).inputs[0] == Input("keyboard or mouse", 400.0, notifies=True)
    services.signal(MUTTER_PATH, MUTTER, "WatchFired", "u", 7)
    assert wait_for_news(sensor)
    assert read(sensor).inputs[0].idle_s == 0.0
    assert read(sensor).inputs[0].notifies


def test_another_programs_watch_is_no_news(services: Services, read: Read) -> None:
    services.own(MUTTER)
    services.answer(MUTTER_PATH, "GetIdletime", lambda: ("t", (60_000,)))
    services.answer(MUTTER_PATH, "AddUserActiveWatch", lambda: ("u", (7,)))
    services.start()
    sensor = Mutter(Bus("SESSION"))
    sensor.open()
    read(sensor)
    services.signal(MUTTER_PATH, MUTTER, "WatchFired", "u", 8)
    poll("the signal", lambda: __import__("select").select(sensor.files(), [], [], 0.1)[0])
    assert not sensor.news()


def test_no_bus_no_service_and_a_silent_one(services: Services, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Absent):
        Mutter(Bus("SESSION")).open()
    services.own(MUTTER)
    services.start()
    services.silent = True
    with pytest.raises(Failed, match="does not answer"):
        Mutter(Bus("SESSION")).open()
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS")
    with pytest.raises(Absent):
        Mutter(Bus("SESSION")).open()
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere/bus")
    with pytest.raises(Absent):
        Mutter(Bus("SESSION")).open()


def test_a_question_starts_no_program(services: Services) -> None:
    """The bus would start a service that is installed and not running."""
    bus = Bus("SESSION")
    with pytest.raises(Absent, match=r"NameHasNoOwner|ServiceUnknown"):
        bus.call(SCREEN_SAVER, "/ScreenSaver", SCREEN_SAVER, "GetSessionIdleTime")


@pytest.mark.parametrize(("per_s", "unit"), [(1000, "ms"), (1, "s")])
def test_screen_savers_count_in_either_unit(
    services: Services, read: Read, monkeypatch: pytest.MonkeyPatch, per_s: int, unit: str
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("fallow.agent.owner.desktop.clock_s", lambda: clock[0])
    services.own(SCREEN_SAVER)
    services.answer("/ScreenSaver", "GetSessionIdleTime", lambda: ("u", (int((clock[0] - 500.0) * per_s),)))
    services.start()
    sensor = ScreenSaver(Bus("SESSION"))
    sensor.open()
    first = read(sensor).inputs[0].idle_s
    assert first is not None
    assert first <= 500.0, "until the unit is known, the smaller is taken"
    for _ in range(4):
        clock[0] += 1.5
        read(sensor)
    assert read(sensor).inputs[0].idle_s == pytest.approx(506.0)


@pytest.mark.parametrize(("per_s", "unit"), [(1000, "ms"), (1, "s")])
def test_who_types_while_the_unit_is_looked_for_is_never_taken_for_absent(
    services: Services, read: Read, monkeypatch: pytest.MonkeyPatch, per_s: int, unit: str
) -> None:
    clock, counts = [1000.0], [0.3, 0.31, 0.32, 0.29, 0.3, 0.3, 0.301, 0.302, 0.303, 0.3, 0.3]
    monkeypatch.setattr("fallow.agent.owner.desktop.clock_s", lambda: clock[0])
    idle_s = [0.3]
    services.own(SCREEN_SAVER)
    services.answer("/ScreenSaver", "GetSessionIdleTime", lambda: ("u", (int(idle_s[0] * per_s),)))
    services.start()
    sensor = ScreenSaver(Bus("SESSION"))
    sensor.open()
    for idle_s[0] in counts:
        clock[0] += 0.7
        assert (read(sensor).inputs[0].idle_s or 0.0) <= 0.4
    for _ in range(12):
        clock[0] += 1.0
        idle_s[0] += 1.0
        read(sensor)
    assert read(sensor).inputs[0].idle_s == pytest.approx(12.3, abs=0.5)


def test_a_count_that_never_grows_tells_nothing(services: Services, read: Read) -> None:
    """KDE under Wayland."""
    services.own(SCREEN_SAVER)
    services.answer("/ScreenSaver", "GetSessionIdleTime", lambda: ("u", (0,)))
    services.start()
    sensor = ScreenSaver(Bus("SESSION"))
    sensor.open()
    for _ in range(3):
        assert read(sensor).inputs[0].idle_s is None


def test_a_desktop_that_has_no_idle_time_is_absent(services: Services) -> None:
    def refuse() -> Any:
        raise PermissionError("This method is not implemented")

    services.own(SCREEN_SAVER)
    services.answer("/org/freedesktop/ScreenSaver", "GetSessionIdleTime", refuse)
    services.start()
    with pytest.raises(Absent):
        ScreenSaver(Bus("SESSION")).open()


# ------------------------------------------------------------ who keeps the screen on


def test_gnomes_session_names_who_keeps_the_screen_on(services: Services, read: Read) -> None:
    held: dict[str, tuple[int, str]] = {}
    services.own(screen_on.GNOME)
    services.answer(
        screen_on.GNOME_PATH, "IsInhibited", lambda flags: ("b", (any(one & flags for one, _ in held.values()),))
    )
    services.answer(screen_on.GNOME_PATH, "GetInhibitors", lambda: ("ao", (list(held),)))
    for path in ("/org/gnome/SessionManager/Inhibitor1", "/org/gnome/SessionManager/Inhibitor2"):
        services.answer(path, "GetFlags", lambda path=path: ("u", (held[path][0],)))
        services.answer(path, "GetAppId", lambda path=path: ("s", (held[path][1],)))
    services.start()
    sensor = ScreenOn(Bus("SESSION"))
    sensor.open()
    assert read(sensor).screen_on == ""
    held["/org/gnome/SessionManager/Inhibitor1"] = (4, "backup")  # against sleep alone: nobody watches that
    assert read(sensor).screen_on == ""
    held["/org/gnome/SessionManager/Inhibitor2"] = (8, "firefox\n")
    assert read(sensor).screen_on == "firefox"


def test_others_say_that_somebody_keeps_the_screen_on(services: Services, read: Read) -> None:
    answers: dict[str, Any] = {"kde": False, "power": False, "list": []}
    services.own(screen_on.KDE)
    services.own(screen_on.POWER)
    services.answer(screen_on.KDE_PATH, "HasInhibition", lambda which: ("b", (answers["kde"],)))
    services.answer(screen_on.KDE_PATH, "ListInhibitions", lambda: ("a(ss)", (answers["list"],)))
    services.answer(screen_on.POWER_PATH, "HasInhibit", lambda: ("b", (answers["power"],)))
    services.start()
    sensor = ScreenOn(Bus("SESSION"))
    sensor.open()
    assert read(sensor).screen_on == ""
    answers["power"] = True
    assert read(sensor).screen_on == "a program"
    answers.update(kde=True, list=[("vlc", "a film")])
    assert read(sensor).screen_on == "vlc"


def test_no_desktop_keeps_no_screen_on_and_a_silent_one_is_unknown(services: Services) -> None:
    with pytest.raises(Absent):
        ScreenOn(Bus("SESSION")).open()
    services.own(screen_on.GNOME)
    services.start()
    services.silent = True
    sensor, draft = ScreenOn(Bus("SESSION")), Draft(LendingSettings())
    with pytest.raises(Failed):
        sensor.open()
    sensor.unknown(draft)
    assert draft.readings().screen_on is None


# ------------------------------------------------------------ logind


class Logind:
    def __init__(self, services: Services) -> None:
        self.services = services
        self.sessions: dict[str, dict[str, tuple[str, Any]]] = {}
        services.own(LOGIND)
        services.answer(PATH, "ListSessions", lambda: ("a(susso)", (self._rows(),)))
        services.start()

    def _rows(self) -> list[tuple[str, int, str, str, str]]:
        return [(path[-1], 1000, "ann", "seat0", path) for path in self.sessions]

    def log_in(self, path: str = SEAT, **properties: tuple[str, Any]) -> None:
        base: dict[str, tuple[str, Any]] = {
            "Name": ("s", "ann"),
            "Class": ("s", "user"),
            "State": ("s", "active"),
            "Active": ("b", True),
            "Remote": ("b", False),
            "TTY": ("s", ""),
            "IdleHint": ("b", False),
            "IdleSinceHint": ("t", 0),
        }
        self.sessions[path] = {**base, **properties}
        self.services.answer(
            path, "GetAll org.freedesktop.login1.Session", lambda *_: ("a{sv}", (self.sessions[path],))
        )
        self.services.signal(PATH, MANAGER, "SessionNew", "so", path[-1], path)

    def log_out(self, path: str = SEAT) -> None:
        del self.sessions[path]
        self.services.signal(PATH, MANAGER, "SessionRemoved", "so", path[-1], path)


@pytest.fixture
def seat(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    monkeypatch.setattr(logins, "person_devices", lambda: [Path("/dev/input/event0")])


@pytest.mark.usefixtures("seat")
def test_logind_tells_who_is_there_and_who_comes(services: Services, read: Read) -> None:
    logind = Logind(services)
    sensor, draft = Logins(Bus("SYSTEM")), Draft(LendingSettings())
    sensor.open()
    assert read(sensor, draft=draft).nobody == NOBODY_LOGGED_IN
    logind.log_in()
    assert wait_for_news(sensor)
    readings = read(sensor, draft=draft)
    assert readings.sessions == (Session("ann", False, None),)
    assert readings.nobody == ""
    asked = services.calls.count("ListSessions")
    read(sensor, draft=draft)
    assert services.calls.count("ListSessions") == asked, "nothing changed, nothing is asked"
    hour_ago = int((time.time() - 3600) * 1e6)
    logind.log_in(IdleHint=("b", True), IdleSinceHint=("t", hour_ago))
    wait_for_news(sensor)
    (session,) = read(sensor, draft=draft).sessions or ()
    assert session.idle_s == pytest.approx(3600, abs=30)
    logind.log_out()
    wait_for_news(sensor)
    assert read(sensor, draft=draft).nobody == NOBODY_LOGGED_IN


@pytest.mark.usefixtures("seat")
def test_logind_terminals_remote_sessions_and_ours(
    services: Services, read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    logind = Logind(services)
    logind.log_in("/org/freedesktop/login1/session/_32", Remote=("b", True), TTY=("s", "null"), Active=("b", False))
    logind.log_in("/org/freedesktop/login1/session/_33", Name=("s", "gdm"), Class=("s", "greeter"))
    logind.log_in("/org/freedesktop/login1/session/_34", Name=("s", "bob"), State=("s", "closing"))
    logind.log_in("/org/freedesktop/login1/session/_35", Name=("s", "me"))
    monkeypatch.setattr(logins, "_own_name", lambda: "me")
    draft = Draft(LendingSettings())
    draft.inputs["x"] = Input("keyboard or mouse", 5.0)
    sensor = Logins(Bus("SYSTEM"))
    sensor.open()
    remote, mine = read(sensor, draft=draft).sessions or ()
    idle_s = time.time() - os.stat("/dev/null").st_atime
    assert remote == Session("ann", True, pytest.approx(max(0.0, idle_s), abs=30))
    assert mine == Session("me", False, None, seen_by_input=True)


@pytest.mark.usefixtures("seat")
def test_a_system_that_goes_to_sleep_says_so(services: Services, read: Read) -> None:
    Logind(services)
    sensor, draft = Logins(Bus("SYSTEM")), Draft(LendingSettings())
    sensor.open()
    assert not read(sensor, draft=draft).going_to_sleep
    services.signal(PATH, MANAGER, "PrepareForSleep", "b", True)
    assert wait_for_news(sensor)
    assert read(sensor, draft=draft).going_to_sleep
    services.signal(PATH, MANAGER, "PrepareForSleep", "b", False)
    assert wait_for_news(sensor)
    assert not read(sensor, draft=draft).going_to_sleep


def test_processes_are_walked_through_again_only_once_somebody_has_typed_on_a_console(
    quiet_environment: object, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks, found, typed_s = [0], [list[Session]()], [5.0]

    def walk() -> list[Session]:
        walks[0] += 1
        return found[0]

    monkeypatch.setattr(logins, "UTMP", ())
    monkeypatch.setattr(logins, "WALK_EVERY_S", 0.0)
    monkeypatch.setattr(logins, "_of_terminals", walk)
    monkeypatch.setattr(logins, "_last_typed_s", lambda: typed_s[0])
    sensor = Logins(Bus("SYSTEM"))
    sensor.open()
    for _ in range(3):
        read(sensor)
    assert walks == [1]
    typed_s[0], found[0] = 6.0, [Session("ann", False, 3.0)]
    for _ in range(3):
        assert [one.user for one in read(sensor).sessions or ()] == ["ann"]
    assert walks == [4], "who is there is followed"
    monkeypatch.setattr(logins, "WALK_ANYWAY_S", 0.0)
    found[0] = []
    for _ in range(3):
        read(sensor)
    assert walks == [7], "a login without a key is found too, later"


def test_without_devices_display_and_session_it_is_a_server(
    quiet_environment: object, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "person_devices", list)
    monkeypatch.setattr(logins, "UTMP", ())
    monkeypatch.setattr(logins, "_of_terminals", list)
    monkeypatch.setattr(logins, "WALK_EVERY_S", 0.0)
    monkeypatch.setattr(logins, "WALK_ANYWAY_S", 0.0)
    sensor = Logins(Bus("SYSTEM"))
    sensor.open()
    assert read(sensor).nobody == SERVER
    monkeypatch.setattr(logins, "_of_terminals", lambda: [Session("ann", False, 3.0)])
    assert read(sensor).nobody == ""
    monkeypatch.setattr(logins, "_of_terminals", list)
    monkeypatch.setenv("DISPLAY", ":77")
    assert read(sensor).nobody == ""
    monkeypatch.delenv("DISPLAY")
    monkeypatch.setattr(logins, "person_devices", lambda: ["event0"])
    assert read(sensor).nobody == ""


# ------------------------------------------------------------ NetworkManager


@pytest.mark.parametrize(("value", "metered"), [(0, False), (1, True), (2, False), (3, True), (4, False)])
def test_metered_networks(services: Services, read: Read, value: int, metered: bool) -> None:
    services.own(NETWORK_MANAGER)
    services.answer(NETWORK_MANAGER_PATH, "Get Metered", lambda *_: ("v", (("u", value),)))
    services.start()
    sensor = Metered(Bus("SYSTEM"))
    sensor.open()
    assert read(sensor).metered is metered
    services.signal(
        NETWORK_MANAGER_PATH, "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as",
        NETWORK_MANAGER, {"Metered": ("u", value)}, [],
    )  # fmt: skip
    assert wait_for_news(sensor)
    draft = Draft(LendingSettings())
    sensor.unknown(draft)
    assert draft.readings().metered is None
    sensor.absent(draft)
    assert draft.readings().metered is False
