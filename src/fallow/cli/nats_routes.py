"""What becomes of a NATS server's routes, in words: which of the others it has joined, who is silent, who refuses it.

A server tries its routes for ever and says so in its log alone; without this, one with another secret than the others'
would look as if it were one of them.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from fallow.cli.nats_server import CLUSTER_NAME, monitor_path

LIMIT_S = 1.0
FIRST_S = 1.0
"""Until the second look; servers that start together need about so long to find each other."""
WHILE_ALONE_S = 2.0
JOINED_S = 5.0
REFUSED_LOOKS = 3
"""So many looks in a row it must answer and not have joined: a route is dialled again after a second or two."""

JOINED, SILENT, REFUSED, OTHER, ITSELF = "joined", "silent", "refused", "other", "itself"


class Greeting(Struct, frozen=True):
    """What the server at a route says of itself: '' where nobody answers, or no NATS server."""

    server_id: str = ""
    cluster: str = ""
    is_there: bool = False


class RouteWatch:
    """Of one server. `monitor` finds where it tells of itself (HOST:PORT; '': not yet), under the path that goes with
    `token`, which lies in `home`. `say` takes sentences."""

    def __init__(
        self, monitor: Callable[[], str], routes: tuple[str, ...], token: str, home: str, say: Callable[[str], None]
    ) -> None:
        self._monitor = monitor
        self._routes = routes
        self._token = token
        self._home = home
        self._say = say
        self._told: dict[str, str] = {}
        self._answering: dict[str, int] = {}
        self._ids: dict[str, str] = {}
        self._routes_before: set[tuple[str, str]] = set()
        self._looks = 0
        self.next_s = 0.0
        """When (monotonic) to look again."""

    def look(self) -> None:
        """Ask, and say what is new. Blocks up to about two seconds where something is silent."""
        self._looks += 1
        own, joined = self._joined()
        if own:
            greetings = self._greetings(joined)
            for route in self._routes:
                self._judge(route, own, joined, greetings.get(route))
        well = all(self._told.get(route) in (JOINED, ITSELF) for route in self._routes)
        self.next_s = time.monotonic() + (
            FIRST_S if self._looks <= REFUSED_LOOKS else JOINED_S if well else WHILE_ALONE_S
        )

    def _joined(self) -> tuple[str, set[str]]:
        """Identifiers of this server and of those that it has joined; '' where it does not answer now."""
        address = self._monitor()
        if not address:
            return "", set()
        connection = http.client.HTTPConnection(address, timeout=LIMIT_S)
        try:
            connection.request("GET", f"/{monitor_path(self._token)}/routez")
            told = json.loads(connection.getresponse().read())
            routes = {(str(route["remote_id"]), str(route["rid"])) for route in told.get("routes") or ()}
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return "", set()
        finally:
            connection.close()
        # A route that is about to be refused is one of them for a moment, and the next attempt is another.
        steady, self._routes_before = routes & self._routes_before, routes
        return str(told["server_id"]), {server_id for server_id, _ in steady}

    def _greetings(self, joined: set[str]) -> Mapping[str, Greeting]:
        """Of those routes whose server is not known to have joined: each look is a line in the other's log."""
        unsure = [route for route in self._routes if self._ids.get(route) not in joined]
        if not unsure:
            return {}
        with ThreadPoolExecutor(len(unsure), "routes") as pool:
            return dict(zip(unsure, pool.map(greeting, unsure), strict=True))

    def _judge(self, route: str, own: str, joined: set[str], greeting: Greeting | None) -> None:
        if greeting is not None and greeting.server_id:
            self._ids[route] = greeting.server_id
        if greeting is None or (greeting.server_id and greeting.server_id in joined):
            self._tell(route, JOINED, f"the route {route} is up: that server and this one are of one cluster.")
        elif greeting.server_id == own:
            self._tell(route, ITSELF, "")
        elif not greeting.is_there:
            again = "any more" if self._told.get(route) == JOINED else "yet"
            self._tell(route, SILENT, f"nothing answers {again} at the route {route}; it is tried for ever.")
        elif not greeting.server_id:
            self._tell(route, OTHER, f"what answers at the route {route} is no NATS server's --cluster address.")
        else:
            self._answering[route] = self._answering.get(route, 0) + 1
            if self._answering[route] >= REFUSED_LOOKS:
                self._tell(route, REFUSED, self._refused(route, greeting))
            return
        self._answering[route] = 0

    def _refused(self, route: str, greeting: Greeting) -> str:
        if greeting.cluster and greeting.cluster != CLUSTER_NAME:
            return (
                f"the server at the route {route} is of the cluster {greeting.cluster!r}, and this one of "
                f"{CLUSTER_NAME!r}: they do not join. Start that one with `fallow nats`."
            )
        return (
            f"the server at the route {route} answers, but the two have not joined: messages do not pass between them. "
            f"They must have the same secret: copy one file `token` to the homes of both (here {self._home}/token), "
            "and start the one that had another again."
        )

    def _tell(self, route: str, state: str, words: str) -> None:
        if self._told.get(route) != state and words:
            self._say(words)
        self._told[route] = state


def greeting(route: str) -> Greeting:
    """What is said first at a server's --cluster address."""
    host, _, port = route.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), LIMIT_S) as connection:
            connection.settimeout(LIMIT_S)
            said = b""
            while b"\r\n" not in said and (data := connection.recv(65536)):
                said += data
    except OSError:
        return Greeting()
    word, _, rest = said.partition(b" ")
    try:
        told = json.loads(rest.partition(b"\r\n")[0]) if word == b"INFO" else {}
        return Greeting(str(told.get("server_id", "")), str(told.get("cluster", "")), is_there=True)
    except ValueError:
        return Greeting(is_there=True)
