"""The bench's own machinery, with `multiprocessing.Pool` as the peer: what it says, and that nothing can hang it."""

from __future__ import annotations

import dataclasses
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import bare
from bench.measure import Measurement, run_cold, run_workload
from bench.peers import NAMES, peer_class
from bench.peers.base import settle_each
from bench.plan import OUT_OF_TIME, Settings, memory_sizes_of, parameters_of, run_rows
from bench.report import as_json, markdown, ratio_text, shown
from bench.rows import ROWS, Row
from bench.workloads import WORKLOADS

PYTHON = Path(sys.executable)
LIMIT_S = 60.0


def row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


@pytest.mark.slow
def test_skew_runs_the_peer_between_bare_processes(tmp_path: Path) -> None:
    parameters = {"tasks": 8, "total_s": 0.08, "repeat": 3}
    found = run_workload(PYTHON, "pool", "skew", parameters, limit_s=LIMIT_S, scratch=tmp_path)
    assert not found.error
    assert (len(found.values["ratios"]), len(found.values["bare_ratios"])) == (3, 4)
    flat, machine = statistics.median(found.values["ratios"]), statistics.median(found.values["bare_ratios"])
    assert found.values["makespan_ratio"] == pytest.approx(flat, abs=1e-3)
    assert found.values["bare_ratio"] == pytest.approx(machine, abs=1e-3)
    assert found.values["over_bare"] == pytest.approx(flat / machine, rel=1e-2)
    said = row("skew").show(found.values)
    assert f"{found.values['over_bare']:.3f}" in said
    assert f"{found.values['bare_ratio']:.3f}" in said


def test_the_target_of_skew_is_judged_by_the_flat_ratio_and_shows_the_quotient() -> None:
    (good,) = row("skew").checks({"fallow": {"makespan_ratio": 1.019, "bare_ratio": 0.9, "over_bare": 1.132}})
    (bad,) = row("skew").checks({"fallow": {"makespan_ratio": 1.021, "bare_ratio": 1.02, "over_bare": 1.001}})
    assert (good.met, good.measured) == (True, "1.019 x (over bare 1.132)")
    assert (bad.met, bad.measured) == (False, "1.021 x (over bare 1.001)")


def test_bare_processes_take_at_least_the_longer_share() -> None:
    assert bare.makespan_s([0.05, 0.02, 0.02], 2) >= 0.05
    with pytest.raises(RuntimeError, match=r"the bare processes failed: .*'<' not supported"):
        bare.makespan_s([0.05, "long"], 2)  # type: ignore[list-item]


@pytest.mark.parametrize("workload", ["map", "map_tuned"])
def test_values_are_said_after_every_repetition(workload: str) -> None:
    said: list[dict[str, Any]] = []
    pool = peer_class("pool")()
    try:
        WORKLOADS[workload](pool, {"tasks": 10, "repeat": 3}, lambda event, **values: said.append(values))
    finally:
        pool.stop()
    assert len(said) == 3
    assert all(any(key.endswith("per_s") for key in values) for values in said)


@pytest.mark.slow
def test_a_cold_script_that_hangs_ends_with_the_limit(tmp_path: Path) -> None:
    begin = time.monotonic()
    silent = run_cold(PYTHON, "pool", "embedded", "input_ = __import__('time').sleep(600)\n",
                      limit_s=1.0, scratch=tmp_path, repeat=1)  # fmt: skip
    endless = run_cold(PYTHON, "pool", "embedded", "print('first', flush=True)\nimport time\ntime.sleep(600)\n",
                       limit_s=1.0, scratch=tmp_path, repeat=1)  # fmt: skip
    assert time.monotonic() - begin < LIMIT_S
    assert silent.error == "embedded: no result in time"
    assert endless.error == "embedded: the script had its first result and did not end"


def test_a_script_that_fails_says_its_own_last_words(tmp_path: Path) -> None:
    failed = run_cold(PYTHON, "pool", "embedded", "raise SystemExit('no pool today')",
                      limit_s=LIMIT_S, scratch=tmp_path, repeat=1)  # fmt: skip
    assert failed.error == "embedded: no pool today"


def test_a_driver_that_dies_after_its_figures_is_an_error_beside_them(tmp_path: Path) -> None:
    driver = tmp_path / "driver"
    driver.write_text("""#!/bin/sh\necho '@@{"event": "values", "took_s": 1}'\necho 'gone' >&2\nexit 3\n""")
    driver.chmod(0o755)
    found = run_workload(driver, "pool", "control", {}, limit_s=LIMIT_S, scratch=tmp_path)
    assert found.values == {"took_s": 1}
    assert found.error.startswith("ended with exit code 3 after ")
    assert found.error.endswith(": gone")


@pytest.mark.slow
def test_a_driver_that_closes_its_output_and_stays_ends_with_the_limit(tmp_path: Path) -> None:
    driver = tmp_path / "driver"
    driver.write_text("#!/bin/sh\nexec sleep 600 >&-\n")
    driver.chmod(0o755)
    found = run_workload(driver, "pool", "call", {}, limit_s=1.0, scratch=tmp_path)
    assert found.error == "no end within 1 s"


@pytest.mark.slow
def test_a_bench_that_is_told_to_end_ends_what_it_started(tmp_path: Path) -> None:
    driver = tmp_path / "driver"
    driver.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid\nexec sleep 600\n")
    driver.chmod(0o755)
    command = [sys.executable, "-m", "bench", "--rows", "call", "--peers", "pool", "--python", f"pool={driver}"]
    command += ["--out", str(tmp_path / "out")]
    bench = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
    try:
        wait_for((tmp_path / "pid").exists)
        bench.terminate()
        assert bench.wait(LIMIT_S) == 128 + signal.SIGTERM
    finally:
        bench.kill()
        bench.wait()
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())


def wait_for(state: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not state():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nothing_begins_after_the_end_of_the_time_and_every_row_is_written(tmp_path: Path) -> None:
    settings = Settings(True, tmp_path, (1000,), {"pool": PYTHON}, deadline=time.monotonic())
    rows, written = [row("call"), row("cold"), row("memory"), row("control")], []
    found = run_rows(rows, ["pool"], settings, lambda _: None, lambda so_far: written.append(len(so_far)))
    assert [one.error for one in found[:3]] == [OUT_OF_TIME] * 3
    assert found[3].error.startswith("not applicable")
    assert written == [1, 2, 3, 4]
    assert OUT_OF_TIME.partition(":")[0] in markdown(rows, found)


def test_a_lost_result_is_waited_for_once() -> None:
    waits: list[str] = []

    def take(handle: str) -> str:
        if handle.startswith("lost"):
            waits.append(handle)
            raise TimeoutError
        return handle

    outcome = settle_each(["a", "lost 1", "b", "lost 2", "c"], take, lambda handle: not handle.startswith("lost"))
    assert outcome.values == ["a", "b", "c"]
    assert len(outcome.errors) == 2
    assert waits == ["lost 1"]


def test_pool_loses_the_poisoned_task_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.pool_peer.LOST_AFTER_S", 0.5)
    pool = peer_class("pool")()
    pool.start()
    try:
        from bench import work

        outcome = pool.settle(work.poison, range(490, 510))
    finally:
        pool.stop()
    assert sorted(outcome.values) == [index for index in range(490, 510) if index != 500]
    assert len(outcome.errors) == 1


@pytest.mark.parametrize("peer", NAMES)
def test_sizes_only_take_away(peer: str) -> None:
    steps = {step.workload: step for row in ROWS for step in row.steps}
    for workload, sizes in peer_class(peer).sizes.items():
        whole = {"tasks": 1_000_000} if workload == "memory" else steps[workload].parameters
        for key, size in sizes.items():
            assert size <= whole[key], f"{peer}, {workload}: {key}"
    for step in steps.values():
        full, quick = parameters_of(step, peer, quick=False), parameters_of(step, peer, quick=True)
        assert full.keys() >= step.parameters.keys()
        assert quick.get("tasks", 0) <= full.get("tasks", 0)


def test_a_peer_never_holds_more_tasks_than_the_smallest_size_of_memory() -> None:
    assert memory_sizes_of("fallow", (1_000, 9_000)) == [1_000, 9_000]
    assert memory_sizes_of("pool", (1_000, 9_000)) == [1_000]
    assert memory_sizes_of("dask", (1_000_000,)) == [peer_class("dask").sizes["memory"]["tasks"]]


def test_another_number_of_tasks_stands_beside_the_rate() -> None:
    one = Measurement("submit", "dask", {"submits_per_s": 600, "tasks": 5_000})
    values = {"fallow": {"submits_per_s": 60_000, "tasks": 100_000}, "dask": one.values}
    assert shown(row("submit"), one, values) == "600/s, over 5,000 tasks"
    assert shown(row("submit"), one, {"dask": one.values, "fallow": {"tasks": 5_000}}) == "600/s"


def test_memory_of_fewer_tasks_is_a_lower_bound() -> None:
    said = row("memory").show({"memory_mb 5000": 40.0, "memory_mb": 40.0, "memory_mb 1000000": 300.2})
    assert said == "40 MB for 5,000, 300 MB for 1M"

    def ratio(theirs_mb: float, tasks: int) -> str:
        fallow = {"memory_mb": 10.0, "tasks": 1_000_000}
        return ratio_text(row("memory"), "ray", {"fallow": fallow, "ray": {"memory_mb": theirs_mb, "tasks": tasks}})

    assert ratio(200.0, 20_000) == "at least 20 x"
    assert ratio(5.0, 20_000) == ""
    assert ratio(5.0, 1_000_000) == "0.5 x"


def test_what_serves_no_more_after_its_control_died_is_said_and_fails_the_target() -> None:
    values = {"results": 2000, "of": 2000, "twice": 0, "took_s": 10.5, "serves": False}
    assert row("control").show(values) == "2000 of 2000, 10.5 s; serves no more"
    assert [check.met for check in row("control").checks({"fallow": values})] == [False]
    assert [check.met for check in row("control").checks({"fallow": values | {"serves": True}})] == [True]


def test_the_careful_setting_stands_beside_the_default_one() -> None:
    default = {"results": 1999, "of": 2000, "twice": 0, "longer_s": 1.0}
    careful = {"careful_results": 2000, "careful_of": 2000, "careful_twice": 0, "careful_took_s": 11.26}
    careful["careful_message"] = ""
    show = row("kill_worker").show
    assert show(default | careful) == "not complete: 1999 of 2000 (careful: 2000 of 2000, 11.3 s)"
    assert show(careful) == "- (careful: 2000 of 2000, 11.3 s)"
    assert show(default) == "not complete: 1999 of 2000"


def test_every_step_has_its_workload_and_only_careful_peers_run_careful_steps(tmp_path: Path) -> None:
    assert {step.workload for row in ROWS for step in row.steps} - {"cold"} == WORKLOADS.keys()
    careful = [step for step in row("kill_worker").steps if step.workload == "kill_worker_careful"]
    assert careful
    only = dataclasses.replace(row("kill_worker"), steps=tuple(careful))
    settings = Settings(True, tmp_path, (1000,), {"pool": PYTHON, "parsl": PYTHON}, deadline=time.monotonic())
    pool, parsl = run_rows([only], ["pool", "parsl"], settings, lambda _: None, lambda _: None)
    assert (pool.values, pool.error) == ({}, "")
    assert parsl.error == OUT_OF_TIME


def test_the_json_holds_all_that_was_found() -> None:
    one = Measurement("skew", "fallow", {"makespan_ratio": 1.0, "bare_ratio": 1.0, "over_bare": 1.0})
    content = as_json([row("skew")], [one], quick=True)
    assert content["measurements"][0]["values"]["over_bare"] == 1.0
    assert content["targets"]["skew"][0]["met"] is True
