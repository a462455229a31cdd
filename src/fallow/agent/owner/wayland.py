"""Wayland: ext-idle-notify-v1 (GNOME 47, KDE 5.27, sway 1.8 and their like) or KDE's older idle protocol.

A client of the wire protocol that says no more than these two need: https://wayland.freedesktop.org/docs/html/ch04.html.
The compositor tells when input has ceased for IDLE_MS and when it comes again; an idle inhibitor (a film) counts as
input.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from pathlib import Path

from fallow.agent.owner.sensor import Absent, Draft, Failed, InputSensor, clock_s
from fallow.core.owner_readings import Input

USERS = Path("/run/user")
FIRST_PERSON = 1000
IDLE_MS = 2000
WAIT_S = 1.0
MOST_BUFFER = 1 << 20

DISPLAY = 1
GET_REGISTRY, SYNC = 1, 0
GLOBAL, GLOBAL_REMOVE, DONE, ERROR = 0, 1, 0, 0
BIND = 0
NOTIFIERS = {
    # interface: (request that makes a notification, its arguments in order, events idled and resumed)
    "ext_idle_notifier_v1": (1, ("id", "timeout", "seat"), 0, 1),
    "org_kde_kwin_idle": (0, ("id", "seat", "timeout"), 0, 1),
}


def wayland_sockets() -> list[str]:
    """Paths of the compositors of this user, the environment's first; root sees those of all who log in."""
    folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    named = os.environ.get("WAYLAND_DISPLAY", "")
    found = [str(Path(folder, named))] if named else []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    found += [str(Path(folder, name)) for name in names if re.fullmatch(r"wayland-\d+", name) and name != named]
    if os.geteuid() == 0:
        found += [
            str(path) for path in sorted(USERS.glob("*/wayland-*")) if _is_a_persons(path) and str(path) not in found
        ]
    return found


def _is_a_persons(path: Path) -> bool:
    """The login screen's is a system user's."""
    try:
        return re.fullmatch(r"wayland-\d+", path.name) is not None and path.stat().st_uid >= FIRST_PERSON
    except OSError:
        return False


class Wayland(InputSensor):
    def __init__(self, path: str) -> None:
        self.path = path
        own = os.environ.get("XDG_RUNTIME_DIR") or str(USERS / str(os.getuid()))
        whose = "" if os.path.dirname(path) == own else f" of user {Path(path).parent.name}"
        self.name = f"keyboard or mouse (Wayland {Path(path).name}{whose})"
        self._socket: socket.socket | None = None

    def open(self) -> None:
        self._buffer = b""
        self._next_id = DISPLAY + 1
        self._globals: dict[str, tuple[int, int]] = {}
        self._seats: list[int] = []
        self._notifier = 0
        self._watched: dict[int, int] = {}
        """The notification of each seat: of those that came later too (a second desk, a remote desktop's)."""
        self._idle: dict[int, bool] = {}
        """By notification."""
        self._input_s = clock_s()
        """As far as is known: the compositor says nothing of the time before."""
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(WAIT_S)
            self._socket.connect(self.path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self.close()
            raise Absent from error
        except OSError as error:
            self.close()
            raise Failed(f"the Wayland compositor at {self.path} cannot be asked: {error.strerror}") from error
        try:
            self._subscribe()
        except (OSError, struct.error) as error:
            self.close()
            raise Failed(f"the Wayland compositor at {self.path} does not answer ({error})") from error

    def _subscribe(self) -> None:
        self._registry = self._new()
        self._send(DISPLAY, GET_REGISTRY, struct.pack("=I", self._registry))
        self._roundtrip()
        interface = next((name for name in NOTIFIERS if name in self._globals), None)
        if interface is None or not self._seats:
            self.close()
            raise Failed(
                "this Wayland compositor has no ext-idle-notify protocol, so that it does not tell of input: "
                "newer ones do"
            )
        self._request, self._order, self._idled, self._resumed = NOTIFIERS[interface]
        self._notifier = self._bind(self._globals[interface][0], interface, 1)
        for number in self._seats:
            self._watch(number)
        self._roundtrip()

    def _watch(self, number: int) -> None:
        seat, notification = self._bind(number, "wl_seat", 1), self._new()
        values = {"id": notification, "timeout": IDLE_MS, "seat": seat}
        self._send(self._notifier, self._request, struct.pack("=III", *(values[name] for name in self._order)))
        self._watched[number], self._idle[notification] = notification, False

    # ------------------------------------------------------------ the wire

    def _new(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _bind(self, number: int, interface: str, version: int) -> int:
        name = interface.encode() + b"\0"
        padded = name + b"\0" * (-len(name) % 4)
        made = self._new()
        body = struct.pack("=II", number, len(name)) + padded + struct.pack("=II", version, made)
        self._send(self._registry, BIND, body)
        return made

    def _send(self, target: int, opcode: int, body: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(struct.pack("=II", target, (8 + len(body)) << 16 | opcode) + body)

    def _roundtrip(self) -> None:
        """Wait until the compositor has answered all that was asked."""
        assert self._socket is not None
        self._callback, self._answered = self._new(), False
        self._send(DISPLAY, SYNC, struct.pack("=I", self._callback))
        deadline = time.monotonic() + WAIT_S
        while not self._answered:
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
            self._receive()

    def _receive(self) -> None:
        assert self._socket is not None
        data = self._socket.recv(1 << 16)
        if not data or len(self._buffer) > MOST_BUFFER:
            raise ConnectionError("it closed the connection")
        self._buffer += data
        while len(self._buffer) >= 8:
            target, word = struct.unpack_from("=II", self._buffer)
            size, opcode = word >> 16, word & 0xFFFF
            if size < 8:
                raise ConnectionError("it sent a message that cannot be")
            if len(self._buffer) < size:
                return
            body, self._buffer = self._buffer[8:size], self._buffer[size:]
            self._event(target, opcode, body)

    def _event(self, target: int, opcode: int, body: bytes) -> None:
        if target == DISPLAY and opcode == ERROR:
            raise ConnectionError("it refused a request")
        if target == self._registry and opcode == GLOBAL:
            number, length = struct.unpack_from("=II", body)
            interface = body[8 : 8 + length - 1].decode("utf-8", "replace")
            (version,) = struct.unpack_from("=I", body, 8 + (length + 3) // 4 * 4)
            if interface == "wl_seat":
                self._seats.append(number)
                if self._notifier:
                    self._watch(number)
            self._globals.setdefault(interface, (number, version))
        elif target == self._registry and opcode == GLOBAL_REMOVE:
            (number,) = struct.unpack_from("=I", body)
            if number in self._watched:
                # A hand that pulls a plug; and what is gone will never be said to be idle.
                self._seats.remove(number)
                del self._idle[self._watched.pop(number)]
                self._input_s = clock_s()
        elif target == self._callback and opcode == DONE:
            self._answered = True
        elif target in self._idle:
            now_s = clock_s()
            if opcode == self._idled and not self._idle[target]:
                self._idle[target] = True
                self._input_s = max(self._input_s, now_s - IDLE_MS / 1000)
            elif opcode == self._resumed:
                self._idle[target] = False
                self._input_s = now_s

    # ------------------------------------------------------------ the sensor

    def files(self) -> list[int]:
        return [self._socket.fileno()] if self._socket is not None else []

    def news(self) -> bool:
        assert self._socket is not None
        self._socket.setblocking(False)
        try:
            self._receive()
        except BlockingIOError:
            pass
        except OSError as error:
            raise Failed(f"the Wayland compositor at {self.path} has gone ({error})") from error
        return not self._is_idle()

    def _is_idle(self) -> bool:
        return all(self._idle.values())

    def read(self, draft: Draft) -> None:
        self.news()
        if not self._seats:
            raise Failed(f"the Wayland compositor at {self.path} has no seat any more: it cannot tell of input")
        idle_s = clock_s() - self._input_s if self._is_idle() else 0.0
        draft.inputs[self.name] = Input("keyboard or mouse", idle_s, notifies=True)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
