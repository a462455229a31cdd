"""When a machine is its owner's, and when it may work for others: `look(state, readings, ...) -> (state, decision)`.

Each look collects causes to pause, for all devices and for each alone. A device stops at the first look that finds a
cause. It goes on when no cause has been there for as long as causes of that sort must be over: input for `idle_s`, load
and programs for `settle_s` and below a second, lower threshold; the owner's own words and hours at once. What cannot be
read counts as a cause. A clock that jumps (the machine slept, or the agent was stopped) counts as the owner's return.

The thresholds follow BOINC's and HTCondor's preferences (model.lending has the defaults).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

from msgspec import Struct
from msgspec.structs import replace

from fallow.core.owner_hours import minutes_to_open, when_open
from fallow.core.owner_readings import GpuReading, Input, Readings, Session
from fallow.model.lending import LendingSettings, OwnerSettings

CPU = "cpu"
"""The name of the device that is no GPU."""

LOOK_S = 0.5
"""Between looks while work may run and nothing tells of input at once: with `grace_s` it stays under two seconds."""
NOTIFIED_LOOK_S = 1.0
REST_LOOK_S = 30.0
"""Instead of these two while nothing of the pool's runs here: there is nothing to stop, and work that comes brings a
look with it, as does whoever asks how things stand."""
NOTIFIED_REST_LOOK_S = 60.0
PAUSED_LOOK_S = 10.0
"""Between looks while nothing may run and who knows until when: only the end of the pause can wait."""
PAUSED_MOST_S = 60.0
"""The same where it is known that the pause does not end sooner."""
JUMP_S = 15.0
"""A look that comes so much later than it should: nobody knows what happened meanwhile."""
GPU_RESUME_SHARE = 0.6
"""Of the thresholds for a GPU's use: below these it is free again."""


class ManualPause(Struct, frozen=True):
    """The owner said so. `until_s` on the clock of the looks; infinite: until the owner says otherwise."""

    until_s: float = inf


class Cause(Struct, frozen=True):
    """Why a device must not work. `settle_s`: how long it must have been over."""

    key: str
    words: str
    settle_s: float = 0.0
    left_s: float = PAUSED_LOOK_S
    """It does not end before; where that is not known, it is looked at so soon."""


class DeviceState(Struct, frozen=True):
    """`free_s`: the earliest time at which causes of the past let it work again."""

    allowed: bool = False
    since_s: float = -inf
    reason: str = ""
    words: str = ""
    """Of the cause that `free_s` waits for."""
    causes: tuple[str, ...] = ()
    """Keys of the causes of the last look: those with two thresholds hold until the lower one."""
    free_s: float = -inf


class OwnerState(Struct, frozen=True):
    looked_s: float = -inf
    next_look_s: float = 0.0
    """How long after `looked_s` the next look was due."""
    input_s: float = -inf
    """When a person last touched the machine, as far as any reading ever said."""
    input_source: str = ""
    pause: ManualPause | None = None
    gpu_pauses: dict[str, ManualPause] = {}
    """Of single GPUs."""
    devices: dict[str, DeviceState] = {}


class DeviceDecision(Struct, frozen=True):
    """`reason` in a person's words where it is not allowed; `since_s`: the last change of `allowed`."""

    allowed: bool
    reason: str
    since_s: float


class Decision(Struct, frozen=True):
    devices: dict[str, DeviceDecision]
    """'cpu', and the uuids of GPUs."""
    next_look_s: float
    """Seconds until the sensors are to be read again."""

    @property
    def cpu(self) -> DeviceDecision:
        return self.devices[CPU]

    @property
    def paused(self) -> str:
        """Why nothing at all may run; '' where something may."""
        return "" if any(device.allowed for device in self.devices.values()) else self.cpu.reason


def look(
    state: OwnerState,
    readings: Readings,
    settings: LendingSettings,
    now_s: float,
    minute_of_week: int,
    at_work: bool = True,
) -> tuple[OwnerState, Decision]:
    """Decide for each device. `now_s`: a clock that goes on while the machine sleeps, in seconds; `minute_of_week`:
    since Monday 00:00, local time; `at_work`: something of the pool's runs here, or is about to."""
    jumped = state.looked_s > -inf and not -1.0 <= now_s - state.looked_s <= state.next_look_s + JUMP_S
    state = _with_input(state, readings, settings.owner, now_s)
    if state.pause is not None and state.pause.until_s <= now_s:
        state = replace(state, pause=None)
    if any(pause.until_s <= now_s for pause in state.gpu_pauses.values()):
        lasting = {name: pause for name, pause in state.gpu_pauses.items() if pause.until_s > now_s}
        state = replace(state, gpu_pauses=lasting)
    shared = list(_shared_causes(state, readings, settings, now_s, minute_of_week))
    if jumped:
        shared.append(Cause("jump", "the machine slept or stood still a moment ago", settings.owner.settle_s))
    devices: dict[str, DeviceState] = {}
    waits: list[float] = []
    names = (CPU, *sorted(readings.gpus))
    for name in names:
        before = state.devices.get(name, DeviceState())
        if name == CPU:
            idle_s, own = settings.owner.idle_s, _cpu_causes(before, readings, settings)
        else:
            idle_s, own = settings.owner.gpu_idle_s, _gpu_causes(before, readings, settings, name)
        word = [_word(state.gpu_pauses[name], now_s)] if name in state.gpu_pauses else []
        causes = [*word, *shared, *_input_causes(state, readings, settings.owner, idle_s, now_s), *own]
        after = _next_state(before, causes, now_s, restart=now_s < state.looked_s)
        devices[name] = after
        if not after.allowed:
            waits.append(max((cause.left_s for cause in causes), default=after.free_s - now_s))
    next_look_s = _next_look_s(readings, devices, waits, at_work)
    state = replace(state, looked_s=now_s, next_look_s=next_look_s, devices=devices)
    decided = {name: DeviceDecision(one.allowed, one.reason, one.since_s) for name, one in devices.items()}
    return state, Decision(decided, next_look_s)


def _next_state(before: DeviceState, causes: list[Cause], now_s: float, restart: bool) -> DeviceState:
    free_s = -inf if restart else before.free_s
    words = before.words
    for cause in causes:
        if now_s + cause.settle_s > free_s:
            free_s, words = now_s + cause.settle_s, cause.words
    allowed = not causes and now_s >= free_s
    if allowed:
        reason = words = ""
    elif causes:
        reason = causes[0].words
    else:
        reason = f"until a moment ago: {words} (goes on in {span_words(free_s - now_s)})"
    changed = allowed != before.allowed or before.since_s == -inf or restart
    keys = tuple(cause.key for cause in causes)
    return DeviceState(allowed, now_s if changed else before.since_s, reason, words, keys, free_s)


def _next_look_s(readings: Readings, devices: Mapping[str, DeviceState], waits: list[float], at_work: bool) -> float:
    if any(device.allowed for device in devices.values()):
        notified = all(one.notifies for one in readings.inputs if one.proves and one.idle_s is not None)
        if not at_work:
            return NOTIFIED_REST_LOOK_S if notified else REST_LOOK_S
        return NOTIFIED_LOOK_S if notified else LOOK_S
    return min(PAUSED_MOST_S, max(LOOK_S, min(waits, default=PAUSED_LOOK_S)))


# ------------------------------------------------------------ causes for all devices, the weightiest first


def _shared_causes(
    state: OwnerState, readings: Readings, settings: LendingSettings, now_s: float, minute: int
) -> Iterator[Cause]:
    owner, settle_s = settings.owner, settings.owner.settle_s
    if state.pause is not None:
        yield _word(state.pause, now_s)
    if readings.going_to_sleep:
        yield Cause("sleep", "the machine is about to sleep", settle_s)
    wait = minutes_to_open(owner.hours, minute)
    if wait != 0:
        yield Cause(
            "hours",
            f"outside the hours (next {when_open(owner.hours, minute)})",
            left_s=inf if wait is None else wait * 60,
        )
    if not owner.on_battery and readings.on_battery is not False:
        words = "on battery" if readings.on_battery else "whether it runs on battery cannot be read"
        yield Cause("battery", words, settle_s)
    if not owner.on_metered and readings.metered is not False:
        words = "the network is metered" if readings.metered else "whether the network is metered cannot be read"
        yield Cause("metered", words, settle_s)
    price = settings.price
    if price.source and price.limit_per_kwh > 0:
        if readings.price_per_kwh is None:
            yield Cause("price", "the price of electricity cannot be read")
        elif readings.price_per_kwh > price.limit_per_kwh:
            words = f"electricity costs {readings.price_per_kwh:g} for a kWh (limit {price.limit_per_kwh:g})"
            yield Cause("price", words)
    yield from _program_causes("programs", readings, owner.exclusive_programs, settle_s)
    if owner.watch:
        if owner.full_screen and readings.full_screen:
            yield Cause("full_screen", f"{readings.full_screen} fills the screen", settle_s)
        elif owner.full_screen and readings.screen_on != "":
            cannot = "whether a film or a talk keeps the screen on cannot be read"
            words = f"{readings.screen_on} keeps the screen on" if readings.screen_on else cannot
            yield Cause("screen_on", words, settle_s)
        if owner.remote_sessions:
            yield from _remote_causes(readings, owner, settle_s)


def _word(pause: ManualPause, now_s: float) -> Cause:
    left_s = pause.until_s - now_s
    words = "by your word" if left_s == inf else f"by your word, for {span_words(left_s)} more"
    return Cause("manual", words, left_s=left_s)


def _program_causes(key: str, readings: Readings, names: tuple[str, ...], settle_s: float) -> Iterator[Cause]:
    if not names:
        return
    if readings.programs is None:
        yield Cause(key, "which programs run cannot be read", settle_s)
        return
    running = [name for name in names if name in readings.programs]
    if running:
        yield Cause(key, f"{' and '.join(running)} {'runs' if len(running) == 1 else 'run'}", settle_s)


def _remote_causes(readings: Readings, owner: OwnerSettings, settle_s: float) -> Iterator[Cause]:
    if readings.sessions is None:
        yield Cause("sessions", "who is logged in cannot be read", settle_s)
    for session in readings.sessions or ():
        if not session.remote or session.seen_by_input:
            continue
        if session.idle_s is None:
            words = f"{session.user} is logged in from elsewhere, and whether they type cannot be read"
            yield Cause("remote", words, settle_s)
        elif session.idle_s < owner.idle_s:
            words = f"{session.user} typed {span_words(session.idle_s)} ago, logged in from elsewhere"
            yield Cause("remote", words, left_s=owner.idle_s - session.idle_s)


# ------------------------------------------------------------ input


def _known(readings: Readings) -> list[Input]:
    """What tells of input: sensors, and local sessions in front whose input no sensor sees."""
    found = [one for one in readings.inputs if one.idle_s is not None]
    for session in _unseen_local(readings):
        if session.idle_s is not None:
            found.append(Input(f"the session of {session.user}", session.idle_s))
    return found


def _unseen_local(readings: Readings) -> list[Session]:
    return [
        session
        for session in readings.sessions or ()
        if not session.remote and session.active and not session.seen_by_input
    ]


def _with_input(state: OwnerState, readings: Readings, owner: OwnerSettings, now_s: float) -> OwnerState:
    """Remember the latest input that any reading ever told of: a sensor that starts anew knows less."""
    latest_s, source = min(state.input_s, now_s), state.input_source
    for one in _known(readings):
        at_s = now_s - max(0.0, one.idle_s or 0.0)
        if at_s > latest_s:
            latest_s, source = at_s, one.source
    return replace(state, input_s=latest_s, input_source=source) if owner.watch else state


def _input_causes(
    state: OwnerState, readings: Readings, owner: OwnerSettings, idle_s: float, now_s: float
) -> Iterator[Cause]:
    if not owner.watch:
        return
    ago_s = now_s - state.input_s
    if ago_s < idle_s:
        yield Cause("input", f"{state.input_source} used {span_words(ago_s)} ago", left_s=idle_s - ago_s)
    unread = next((session for session in _unseen_local(readings) if session.idle_s is None), None)
    if unread is not None:
        words = f"{unread.user} is logged in here, and whether they use keyboard or mouse cannot be read"
        yield Cause("unread", f"{words}; {REMEDY}", owner.settle_s)
    elif not readings.nobody and not any(one.proves for one in _known(readings)):
        yield Cause("unread", f"nothing here tells whether keyboard or mouse are used; {REMEDY}", owner.settle_s)


REMEDY = (
    "start the agent inside the desktop session, or let its user read /dev/input (group 'input'), "
    "or set owner.watch = false where nobody sits at this machine"
)


# ------------------------------------------------------------ causes of one device


def _cpu_causes(before: DeviceState, readings: Readings, settings: LendingSettings) -> Iterator[Cause]:
    owner, heat = settings.owner, settings.heat
    share = readings.foreign_cpu_share
    threshold = owner.resume_cpu_share if "load" in before.causes else owner.busy_cpu_share
    if share is None:
        yield Cause("load", "how much other programs use the CPU cannot be read", owner.settle_s)
    elif share > threshold:
        yield Cause("load", f"other programs use {share:.0%} of the CPU", owner.settle_s)
    temperature = readings.cpu_temperature_c
    if heat.cpu_limit_c > 0:
        limit = min(heat.resume_below_c, heat.cpu_limit_c) if "heat" in before.causes else heat.cpu_limit_c
        if temperature is None:
            yield Cause("heat", "the temperature of the CPU cannot be read", owner.settle_s)
        elif temperature >= limit:
            yield Cause("heat", f"the CPU is at {temperature:.0f} C (limit {heat.cpu_limit_c:g} C)")


def _gpu_causes(before: DeviceState, readings: Readings, settings: LendingSettings, uuid: str) -> Iterator[Cause]:
    owner, reading = settings.owner, readings.gpus.get(uuid, GpuReading(None, None))
    yield from _program_causes("gpu_programs", readings, owner.gpu_exclusive_programs, owner.settle_s)
    share, used = reading.foreign_share, reading.foreign_memory_bytes
    factor = GPU_RESUME_SHARE if "gpu" in before.causes else 1.0
    if share is None and used is None:
        yield Cause("gpu", "how much other programs use the GPU cannot be read", owner.settle_s)
    elif share is not None and share > owner.foreign_gpu_share * factor:
        yield Cause("gpu", f"another program uses {share:.0%} of the GPU", owner.settle_s)
    elif used is not None and used > owner.foreign_gpu_memory_bytes * factor:
        yield Cause("gpu", f"another program holds {used / 1e9:.1f} GB of the GPU's memory", owner.settle_s)


def span_words(seconds: float) -> str:
    """'20 s', '5 min', '2 h 10 min'."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
