"""Stand-ins on a real bus for what desktops and systems offer there: methods that answer what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from jeepney import DBusAddress, HeaderFields, MessageType, new_error, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

Answer = tuple[str, tuple[Any, ...]]
"""Signature and values."""


class Services:
    """One connection that owns names and answers calls from a table, in a thread of its own."""

    def __init__(self, address: str) -> None:
        self._connection = open_dbus_connection(address)
        self._answers: dict[tuple[str, str], Callable[..., Answer]] = {}
        self.calls: list[str] = []
        self.silent = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def own(self, name: str) -> None:
        assert self._thread is None, "names are owned before the service starts"
        self._connection.send_and_get_reply(message_bus.RequestName(name), timeout=30)

    def answer(self, path: str, member: str, answer: Callable[..., Answer]) -> None:
        """`member` without its interface, or 'Get Name' for a property."""
        self._answers[path, member] = answer

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def signal(self, path: str, interface: str, member: str, signature: str, *values: Any) -> None:
        self._connection.send(new_signal(DBusAddress(path, interface=interface), member, signature, values))

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                call = self._connection.receive(timeout=0.05)
            except TimeoutError:
                continue
            except Exception:
                return
            if call.header.message_type is not MessageType.method_call or self.silent:
                continue
            fields = call.header.fields
            path, member = fields[HeaderFields.path], fields[HeaderFields.member]
            key = f"{member} {call.body[-1]}" if member in ("Get", "GetAll") else member
            self.calls.append(key)
            found = self._answers.get((path, key))
            if found is None:
                error = "org.freedesktop.DBus.Error.UnknownMethod"
                self._connection.send(new_error(call, error, "s", (f"no {member}",)))
                continue
            try:
                signature, values = found(*call.body)
            except PermissionError as refused:
                error = "org.freedesktop.DBus.Error.NotSupported"
                self._connection.send(new_error(call, error, "s", (str(refused),)))
                continue
            self._connection.send(new_method_return(call, signature, values))

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(30)
        self._connection.close()
