"""Installs, removes and asks about the service that runs an agent, by the system's own manager of services."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path

from msgspec import Struct

from fallow.cli.join_address import address_from
from fallow.cli.node_client import agent_home
from fallow.cli.service_units import (
    LABEL,
    UNIT,
    Service,
    join_command,
    launchd_plist,
    systemd_unit,
    windows_task,
)
from fallow.model.errors import SettingError
from fallow.wire.address import home_dir, parse_address, write_private

ADDRESS_FILE = "pool-address"
CALL_WITHIN_S = 60.0


class Wanted(Struct, frozen=True):
    """What `fallow service install` was asked for."""

    address: str
    from_file: str = ""
    name: str = ""
    slots: int = 0
    own_pool: bool = False


def address_file() -> Path:
    return agent_home() / ADDRESS_FILE


def program() -> tuple[str, ...]:
    """How this very `fallow` is run, wherever the service starts it."""
    beside = Path(sys.executable).with_name("fallow")
    if os.access(beside, os.X_OK) and beside.is_file():
        return (str(beside),)
    return (sys.executable, "-m", "fallow.cli.main")


def wanted_service(wanted: Wanted) -> Service:
    extra = (*(("--name", wanted.name) if wanted.name else ()),)
    extra += ("--slots", str(wanted.slots)) if wanted.slots else ()
    extra += ("--own-pool",) if wanted.own_pool else ()
    home = home_dir().absolute()
    return Service(
        command=join_command(program(), agent_home().absolute() / ADDRESS_FILE, extra),
        home=str(home),
        log=str(home / "agent" / "service.log"),
    )


def unit_path() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd" / "user" / UNIT


def unit_text(service: Service) -> str:
    return launchd_plist(service).decode() if sys.platform == "darwin" else systemd_unit(service)


def install_service(wanted: Wanted, show: bool) -> None:
    """Raises SettingError and PoolAddressError in words, before anything is written."""
    if sys.platform == "win32":
        raise SettingError(_WINDOWS)
    service = wanted_service(wanted)
    if show:
        print(f"# {unit_path()}\n{unit_text(service)}", end="")
        return
    if wanted.address or wanted.from_file:
        address = str(parse_address(address_from(wanted.address, wanted.from_file)))
    elif address_file().exists():
        address = str(parse_address(address_file().read_text()))
    else:
        raise SettingError("which pool? Give its address: fallow service install TOKEN@HOST:PORT")
    from fallow.agent.settings import load_settings, settings_path, write_defaults

    load_settings(settings_path(agent_home()))
    _need_manager()
    write_private(address_file(), address + "\n")
    if write_defaults(settings_path(agent_home())):
        print(f"Wrote the settings, with every default: {settings_path(agent_home())}")
    path = unit_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit_text(service))
    print(f"Wrote {path}; the pool's address is in {address_file()}, for your eyes only.")
    if sys.platform == "darwin":
        _call("launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}", check=False)
        _call("launchctl", "bootstrap", f"gui/{os.getuid()}", str(path))
    else:
        _call("systemctl", "--user", "daemon-reload")
        _call("systemctl", "--user", "enable", UNIT)
        _call("systemctl", "--user", "restart", UNIT)
    print("It runs. `fallow node status` shows what it does, `fallow service logs` what it says.")
    for line in after_words():
        print(line)


def after_words() -> list[str]:
    """What the owner should know next."""
    if sys.platform == "darwin":
        return ["It starts when you log in, and ends when you log out."]
    words = []
    if not _lingers():
        user = getpass.getuser()
        words.append(
            "It runs while you are logged in. To have it run whenever the machine is on, with nobody logged in: "
            f"sudo loginctl enable-linger {user}"
        )
    if _is_wsl():
        task = subprocess.list2cmdline(windows_task(os.environ.get("WSL_DISTRO_NAME", "Ubuntu")))
        words.append(f"This Linux runs inside Windows. To have Windows start it when you log in, type there: {task}")
    return words


def uninstall_service() -> None:
    """It is no error if there is none."""
    if sys.platform == "win32":
        raise SettingError(_WINDOWS)
    path = unit_path()
    if not path.exists():
        print("No service was installed.")
        return
    if sys.platform == "darwin":
        _call("launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}", check=False)
        path.unlink()
    else:
        if shutil.which("systemctl"):
            _call("systemctl", "--user", "disable", "--now", UNIT, check=False)
        path.unlink()
        if shutil.which("systemctl"):
            _call("systemctl", "--user", "daemon-reload", check=False)
    address_file().unlink(missing_ok=True)
    print(f"Removed {path} and the pool's address. Settings, keys and caches stay in {agent_home()}.")


def service_state() -> dict[str, object]:
    """{'installed', 'enabled', 'active', 'starts', 'file'}: as the manager of services says."""
    path = unit_path()
    state: dict[str, object] = {"installed": path.exists(), "file": str(path), "active": "", "enabled": ""}
    if not path.exists():
        return state
    if sys.platform == "darwin":
        done = _call("launchctl", "print", f"gui/{os.getuid()}/{LABEL}", check=False)
        state["active"] = "active" if done.returncode == 0 else "inactive"
        state["enabled"] = "enabled"
    elif shutil.which("systemctl"):
        state["active"] = _word("systemctl", "--user", "is-active", UNIT)
        state["enabled"] = _word("systemctl", "--user", "is-enabled", UNIT)
        state["lingers"] = _lingers()
    return state


def show_service(as_json: bool) -> None:
    state = service_state()
    if as_json:
        from fallow.cli.show import print_json

        print_json(state)
        return
    if not state["installed"]:
        print("No service is installed. `fallow service install TOKEN@HOST:PORT` has this machine lend itself always.")
        return
    print(f"{state['file']}: {state['active'] or 'unknown'}, {state['enabled'] or 'unknown'}.")
    if state.get("lingers") is False:
        print(f"It runs while you are logged in (always: sudo loginctl enable-linger {getpass.getuser()}).")


def show_logs(follow: bool, lines: int) -> int:
    """Hands over to the system's own reader; returns its exit code."""
    if not unit_path().exists():
        raise SettingError("no service is installed, so it has said nothing.")
    if sys.platform == "darwin":
        words = ["tail", "-n", str(lines), *(["-f"] if follow else []), wanted_service(Wanted("")).log]
    else:
        words = ["journalctl", "--user", "--unit", UNIT, "--lines", str(lines), "--output", "short-iso"]
        words += ["--follow"] if follow else ["--no-pager"]
    if shutil.which(words[0]) is None:
        raise SettingError(f"there is no {words[0]} here to read the service's log with.")
    return subprocess.run(words, check=False, env=_environment()).returncode


# ---------------------------------------------------------------- the managers

_WINDOWS = (
    "on Windows the node runs inside WSL2, Windows' own Linux. Install it with `wsl --install`, then, in that Linux: "
    "pip install fallow; fallow service install TOKEN@HOST:PORT. docs/provider.md has the steps."
)


def _need_manager() -> None:
    """Raises SettingError where no service could run, with the way out."""
    if sys.platform == "darwin":
        return
    if shutil.which("systemctl") is None:
        raise SettingError(
            "there is no systemd here, so no service can be installed. Have whatever starts your programs run this: "
            f"fallow join --from {address_file()} (a file with the address, `chmod 600`)."
        )
    done = _call("systemctl", "--user", "show-environment", check=False)
    if done.returncode != 0:
        raise SettingError(
            f"systemd does not answer for this user ({done.stderr.strip() or 'no words'}). Log in as the user whose "
            "machine this is (not through su or sudo) and try again, or have an administrator say `sudo loginctl "
            f"enable-linger {getpass.getuser()}` first; for a server's own user there is the unit "
            "deploy/systemd/fallow-join.service."
        )


def _lingers() -> bool:
    return Path(f"/var/lib/systemd/linger/{getpass.getuser()}").exists()


def _is_wsl() -> bool:
    try:
        return "microsoft" in Path("/proc/sys/kernel/osrelease").read_text().lower()
    except OSError:
        return False


def _word(*words: str) -> str:
    return _call(*words, check=False).stdout.strip()


def _environment() -> dict[str, str]:
    """Where systemd of this user answers is told by a variable that `su` and `sudo` do not set."""
    folder = f"/run/user/{os.getuid()}"
    found = dict(os.environ)
    if not found.get("XDG_RUNTIME_DIR") and os.access(folder, os.X_OK | os.W_OK):
        found["XDG_RUNTIME_DIR"] = folder
    return found


def _call(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=CALL_WITHIN_S, check=False, env=_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingError(f"`{' '.join(words)}` could not be run: {error}.") from None
    if check and done.returncode != 0:
        raise SettingError(f"`{' '.join(words)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done
