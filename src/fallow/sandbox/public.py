"""Which addresses are public, as rules of nftables: a sandbox with network reaches these and nothing else."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# fmt: off
REFUSED_4 = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "168.63.129.16/32", "224.0.0.0/3",
)
"""The special-purpose registry of IANA, multicast, reserved and broadcast, and one cloud's metadata address."""
REFUSED_6 = (
    "::/8", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    "5f00::/16", "fc00::/7", "fe80::/9", "ff00::/8",
)
"""Also what carries an IPv4 address in it (mapped, NAT64, 6to4, Teredo), which could be a private one."""
# fmt: on
_REFUSED: dict[int, tuple[Network, ...]] = {
    4: tuple(ipaddress.IPv4Network(word) for word in REFUSED_4),
    6: tuple(ipaddress.IPv6Network(word) for word in REFUSED_6),
}
_WIDEST = {4: 1, 6: 3}
"""Routes up to this length lead to the whole internet, in two halves or one; they are no network of the owner's."""


def routed(route: str, ipv6_route: str) -> list[Network]:
    """The networks that the machine knows a route to, in the texts of /proc/net/route and /proc/net/ipv6_route."""
    found: list[Network] = []
    for line in route.splitlines()[1:]:
        words = line.split()
        if len(words) > 7:
            base, mask = (struct.pack("=I", int(words[column], 16)) for column in (1, 7))
            length = int.from_bytes(mask, "big").bit_count()
            found.append(ipaddress.IPv4Network((base, length), strict=False))
    for line in ipv6_route.splitlines():
        words = line.split()
        if len(words) > 1:
            found.append(ipaddress.IPv6Network((bytes.fromhex(words[0]), int(words[1], 16)), strict=False))
    return [network for network in found if network.prefixlen > _WIDEST[network.version]]


def addresses(words: Iterable[str]) -> list[Network]:
    """Single addresses as networks; what is none (hardware addresses) is left out."""
    found: list[Network] = []
    for word in words:
        try:
            found.append(ipaddress.ip_network(word.partition("%")[0]))
        except ValueError:
            continue
    return found


def rules(own: Iterable[Network]) -> str:
    """For a network namespace that has nothing but a way out. `own`: the machine's addresses and networks, refused
    even where they are public ones: a neighbour with a public address is the owner's neighbour."""
    refused: dict[int, list[Network]] = {
        4: [ipaddress.ip_network(word) for word in REFUSED_4],
        6: [ipaddress.ip_network(word) for word in REFUSED_6],
    }
    for network in own:
        refused[network.version].append(network)
    sets = {version: ", ".join(str(network) for network in _merged(networks)) for version, networks in refused.items()}
    neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert } accept"
    return "\n".join(
        (
            "table inet fallow {",
            f"set refused4 {{ type ipv4_addr; flags interval; elements = {{ {sets[4]} }}; }}",
            f"set refused6 {{ type ipv6_addr; flags interval; elements = {{ {sets[6]} }}; }}",
            "chain leaving { type filter hook output priority 0; policy drop;",
            'oif "lo" accept',
            neighbours,
            "ip daddr @refused4 reject",
            "ip6 daddr @refused6 reject",
            "meta l4proto { tcp, udp } accept",
            "}",
            "chain arriving { type filter hook input priority 0; policy drop;",
            'iif "lo" accept',
            "ct state established,related accept",
            neighbours,
            "}",
            "}",
        )
    )


def is_public(address: str, own: Iterable[Network]) -> bool:
    """Whether an address is one that a sandbox with network may reach. `own`: the machine's networks."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    refused = _REFUSED[found.version]
    return not any(found in network for network in (*refused, *own) if network.version == found.version)


def _merged(networks: list[Network]) -> list[Network]:
    """Intervals of a set may not overlap."""
    return list(ipaddress.collapse_addresses(networks))  # type: ignore[type-var]


def own_networks() -> list[Network]:
    """Of this machine, now."""
    import psutil

    texts = []
    for path in ("/proc/net/route", "/proc/net/ipv6_route"):
        try:
            with open(path) as file:
                texts.append(file.read())
        except OSError:
            texts.append("")
    found = routed(texts[0], texts[1])
    families = (socket.AF_INET, socket.AF_INET6)
    for interface in psutil.net_if_addrs().values():
        found += addresses(entry.address for entry in interface if entry.family in families)
    return found
