"""D-Bus for sensors: one connection for each bus, shared; short answers or none; signals collected for their sensor."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from fallow.agent.owner.sensor import Absent, Failed

ANSWER_WAIT_S = 0.3
MOST_SIGNALS = 256
SYSTEM_SOCKETS = ("/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket")


def bus_address(kind: str) -> str:
    """Where the 'SESSION' or 'SYSTEM' bus listens; '': nowhere."""
    if kind == "SESSION":
        named = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
        path = f"{os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.getuid()}'}/bus"
        return named or (f"unix:path={path}" if os.path.exists(path) else "")
    named = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")
    return named or next((f"unix:path={path}" for path in SYSTEM_SOCKETS if os.path.exists(path)), "")


class Bus:
    """One connection. Opened by the first sensor that needs it, closed when any call finds it broken."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._connection: Any = None
        self.generation = 0
        """Grows with each connection: subscriptions of an older one are gone."""

    def connect(self) -> None:
        """Raises Absent where there is no such bus, Failed where it does not let the agent in."""
        if self._connection is not None:
            return
        address = bus_address(self.kind)
        if not address:
            raise Absent
        try:
            from jeepney.io.blocking import open_dbus_connection
        except ImportError as missing:
            raise Failed("D-Bus is not read: the package jeepney is missing") from missing
        try:
            self._connection = open_dbus_connection(address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Absent from error
        except Exception as error:
            raise Failed(f"the {self.kind.lower()} bus does not let the agent in ({error})") from error
        self.generation += 1

    def call(
        self, name: str, path: str, interface: str, method: str, signature: str = "", *arguments: Any
    ) -> tuple[Any, ...]:
        """The answer's values. Raises Absent where nobody owns the name, Failed where the answer is an error."""
        self.connect()
        from jeepney import DBusAddress, MessageFlag, MessageType, new_method_call

        message = new_method_call(DBusAddress(path, name, interface), method, signature or None, arguments)
        # A question must never start the program that would answer it.
        message.header.flags |= MessageFlag.no_auto_start
        try:
            reply = self._connection.send_and_get_reply(message, timeout=ANSWER_WAIT_S)
        except TimeoutError as error:
            # The answer may still come, and would be taken for another's: begin anew.
            self.close()
            raise Failed(f"{name} on the {self.kind.lower()} bus does not answer") from error
        except Exception as error:
            self.close()
            raise Failed(f"the {self.kind.lower()} bus has gone ({error or type(error).__name__})") from error
        if reply.header.message_type is MessageType.error:
            from jeepney import HeaderFields

            kind = str(reply.header.fields.get(HeaderFields.error_name, ""))
            if kind.rpartition(".")[2] in ("ServiceUnknown", "NameHasNoOwner", "UnknownObject", "UnknownMethod"):
                raise Absent(kind)
            raise Failed(f"{name} refuses {method}: {reply.body[0] if reply.body else kind}")
        return tuple(reply.body)

    def property(self, name: str, path: str, interface: str, which: str) -> Any:
        ((_, value),) = self.call(name, path, "org.freedesktop.DBus.Properties", "Get", "ss", interface, which)
        return value

    def properties(self, name: str, path: str, interface: str) -> dict[str, Any]:
        (found,) = self.call(name, path, "org.freedesktop.DBus.Properties", "GetAll", "s", interface)
        return {key: value for key, (_, value) in found.items()}

    def subscribe(self, sender: str, interface: str, member: str, path_namespace: str = "") -> deque[Any]:
        """Signals of that kind, as they come."""
        from jeepney import MatchRule

        rule = f"type='signal',sender='{sender}',interface='{interface}',member='{member}'"
        if path_namespace:
            rule += f",path_namespace='{path_namespace}'"
        self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch", "s", rule)
        queue: deque[Any] = deque(maxlen=MOST_SIGNALS)
        matches = MatchRule(type="signal", interface=interface, member=member, path_namespace=path_namespace or None)
        self._connection.filter(matches, queue=queue).__enter__()
        return queue

    def file(self) -> int | None:
        return None if self._connection is None else self._connection.sock.fileno()

    def pump(self) -> None:
        """Take what has come without waiting."""
        while self._connection is not None:
            try:
                self._connection.recv_messages(timeout=0)
            except TimeoutError:
                return
            except Exception as error:
                self.close()
                raise Failed(f"the {self.kind.lower()} bus has gone ({error or type(error).__name__})") from error

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except OSError:
                pass
