"""X11: the server's own idle time, raw input events while the owner is away, and programs that fill the screen."""

from __future__ import annotations

import os
import re
from typing import Any

from fallow.agent.owner.sensor import Absent, Draft, Failed, InputSensor
from fallow.core.owner_readings import Input

SOCKETS = "/tmp/.X11-unix"
ARM_AFTER_S = 5.0
"""Raw events come a thousand times a second while a mouse moves: they are asked for only when input has ceased, and
given up at the first one."""


def displays() -> list[str]:
    """Names of the X servers of this machine: the environment's first."""
    found = [os.environ["DISPLAY"]] if os.environ.get("DISPLAY") else []
    try:
        names = sorted(os.listdir(SOCKETS))
    except OSError:
        names = []
    for name in names:
        if re.fullmatch(r"X\d+", name) and f":{name[1:]}" not in {one.split(".")[0] for one in found}:
            found.append(f":{name[1:]}")
    return found


def owner_uid(display: str) -> int | None:
    """Whose the socket of the display is; None where there is no such socket."""
    try:
        return os.stat(f"{SOCKETS}/X{display.split('.')[0].lstrip(':')}").st_uid
    except OSError:
        return None


class X11(InputSensor):
    def __init__(self, display: str) -> None:
        self.display = display
        self.name = f"keyboard or mouse (X11 {display})"
        self._connection: Any = None
        self._root: Any = None
        self._proves = True
        self._can_notify = False
        self._armed = False
        self._stirred = False

    def open(self) -> None:
        try:
            from Xlib.display import Display
        except ImportError as missing:
            raise Failed("X11 is not read: the package python-xlib is missing") from missing
        try:
            self._connection = Display(self.display)
        except Exception as error:
            if isinstance(error.__cause__ or error.__context__, ConnectionRefusedError | FileNotFoundError):
                raise Absent from error
            text = " ".join(str(error).replace("b'", "").replace("'", "").split())
            if "Connection refused" in text or "No such file" in text:
                raise Absent from error
            raise Failed(
                f"the X display {self.display} does not let the agent in ({text}): start the agent in that session, "
                "or set XAUTHORITY for it"
            ) from error
        try:
            self._prepare()
        except Failed:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise Failed(f"the X display {self.display} does not answer ({error or type(error).__name__})") from error

    def _prepare(self) -> None:
        display = self._connection
        # Errors of single requests (a window that has just gone) come as events; they are no news for anybody.
        display.set_error_handler(lambda *_: None)
        self._root = display.screen().root
        if not display.has_extension("MIT-SCREEN-SAVER"):
            raise Failed(f"the X display {self.display} has no extension MIT-SCREEN-SAVER, which tells of input")
        self._proves = not self._is_inside_wayland()
        self._can_notify = bool(display.has_extension("XInputExtension"))
        if self._can_notify:
            from Xlib.ext import xinput

            # From 2.1 on raw events come even while a game has grabbed the keyboard; the library asks for 2.0.
            opcode = display.display.get_extension_major(xinput.extname)
            version = xinput.XIQueryVersion(display=display.display, opcode=opcode, major_version=2, minor_version=2)
            self._can_notify = (version.major_version, version.minor_version) >= (2, 1)
        self._armed = False

    def _is_inside_wayland(self) -> bool:
        """An X server inside a Wayland session sees only what is typed into X programs."""
        display = self._connection
        if display.has_extension("XWAYLAND"):
            return True
        if not display.has_extension("RANDR"):
            return False
        resources = self._root.xrandr_get_screen_resources()
        names = [display.xrandr_get_output_info(output, 0).name for output in resources.outputs]
        return any(str(name).startswith("XWAYLAND") for name in names)

    def read(self, draft: Draft) -> None:
        try:
            self.news()
            idle_s = 0.0 if self._stirred else self._root.screensaver_query_info().idle / 1000
            self._stirred = False
            self._arm(idle_s >= ARM_AFTER_S)
            draft.full_screen[self.name] = self._full_screen() if draft.settings.owner.full_screen else ""
        except Exception as error:
            raise Failed(f"the X display {self.display} does not answer ({error or type(error).__name__})") from error
        draft.inputs[self.name] = Input("keyboard or mouse", idle_s, self._proves, notifies=self._armed)

    def unknown(self, draft: Draft) -> None:
        super().unknown(draft)
        draft.full_screen.pop(self.name, None)

    def absent(self, draft: Draft) -> None:
        super().absent(draft)
        draft.full_screen.pop(self.name, None)

    def _arm(self, wanted: bool) -> None:
        if not self._can_notify or wanted == self._armed:
            return
        from Xlib.ext import xinput

        mask = xinput.RawKeyPressMask | xinput.RawButtonPressMask | xinput.RawMotionMask if wanted else 0
        self._root.xinput_select_events([(xinput.AllMasterDevices, mask)])
        self._connection.flush()
        self._armed = wanted

    def files(self) -> list[int]:
        return [self._connection.fileno()] if self._armed else []

    def news(self) -> bool:
        from Xlib.ext.ge import GenericEventCode

        while self._connection.pending_events():
            event = self._connection.next_event()
            if event.type == GenericEventCode and self._armed:
                self._stirred = True
        if self._stirred:
            self._arm(False)
        return self._stirred

    # ------------------------------------------------------------ the screen

    def _full_screen(self) -> str:
        """The program whose window fills the screen; '': none."""
        from Xlib.error import BadWindow

        try:
            return self._filling()
        except BadWindow:
            # It closed while it was looked at.
            return ""

    def _filling(self) -> str:
        display, root = self._connection, self._root
        active = root.get_full_property(display.get_atom("_NET_ACTIVE_WINDOW"), 0)
        if root.get_full_property(display.get_atom("_NET_SUPPORTING_WM_CHECK"), 0) is None:
            return self._covering()
        if active is None or not len(active.value) or not active.value[0]:
            return ""
        window = display.create_resource_object("window", active.value[0])
        state = window.get_full_property(display.get_atom("_NET_WM_STATE"), 0)
        if state is None or display.get_atom("_NET_WM_STATE_FULLSCREEN") not in state.value:
            return ""
        return _program(window)

    def _covering(self) -> str:
        """Without a window manager: a window that shows and is as large as the screen."""
        from Xlib.error import XError
        from Xlib.X import IsViewable

        size = self._root.get_geometry()
        for window in self._root.query_tree().children:
            try:
                shape, attributes = window.get_geometry(), window.get_attributes()
                if attributes.map_state == IsViewable and shape.width >= size.width and shape.height >= size.height:
                    return _program(window)
            except XError:
                continue
        return ""

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._armed = False
        if connection is not None:
            try:
                connection.close()
            except Exception:
                # The server has gone, and with it what there was to close.
                pass


def _program(window: Any) -> str:
    names = window.get_wm_class()
    return str(names[1] or names[0]).lower() if names else "a program"
