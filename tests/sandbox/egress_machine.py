"""A machine with a router and an internet behind it, in network namespaces; run by test_egress.py in a fresh one.

    unshare --net python egress_machine.py FOLDER BACKEND [LEFT_OUT]

Prints JSON: what the program in the sandbox got an answer from, what came in at the listeners, what it could do to the
rules. Listeners hear on every address: those of the 'internet' beyond the router, and the machine's own.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

PORT = 7777
PUBLIC = ("9.9.9.9", "8.8.8.8", "2620:fe::fe")
PRIVATE = ("10.1.2.3", "172.16.9.9", "192.168.7.7", "100.64.1.1", "169.254.169.254", "198.18.0.5", "fd00::99")
NEIGHBOUR = ("203.0.114.1", "2a00:1::1")
"""The router, whose addresses are public, on the machine's own network."""
OWN = ("203.0.114.2", "2a00:1::2", "127.0.0.1", "::1")
OTHER = ("2002:0a01:0203::1", "64:ff9b::a01:203", "ff02::1", "224.0.0.1", "255.255.255.255", "fe80::1%2")

LISTENERS = f"""
import select, socket, sys
socks = []
for family, address in ((socket.AF_INET, '0.0.0.0'), (socket.AF_INET6, '::')):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        s = socket.socket(family, kind)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((address, {PORT}))
        if kind == socket.SOCK_STREAM:
            s.listen(64)
        socks.append(s)
for address in {PUBLIC!r}:
    # An answer comes from the address that was asked only where the socket is bound to it.
    s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        s.bind((address, {PORT}))
    except OSError:
        continue
    socks.append(s)
print('ready', flush=True)
while True:
    for s in select.select(socks, [], [])[0]:
        if s.type == socket.SOCK_STREAM:
            c, _ = s.accept()
            c.settimeout(5)
            try:
                word = c.recv(100)
                print(word.decode() or 'nothing to ' + c.getsockname()[0], flush=True)
                c.sendall(word.upper())
            except OSError:
                pass
            c.close()
        else:
            word, whence = s.recvfrom(100)
            print(word.decode(), flush=True)
            s.sendto(word.upper(), whence)
"""

INSIDE = f"""
answers = []
def attempt(kind, address):
    word = kind + ' ' + address
    try:
        where = socket.getaddrinfo(address, {PORT}, type=socket.SOCK_STREAM)[0]
        s = socket.socket(where[0], socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
        s.settimeout(5 if address in {PUBLIC!r} else 0.3)
        if kind == 'udp':
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for _ in range(1 if kind == 'tcp' else 3):
            s.connect(where[4])
            s.sendall(word.encode())
            if s.recv(100) == word.upper().encode():
                answers.append(word)
            break
    except OSError:
        pass
for address in {PUBLIC + PRIVATE + NEIGHBOUR + OWN + OTHER!r}:
    attempt('tcp', address)
    attempt('udp', address)
flushed = [tool for tool in ('/usr/sbin/nft', '/sbin/nft') if os.path.exists(tool)
    and subprocess.run([tool, 'flush', 'ruleset'], stderr=subprocess.DEVNULL).returncode == 0]
after = len(answers)
for address in {PRIVATE!r}:
    attempt('tcp', address)
with open('answers', 'w') as file:
    json.dump({{'answers': answers, 'flushed': flushed, 'resolv': open('/etc/resolv.conf').read()}}, file)
"""


def shell(words: str, **options: object) -> None:
    subprocess.run(words, shell=True, check=True, **options)  # type: ignore[call-overload]


def build(router: int) -> None:
    inside = "\n".join(
        [
            "ip link set lo up; ip addr add 203.0.114.1/24 dev p0; ip -6 addr add 2a00:1::1/64 dev p0 nodad",
            "ip link set p0 up",
            *(f"ip addr add {address}/{128 if ':' in address else 32} dev lo" for address in PUBLIC + PRIVATE),
        ]
    )
    shell(f"ip link set lo up; ip link add wan type veth peer name p0 netns {router}")
    shell("ip addr add 203.0.114.2/24 dev wan; ip -6 addr add 2a00:1::2/64 dev wan nodad; ip link set wan up")
    shell(f"nsenter -t {router} -n sh -e", input=inside, text=True)
    shell("ip route add default via 203.0.114.1; ip -6 route add default via 2a00:1::1")


def listen(prefix: list[str], came: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen([*prefix, sys.executable, "-c", LISTENERS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 30)
    assert ready
    assert process.stdout.readline() == "ready\n"
    threading.Thread(target=lambda: came.extend(line.strip() for line in process.stdout or ()), daemon=True).start()
    return process


def main() -> None:
    from fallow.model.lending import SandboxSettings
    from fallow.sandbox.bubblewrap import BubblewrapSandbox
    from fallow.sandbox.podman import PodmanSandbox
    from fallow.sandbox.protocol import Sandbox

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.sandbox.boxes import Box

    router = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo +; exec cat"], stdin=-1, stdout=-1)
    came: list[str] = []
    processes: list[subprocess.Popen] = [router]  # type: ignore[type-arg]
    try:
        assert router.stdout is not None
        assert router.stdout.read(1) == b"+"
        build(router.pid)
        processes.append(listen(["nsenter", "-t", str(router.pid), "-n"], came))
        processes.append(listen([], came))
        with socket.create_connection((PUBLIC[0], PORT), 10) as check:
            check.sendall(b"outside")
            assert check.recv(100) == b"OUTSIDE"
        with socket.create_connection((PRIVATE[0], PORT), 10) as check:
            check.sendall(b"outside private")
            assert check.recv(100) == b"OUTSIDE PRIVATE"
        folder, name, without = Path(sys.argv[1]), sys.argv[2], frozenset(sys.argv[3:])
        sandboxes: dict[str, Callable[[], Sandbox]] = {
            "bubblewrap": lambda: BubblewrapSandbox(without),
            "podman": lambda: PodmanSandbox(SandboxSettings(backend="podman"), without),
        }
        box = Box(sandboxes[name](), folder)
        done = box.run(INSIDE, network=True)
        path = folder / "scratch" / "answers"
        print(json.dumps({"status": done.status, "log": done.log, "came": came, **json.loads(path.read_text())}))
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
