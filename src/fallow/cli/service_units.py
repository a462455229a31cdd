"""What starts an agent by itself, as text: a systemd user unit, a launchd agent, a task of Windows for WSL2.

No secret stands in any of them: the pool's address lies in a 0600 file that `fallow join --from` reads.
"""

from __future__ import annotations

import plistlib
import shlex
from pathlib import Path

from msgspec import Struct

UNIT = "fallow-node.service"
LABEL = "io.fallow.node"
TASK = "Fallow node"


class Service(Struct, frozen=True):
    """`command`: program and arguments. `home`: FALLOW_HOME. `log`: where launchd puts what it prints."""

    command: tuple[str, ...]
    home: str
    log: str


def join_command(program: tuple[str, ...], address_file: Path, extra: tuple[str, ...]) -> tuple[str, ...]:
    return (*program, "join", "--from", str(address_file), *extra)


def systemd_unit(service: Service) -> str:
    """For ~/.config/systemd/user. Stopping is patient: what is done is handed in first."""
    command = " ".join(_systemd_word(word.replace("$", "$$")) for word in service.command)
    return f"""# Written by `fallow service install`; `fallow service uninstall` removes it.
[Unit]
Description=Fallow node: lends this computer while nobody uses it
StartLimitIntervalSec=0

[Service]
Type=exec
Environment={_systemd_word(f"FALLOW_HOME={service.home}")} PYTHONUNBUFFERED=1
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=always
RestartSec=5
RestartPreventExitStatus=2
TimeoutStopSec=30
KillMode=mixed
Nice=5
Delegate=yes

[Install]
WantedBy=default.target
"""


def _systemd_word(word: str) -> str:
    """Quoted for a unit file, where % means something."""
    escaped = word.replace("\\", "\\\\").replace(chr(34), "\\" + chr(34)).replace("%", "%%")
    return f'"{escaped}"' if any(char in word for char in " \t\"'\\;#") else escaped


def launchd_plist(service: Service) -> bytes:
    """For ~/Library/LaunchAgents."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(service.command),
            "EnvironmentVariables": {"FALLOW_HOME": service.home, "PYTHONUNBUFFERED": "1"},
            "RunAtLoad": True,
            "KeepAlive": True,
            "ThrottleInterval": 5,
            "ExitTimeOut": 30,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 5,
            "StandardOutPath": service.log,
            "StandardErrorPath": service.log,
        }
    )


def windows_task(distribution: str, unit: str = UNIT) -> tuple[str, ...]:
    """The command that has Windows start the Linux of WSL2, and with it the systemd unit inside, when its owner logs
    in. (WSL2 ends a Linux in which no program of Windows runs: `sleep infinity` keeps it.)"""
    inside = f"systemctl --user start {unit}; exec sleep infinity"
    run = f"wsl.exe -d {distribution} -- sh -c {shlex.quote(inside)}"
    return ("schtasks.exe", "/Create", "/F", "/TN", TASK, "/SC", "ONLOGON", "/TR", run)
