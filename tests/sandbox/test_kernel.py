"""Attacks on the kernel: calls that a sandboxed program has no business with. `won` in the report is a success of the
attacker; where a success would be seen on the host, it is looked for there."""

from __future__ import annotations

import json

import pytest

from .boxes import Box

ATTEMPTS = {
    "ptrace": "libc.ptrace(16, 1, 0, 0) == 0",
    "ptrace own child": "libc.ptrace(0, 0, 0, 0) == 0",
    "mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "umount": "libc.umount2(b'/tmp', 2) == 0",
    "chroot": "libc.chroot(b'/tmp') == 0",
    "user namespace": "libc.unshare(0x10000000) == 0",
    "mount namespace": "libc.unshare(0x00020000) == 0",
    "clone into namespaces": "libc.syscall(CLONE, 0x10000000 | 17, 0, 0, 0, 0) > 0",
    "clone3": "libc.syscall(435, None, 0) >= 0 or ctypes.get_errno() != 38",
    "io_uring": "libc.syscall(425, 1, ctypes.create_string_buffer(200)) >= 0",
    "bpf": "libc.syscall(BPF, 0, ctypes.create_string_buffer(200), 72) >= 0 or ctypes.get_errno() != 1",
    "userfaultfd": "libc.syscall(USERFAULTFD, 1) >= 0",
    "perf": "libc.syscall(PERF, ctypes.create_string_buffer(200), 0, -1, -1, 0) >= 0 or ctypes.get_errno() != 1",
    "keyring": "libc.syscall(KEYCTL, 0, -3, 1) >= 0",
    "process_vm_readv": "libc.syscall(VM_READV, 1, None, 0, None, 0, 0) >= 0",
    "setns": "libc.setns(os.open('/proc/1/ns/net', os.O_RDONLY), 0) == 0",
    "become root": "os.setuid(0) is None",
    "setuid programs": "b'uid=0' in subprocess.run(['/usr/bin/su', '-c', 'id'], capture_output=True).stdout",
    "make a device": "os.mknod('disk', 0o60666, os.makedev(8, 0)) is None",
    "read memory": "open('/dev/mem', 'rb').read(1)",
    "read the kernel's log": "open('/dev/kmsg', 'rb').read(1)",
    "read the kernel's ring": "libc.klogctl(3, ctypes.create_string_buffer(99), 99) > 0",
    "write sysctl": "open('/proc/sys/kernel/hostname', 'w').write('owned')",
    "sysrq": "open('/proc/sysrq-trigger', 'w').write('h')",
    "rename the host": "libc.sethostname(b'owned', 5) == 0",
    "set the clock": "libc.settimeofday(ctypes.create_string_buffer(16), None) == 0",
    "netlink": "socket.socket(16, socket.SOCK_RAW, 0)",
    "packet": "socket.socket(17, socket.SOCK_RAW, 0)",
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "vsock": "socket.socket(40, socket.SOCK_STREAM, 0)",
    "alg": "socket.socket(38, socket.SOCK_SEQPACKET, 0)",
    "write the system": "open('/usr/owned', 'w')",
    "write the root": "open('/owned', 'w')",
    "write /dev": "open('/dev/owned', 'w')",
    "write /etc": "open('/etc/passwd', 'a')",
    "write beside the launcher": "open('/run/owned', 'w')",
    "other processes of the host": "max(int(name) for name in os.listdir('/proc') if name.isdigit()) > 1000",
    "terminal input": "__import__('fcntl').ioctl(os.openpty()[1], 0x5412, b'x') == 0",
    "open by handle": "libc.name_to_handle_at(-100, b'/usr', ctypes.create_string_buffer(b'\\x80', 200), "
    "ctypes.create_string_buffer(8), 0) == 0",
    "close itself to its user": "libc.prctl(4, 0, 0, 0, 0) == 0",
    "a thread with files of its own": "libc.syscall(CLONE, 0x10000, 0, 0, 0, 0) >= 0 or ctypes.get_errno() != 1",
    "files of its own": "libc.syscall(436, 3, 3, 2) == 0",
    "the processor for itself": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)) is None",
    "a higher priority": "os.nice(-5) is not None",
    "memory of process 1": "open('/proc/1/mem', 'rb').read(0) == b''",
}

NUMBERS = """
import platform
arm = platform.machine() == 'aarch64'
CLONE, BPF, USERFAULTFD = (220, 280, 282) if arm else (56, 321, 323)
PERF, KEYCTL, VM_READV = (241, 219, 270) if arm else (298, 250, 310)
"""

ONE_EACH = """
won = {}
for name, attempt in attempts.items():
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        if name == 'terminal input': os.setsid()
        try: answer = bool(eval(attempt))
        except BaseException as error: answer = False
        os.write(writing, b'1' if answer else b'0'); os._exit(0)
    os.close(writing)
    won[name] = os.read(reading, 1) == b'1'
    os.close(reading); os.waitpid(pid, 0)
say(json.dumps(won))
"""


def attempt(box: Box, names: list[str] | None = None) -> set[str]:
    """Those that succeeded."""
    chosen = {name: code for name, code in ATTEMPTS.items() if names is None or name in names}
    done = box.run(NUMBERS + f"attempts = {chosen!r}\n" + ONE_EACH)
    assert done.out, f"status {done.status}: {done.log}"
    answers = json.loads(done.out)
    assert set(answers) == set(chosen)
    return {name for name, won in answers.items() if won}


def test_no_attempt_on_the_kernel_succeeds(jail: Box) -> None:
    # (Priorities are of gVisor's own kernel, and nothing to the machine's.)
    its_own = {"a higher priority"} if jail.sandbox.name == "gvisor" else set()
    assert attempt(jail) - its_own == set()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_refuses_each_call_by_its_number(machine: str) -> None:
    """The program itself, run as the kernel runs it, since there is one processor here."""
    from fallow.sandbox.seccomp import MACHINES, denied_calls, filter_program

    from .bpf import run

    program = filter_program(machine)
    audit = MACHINES[machine].audit
    for name, number in denied_calls(machine).items():
        assert run(program, audit, number) == 0x00050001, name
    known = MACHINES[machine]
    assert run(program, audit, known.clone3) == 0x00050000 | 38
    assert run(program, audit, known.clone, 0x3D0F00) == 0x7FFF0000, "a thread"
    assert run(program, audit, known.clone, 0x10000011) == 0x00050001, "a user namespace"
    assert run(program, audit, known.clone, 0x3D0B00) == 0x00050001, "a thread with files of its own"
    assert run(program, audit, known.close_range, 3, 4, 4) == 0x7FFF0000
    assert run(program, audit, known.close_range, 3, 4, 2) == 0x00050001
    assert run(program, audit, known.prctl, 4) == 0x00050001
    assert run(program, audit, known.prctl, 1) == 0x7FFF0000
    assert run(program, audit, known.inotify[0]) == 0x7FFF0000
    assert run(filter_program(machine, owners_user=True), audit, known.inotify[0]) == 0x00050000 | 24
    assert run(program, audit, known.socket, 2) == 0x7FFF0000
    assert run(program, audit, known.socket, 16) == 0x00050000 | 97
    assert run(program, audit, known.ioctl, 0, 0x5412) == 0x00050001
    assert run(program, audit, known.ioctl, 0, 0x5401) == 0x7FFF0000
    assert run(program, audit, known.setsockopt, 3, 1, 7) == 0x00050000, "nothing is done, and that is no error"
    assert run(program, audit, known.setsockopt, 3, 1, 8) == 0x00050000
    assert run(program, audit, known.setsockopt, 3, 1, 2) == 0x7FFF0000, "other options"
    assert run(program, audit, known.setsockopt, 3, 6, 7) == 0x7FFF0000, "of another level"
    owners = filter_program(machine, owners_user=True)
    for command, answer in ((1024, 0x00050001), (1026, 0x00050001), (1031, 0x00050001), (1030, 0x7FFF0000)):
        assert run(owners, audit, known.fcntl, 3, command) == answer
    assert run(program, audit, known.fcntl, 3, 1031) == 0x7FFF0000
    assert run(program, audit ^ 1, 1) == 0x80000000, "a foreign architecture"
    assert run(program, audit, 0 if machine == "x86_64" else 63) == 0x7FFF0000, "read"
    if machine == "x86_64":
        assert run(program, audit, 0x40000000 | 101) == 0x80000000, "the x32 door"
    assert run(filter_program(machine, shared_memory=False), audit, known.shmget) == 0x00050001
