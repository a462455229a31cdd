"""The owner of one machine comes back, and the work goes on on another: a real pool with two lent nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.devices.drivers import Card, Driver, Process, build_library
from tests.pool import Pool, read_line, running_pool, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

GIB = 1 << 30
SETTINGS = '[owner]\nwatch = false\nbusy_cpu = "100 %"\nresume_cpu = "100 %"\nsettle = "1 s"\ngrace = "1 s"\n'


def home_of(pool: Pool, name: str) -> Path:
    home = pool.home.parent / f"node-{name}"
    settings = home / "agent" / "node.toml"
    settings.parent.mkdir(parents=True, mode=0o700)
    settings.write_text(SETTINGS)
    return home


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    if sys.platform != "linux":
        pytest.skip("agents need Linux")
    with running_pool(tmp_path / "home", "--no-agent") as pool:
        yield pool


ON_GPU = """
    import os, sys, time
    import fallow

    app = fallow.App("gpus")
    folder = sys.argv[1]

    @app.function(gpu=1)
    def on_gpu(folder):
        with open(folder + "/began", "a") as file:
            file.write(os.environ["FAKE_NVML"][-1])
        while not os.path.exists(folder + "/go"):
            time.sleep(0.02)
        return os.environ["FAKE_NVML"][-1], os.environ["CUDA_VISIBLE_DEVICES"]

    if __name__ == "__main__":
        print(on_gpu.remote(folder))
"""

ON_CPU = """
    import os, sys, time
    import fallow

    app = fallow.App("cpus")

    @app.function
    def on_cpu(x, folder):
        open(f"{folder}/cpu{x}", "w").close()
        while not all(os.path.exists(f"{folder}/cpu{y}") for y in range(3)):
            time.sleep(0.02)
        return os.environ["FAKE_NVML"][-1]

    if __name__ == "__main__":
        print(sorted(on_cpu.map(range(3), kwargs={"folder": sys.argv[1]})))
"""


def test_a_gpu_that_its_owner_uses_gets_no_work_and_its_slot_gets_other_work(
    pool: Pool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    library = build_library("fake_nvml.c", tmp_path_factory.mktemp("nvml"), "libnvidia-ml.so.1")
    drivers = {name: Driver(tmp_path / f"driver-{name}") for name in "ab"}
    owners = Process(0, 1, 4 * GIB, 90)
    for name, driver in drivers.items():
        driver.say([Card(f"GPU-{name}")])
        variables = {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML": str(tmp_path / f"driver-{name}")}
        pool.join(name, 2, home_of(pool, name), **variables)
    wait_for("the nodes", lambda: [node["state"] for node in pool.json("nodes")] == ["alive", "alive"])
    began = tmp_path / "began"
    began.touch()
    script = pool.start_script(ON_GPU, str(tmp_path))
    first = wait_for("the task", began.read_text)
    assert first in "ab"
    other = "ba"["ab".index(first)]
    drivers[first].say([Card(f"GPU-{first}", free=20 * GIB)], [owners])
    wait_for("the task on the other node", lambda: began.read_text() == first + other)

    done = pool.script(ON_CPU, str(tmp_path))
    assert done.stdout.strip() == str(sorted([first, first, other])), "three free slots, two of them beside the GPU"
    found = {node["spec"]["name"]: node for node in pool.json("nodes")}
    assert "owner" in found[first]["spec"]["devices"][0]["fault"]
    assert not found[other]["spec"]["devices"][0]["fault"]

    # Both owners want theirs: the task waits for one of them, and nobody holds a lease of it meanwhile.
    home = str(pool.home.parent / f"node-{other}")
    said = pool.cli("node", "pause", "--gpu", "0", "--home", home)
    assert "gpu 0     NVIDIA GeForce RTX 4090, paused: by your word" in said.stdout, said.stderr
    assert "  state     paused" not in said.stdout, "the processor works on"
    assert "there is no GPU 1 here" in pool.cli("node", "pause", "--gpu", "1", "--home", home).stderr
    wait_for("the task to wait", lambda: pool.json("jobs")[0]["counts"]["running"] == 0)
    wait_for("no slot of it", lambda: not any("gpus" in str(node["jobs"]) for node in pool.json("nodes")))
    (tmp_path / "go").touch()
    said = pool.cli("node", "resume", "--home", home)
    assert "paused: by your word" not in said.stdout
    assert read_line(script) == str((other, f"GPU-{other}"))
    assert script.wait(60) == 0


SAVES = """
    import os, sys, time
    import fallow

    app = fallow.App("long")

    @app.function(retries=0)
    def count(folder):
        step = fallow.checkpoint.load(default=0)
        with open(folder + "/began", "a") as file:
            file.write(f"{os.environ['NODE']} {step}\\n")
        while not os.path.exists(folder + "/go"):
            step += 1
            if step == 30:
                fallow.checkpoint.save(step, force=True)
            with open(folder + "/step", "w") as file:
                file.write(str(step))
            time.sleep(0.02)
        return os.environ["NODE"], step

    if __name__ == "__main__":
        print(*count.remote(sys.argv[1]), flush=True)
        while not os.path.exists(sys.argv[1] + "/end"):
            time.sleep(0.02)
"""


def test_a_long_task_goes_on_elsewhere_from_what_it_saved(pool: Pool, tmp_path: Path) -> None:
    for name in "ab":
        pool.join(name, 1, home_of(pool, name), NODE=name)
    wait_for("the nodes", lambda: [node["state"] for node in pool.json("nodes")] == ["alive", "alive"])
    began = tmp_path / "began"
    began.touch()
    script = pool.start_script(SAVES, str(tmp_path))
    wait_for("some steps", lambda: (tmp_path / "step").exists() and int((tmp_path / "step").read_text() or 0) > 60)
    first, step = began.read_text().split()
    assert step == "0"
    other = "ba"["ab".index(first)]
    home = pool.home.parent / f"node-{first}"
    paused = pool.cli("node", "pause", env={"FALLOW_HOME": str(home)})
    assert "you paused it with `fallow node pause`" in paused.stdout, paused.stderr
    wait_for("the task on the other node", lambda: began.read_text().count("\n") == 2)
    name, step = began.read_text().splitlines()[1].split()
    assert name == other
    assert step == "30", "it goes on from what it saved"
    (tmp_path / "go").touch()
    last = read_line(script).split()
    assert last[0] == other, "no retry was charged: the function has none"
    assert int(last[1]) >= 30

    [job] = pool.json("jobs")
    assert job["counts"]["failed"] == 0
    assert job["counts"]["wasted_s"] > 0

    def wasted() -> dict[str, float]:
        return {node["spec"]["name"]: node["wasted_s"] for node in pool.json("nodes")}

    wait_for("the coordinator's next turn", lambda: wasted()[first] > 0)
    assert wasted()[other] == 0
    assert "lost to owners who came back" in pool.cli("status", job["job_id"]).stdout
    assert "lost to its owner's return" in pool.cli("nodes").stdout
    [status] = pool.json("node", "status", "--home", str(home))
    assert status["wasted_s"] > 0
    (tmp_path / "end").touch()
    assert script.wait(60) == 0
