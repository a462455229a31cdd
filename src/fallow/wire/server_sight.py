"""Which NATS servers of a pool see each other: a word to each by itself, heard at all the others or not."""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from fallow.model.errors import FallowError
from fallow.wire.address import PoolAddress
from fallow.wire.plain_nats import PlainNats

LIMIT_S = 2.0
_AGAIN_S = 0.1
"""Servers tell each other what is subscribed to; a word that came too early is said again."""


class ServerSight(Struct, frozen=True):
    """`server`: HOST:PORT. `trouble`: why it cannot be used, '' where it can. `sees`: servers whose words arrive at
    it, not itself."""

    server: str
    trouble: str = ""
    sees: tuple[str, ...] = ()


def look_at_servers(address: PoolAddress, limit_s: float = LIMIT_S) -> tuple[ServerSight, ...]:
    """Blocks up to about twice `limit_s`; at most as long as it takes where all see each other."""
    servers = tuple(dict.fromkeys(address.servers))
    credentials = {"auth_token": address.secret}
    trouble: dict[str, str] = {}

    def reach(server: str) -> PlainNats | None:
        try:
            return PlainNats(server, credentials, 2 * limit_s)
        except FallowError as error:
            trouble[server] = str(error).rstrip(".")
            return None

    with ThreadPoolExecutor(len(servers), "look") as pool:
        made = [connection for connection in pool.map(reach, servers) if connection is not None]
    try:
        sees = _who_hears(made, trouble, limit_s)
    finally:
        for connection in made:
            connection.close()
    return tuple(
        ServerSight(server, trouble.get(server, ""), tuple(one for one in servers if one in sees.get(server, ())))
        for server in servers
    )


def _who_hears(made: Sequence[PlainNats], trouble: dict[str, str], limit_s: float) -> dict[str, set[str]]:
    subject = f"fw.look.{secrets.token_hex(8)}"
    names = {connection.server: number for number, connection in enumerate(made)}
    heard: dict[str, set[str]] = {connection.server: {connection.server} for connection in made}
    left = list(made)

    def lose(connection: PlainNats, error: FallowError) -> None:
        trouble[connection.server] = str(error).rstrip(".")
        left.remove(connection)

    for connection in made:
        try:
            connection.subscribe(f"{subject}.*")
        except FallowError as error:
            lose(connection, error)
    end = time.monotonic() + limit_s
    while time.monotonic() < end and any(len(heard[one.server]) < len(left) for one in left):
        for connection in list(left):
            try:
                connection.publish(f"{subject}.{names[connection.server]}")
            except FallowError as error:
                lose(connection, error)
        again = time.monotonic() + _AGAIN_S
        while (left_s := again - time.monotonic()) > 0 and any(len(heard[one.server]) < len(left) for one in left):
            ready, _, _ = select.select(left, [], [], left_s)
            for connection in ready:
                try:
                    for said, _ in connection.heard():
                        heard[connection.server].add(made[int(said.rpartition(".")[2])].server)
                except FallowError as error:
                    lose(connection, error)
    return {server: found - {server} for server, found in heard.items()}


def sight_words(seen: Sequence[ServerSight]) -> list[str]:
    """What is wrong among the servers, a sentence for each thing; nothing where all is well."""
    words = [f"{one.trouble}: of this pool's NATS servers it cannot be used." for one in seen if one.trouble]
    groups = server_groups(seen)
    if len(groups) > 1:
        parts = "; ".join(" and ".join(group) for group in groups)
        words.append(
            f"the NATS servers do not all see each other: {parts}. Who is at one of these does not reach who is at "
            "another. Give each --cluster, a --route to the others, and the same file `token`; what `fallow nats` says "
            "there tells which route fails, and why."
        )
    return words


def server_groups(seen: Sequence[ServerSight]) -> list[tuple[str, ...]]:
    """Servers that can be used, those together which see each other."""
    groups: list[tuple[str, ...]] = []
    for one in seen:
        if one.trouble or any(one.server in group for group in groups):
            continue
        both = [two.server for two in seen if not two.trouble and two.server in one.sees and one.server in two.sees]
        groups.append(tuple(sorted({one.server, *both}, key=[each.server for each in seen].index)))
    return groups
