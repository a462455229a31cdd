"""Wayland: the wire protocol against a compositor's side of it, over a real socket."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fallow.agent.owner.sensor import Absent, Failed
from fallow.agent.owner.wayland import IDLE_MS, Wayland, wayland_sockets
from fallow.core.owner_readings import Readings

from .conftest import DEADLINE_S, poll, wait_for_news

Read = Callable[..., Readings]


class Compositor:
    """Announces globals, makes notifications, and sends what a test says."""

    def __init__(self, path: Path, *interfaces: str) -> None:
        self.interfaces = interfaces
        self.timeouts: list[int] = []
        self.notifications: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def send(self, target: int, opcode: int, body: bytes = b"") -> None:
        self.peer.sendall(struct.pack("=II", target, (8 + len(body)) << 16 | opcode) + body)

    def idled(self, place: int = 0) -> None:
        self.send(self.notifications[place], 0)

    def resumed(self, place: int = 0) -> None:
        self.send(self.notifications[place], 1)

    def announce(self, number: int, interface: str) -> None:
        name = interface.encode() + b"\0"
        padded = name + b"\0" * (-len(name) % 4)
        self.send(self.registry, 0, struct.pack("=II", number, len(name)) + padded + struct.pack("=I", 1))

    def withdraw(self, number: int) -> None:
        self.send(self.registry, 1, struct.pack("=I", number))

    def _serve(self) -> None:
        self.peer, _ = self._listener.accept()
        registry, made, data = 0, {}, b""
        try:
            while more := self.peer.recv(4096):
                data += more
                while len(data) >= 8:
                    target, word = struct.unpack_from("=II", data)
                    size, opcode = word >> 16, word & 0xFFFF
                    if len(data) < size:
                        break
                    body, data = data[8:size], data[size:]
                    if target == 1 and opcode == 1:
                        (registry,) = struct.unpack("=I", body)
                        self.registry = registry
                        for number, interface in enumerate(self.interfaces):
                            self.announce(number, interface)
                    elif target == 1 and opcode == 0:
                        self.send(struct.unpack("=I", body)[0], 0, struct.pack("=I", 0))
                    elif target == registry:
                        number, length = struct.unpack_from("=II", body)
                        made[struct.unpack_from("=I", body, len(body) - 4)[0]] = body[8 : 8 + length - 1].decode()
                    elif made.get(target) == "ext_idle_notifier_v1" and opcode == 1:
                        notification, timeout, seat = struct.unpack("=III", body)
                        assert made[seat] == "wl_seat"
                        self._made(notification, timeout)
                    elif made.get(target) == "org_kde_kwin_idle" and opcode == 0:
                        notification, seat, timeout = struct.unpack("=III", body)
                        assert made[seat] == "wl_seat"
                        self._made(notification, timeout)
        except OSError:
            pass

    def _made(self, notification: int, timeout: int) -> None:
        self.notifications.append(notification)
        self.timeouts.append(timeout)

    def close(self) -> None:
        self._listener.close()
        if hasattr(self, "peer") and self.peer.fileno() >= 0:
            self.peer.shutdown(socket.SHUT_RDWR)
            self.peer.close()
        self._thread.join(DEADLINE_S)


@pytest.fixture
def compositor(quiet_environment: Path) -> Iterator[Callable[..., Compositor]]:
    made: list[Compositor] = []

    def start(*interfaces: str) -> Compositor:
        made.append(Compositor(quiet_environment / "wayland-0", *interfaces))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize("interface", ["ext_idle_notifier_v1", "org_kde_kwin_idle"])
def test_rest_and_return(compositor: Callable[..., Compositor], read: Read, interface: str) -> None:
    other = compositor("wl_compositor", "wl_seat", interface)
    (path,) = wayland_sockets()
    sensor = Wayland(path)
    sensor.open()
    assert other.timeouts == [IDLE_MS]
    assert read(sensor).inputs[0].idle_s == 0.0
    other.idled()
    reading = poll("rest", lambda: next((one for one in read(sensor).inputs if one.idle_s), None))
    assert reading.notifies
    assert reading.proves
    other.resumed()
    assert wait_for_news(sensor)
    assert read(sensor).inputs[0].idle_s == 0.0
    sensor.close()


def test_a_seat_that_comes_later_is_watched_and_one_that_goes_is_not_waited_for(
    compositor: Callable[..., Compositor], read: Read
) -> None:
    """A second desk, or a remote desktop's own."""
    other = compositor("wl_seat", "ext_idle_notifier_v1")
    sensor = Wayland(wayland_sockets()[0])
    sensor.open()
    other.idled()
    poll("rest", lambda: read(sensor).inputs[0].idle_s)
    other.announce(17, "wl_seat")
    poll("the new seat's input", lambda: read(sensor).inputs[0].idle_s == 0.0)
    poll("its notification", lambda: len(other.notifications) == 2)
    assert other.timeouts == [IDLE_MS] * 2
    other.idled(1)
    poll("rest at both", lambda: read(sensor).inputs[0].idle_s)
    other.resumed(1)
    assert wait_for_news(sensor)
    assert read(sensor).inputs[0].idle_s == 0.0
    other.withdraw(17)
    poll("rest at the one that is left", lambda: read(sensor).inputs[0].idle_s)
    other.withdraw(0)
    with pytest.raises(Failed, match="no seat"):
        poll("the end", lambda: read(sensor) and False)
    sensor.close()


def test_a_compositor_without_the_protocol_and_one_that_goes(
    compositor: Callable[..., Compositor], quiet_environment: Path, read: Read
) -> None:
    with pytest.raises(Absent):
        Wayland(str(quiet_environment / "wayland-7")).open()
    other = compositor("wl_compositor", "wl_seat")
    sensor = Wayland(str(quiet_environment / "wayland-0"))
    with pytest.raises(Failed, match="ext-idle-notify"):
        sensor.open()
    other.close()


def test_a_compositor_that_ends_is_said(
    compositor: Callable[..., Compositor], quiet_environment: Path, read: Read
) -> None:
    other = compositor("wl_seat", "ext_idle_notifier_v1")
    sensor = Wayland(str(quiet_environment / "wayland-0"))
    sensor.open()
    other.close()
    with pytest.raises(Failed, match="has gone"):
        poll("the end", lambda: read(sensor) and False)
    sensor.close()
