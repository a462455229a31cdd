"""A sandbox with network reaches public addresses, and nothing of the owner's."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fallow.sandbox.bubblewrap import BubblewrapSandbox
from fallow.sandbox.egress import egress_layer
from fallow.sandbox.public import REFUSED_4, REFUSED_6, addresses, routed, rules

from .conftest import working
from .egress_machine import NEIGHBOUR, OWN, PRIVATE, PUBLIC

MACHINE = Path(__file__).with_name("egress_machine.py")


def _on_a_machine(folder: Path, name: str, *left_out: str) -> dict:  # type: ignore[type-arg]
    working(name)
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "ip", "link", "add", "type", "veth"]).returncode:
        pytest.skip("not root with a network of its own to try: no machine with an internet can be built")
    missing = [name for name in ("pasta", "nft") if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if missing or not os.path.exists("/dev/net/tun"):
        pytest.skip(f"missing here: {missing or '/dev/net/tun'}")
    command = ["unshare", "--net", sys.executable, str(MACHINE), str(folder), name, *left_out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


EVERY = pytest.mark.parametrize("name", ["bubblewrap", "podman"])


@EVERY
@pytest.mark.slow
def test_public_addresses_are_reached_and_no_others(tmp_path: Path, name: str) -> None:
    seen = _on_a_machine(tmp_path, name)
    everywhere = [f"{kind} {address}" for address in PUBLIC for kind in ("tcp", "udp")]
    inside = {f"{kind} {address}" for address in OWN for kind in ("tcp", "udp")}
    assert [word for word in seen["answers"] if word not in inside] == everywhere, seen
    # Judged at the listeners: nothing else came in, not even without an answer.
    known = {"outside", "outside private", *everywhere, *(f"nothing to {address}" for address in PUBLIC)}
    assert set(everywhere) <= set(seen["came"]) <= known
    assert seen["flushed"] == []
    assert "9.9.9.9" in seen["resolv"]


@EVERY
@pytest.mark.slow
def test_without_the_rules_private_addresses_would_be_reached(tmp_path: Path, name: str) -> None:
    seen = _on_a_machine(tmp_path, name, "egress")
    assert f"tcp {PRIVATE[0]}" in seen["came"]
    assert f"tcp {NEIGHBOUR[0]}" in seen["came"]


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fallow.sandbox.egress._PATH", "/nowhere")
    layer = egress_layer()
    assert not layer.works
    assert "pasta and nft" in layer.words
    assert "apt install passt nftables" in layer.remedy


def test_the_probe_says_whether_network_can_be_given() -> None:
    working("bubblewrap")
    probe = BubblewrapSandbox().probe()
    layer = next(layer for layer in probe.layers if layer.name == "egress")
    assert probe.network == layer.works
    assert layer.works or layer.words


def test_networks_of_routes() -> None:
    route = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "tun0\t00000080\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
    )
    ipv6 = (
        "2a000001000000000000000000000000 40 00000000000000000000000000000000 00 "
        "00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0\n"
        "00000000000000000000000000000000 00 00000000000000000000000000000000 00 "
        "2a000001000000000000000000000001 00000400 00000001 00000000 00000003 eth0\n"
    )
    assert [str(network) for network in routed(route, ipv6)] == ["192.0.2.0/24", "2a00:1::/64"]
    assert [str(network) for network in addresses(["fe80::1%eth0", "1.2.3.4", "00:11:22:33:44:55"])] == [
        "fe80::1/128",
        "1.2.3.4/32",
    ]


def test_all_that_is_not_global_is_refused() -> None:
    refused = [ipaddress.ip_network(word) for word in REFUSED_4 + REFUSED_6]
    samples = ["0.0.0.1", "10.0.0.1", "100.127.255.255", "127.1.1.1", "169.254.169.254", "172.31.0.1", "192.168.0.1"]
    samples += [
        "224.0.0.251",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::ffff:10.0.0.1",
        "fd00::1",
        "fe80::1",
        "fec0::1",
    ]
    samples += ["ff02::fb", "64:ff9b::a00:1", "2002:a00:1::1", "2001::1", "fd00:ec2::254"]
    for sample in samples:
        address = ipaddress.ip_address(sample)
        assert any(address in network for network in refused if network.version == address.version), sample
    for sample in ("1.1.1.1", "9.9.9.9", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"):
        address = ipaddress.ip_address(sample)
        assert not any(address in network for network in refused if network.version == address.version), sample
    assert "203.0.112.0/23" in rules(addresses(["203.0.112.0/24"])), "sets hold no two intervals that overlap or touch"
