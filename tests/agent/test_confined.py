"""Files that come out of a sandbox: only plain ones of its own folder, and only what they were said to hold."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3
import pytest

if sys.platform != "linux":
    pytest.skip("sandboxes need Linux", allow_module_level=True)

from fallow.agent.confined import Confined, Tampered, interpreter_folders, open_folder_of, user_packages
from fallow.model.errors import SandboxUnavailable
from fallow.sandbox.folders import remove_tree

GOOD = b"what the task computed"
DIGEST = blake3.blake3(GOOD).hexdigest()
SECRET = b"canary-of-the-owner..."
assert len(SECRET) == len(GOOD)


@pytest.fixture
def confined(tmp_path: Path) -> Iterator[Confined]:
    (tmp_path / "secret").write_bytes(SECRET)
    made = Confined(tmp_path / "box")
    yield made
    made.close()
    assert not made.folder.exists()
    assert (tmp_path / "secret").read_bytes() == SECRET


def take(confined: Confined, inside: str, digest: str = DIGEST, size: int = len(GOOD)) -> bytes:
    """What was taken. Checks that a file that was refused leaves nothing."""
    into = confined.folder.parent / "taken"
    try:
        confined.take(inside, str(into), digest, size)
    except Tampered:
        assert not into.exists()
        raise
    data = into.read_bytes()
    into.unlink()
    return data


def test_a_plain_file_is_taken(confined: Confined) -> None:
    (confined.scratch / "result").write_bytes(GOOD)
    assert take(confined, "/scratch/result") == GOOD
    assert confined.result_path("/scratch/result") == str(confined.scratch / "result")


@pytest.mark.parametrize(
    "inside", ["/etc/passwd", "/inputs/x", "/scratch/a/b", "/scratch/", "/scratch/..", "/scratch/.x", ""]
)
def test_paths_of_results_are_names_in_the_scratch_folder(confined: Confined, inside: str) -> None:
    assert confined.result_path(inside) is None


@pytest.mark.parametrize("inside", ["/scratch/../../secret", "/scratch/x/../../../secret", "/secret", "/scratch"])
def test_no_path_leaves_the_folder(confined: Confined, inside: str) -> None:
    (confined.scratch / "x").mkdir()
    with pytest.raises(Tampered):
        take(confined, inside, blake3.blake3(SECRET).hexdigest())


def test_links_are_not_followed(confined: Confined) -> None:
    secret = confined.folder.parent / "secret"
    (confined.scratch / "symbolic").symlink_to(secret)
    (confined.scratch / "folder").symlink_to(secret.parent)
    (confined.scratch / "good").write_bytes(GOOD)
    (confined.scratch / "to-good").symlink_to("good")
    (confined.scratch / "magic").symlink_to("/proc/self/environ")
    os.link(secret, confined.scratch / "hard")
    told = blake3.blake3(SECRET).hexdigest()
    for name in ("symbolic", "folder/secret", "hard"):
        with pytest.raises(Tampered):
            take(confined, f"/scratch/{name}", told)
    for name in ("to-good", "magic"):
        with pytest.raises(Tampered):
            take(confined, f"/scratch/{name}")


def test_what_is_no_file_is_refused_at_once(confined: Confined) -> None:
    os.mkfifo(confined.scratch / "fifo")  # opening it to read would wait for a writer
    (confined.scratch / "folder").mkdir()
    for name in ("fifo", "folder", "missing"):
        with pytest.raises(Tampered):
            take(confined, f"/scratch/{name}", size=0)


def test_size_and_content_are_what_was_said(confined: Confined) -> None:
    (confined.scratch / "result").write_bytes(GOOD)
    with pytest.raises(Tampered, match="bytes instead of"):
        take(confined, "/scratch/result", size=len(GOOD) + 1)
    with pytest.raises(Tampered, match="said to hold"):
        take(confined, "/scratch/result", digest="0" * 64)
    with open(confined.scratch / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Tampered, match="bytes instead of"):
        take(confined, "/scratch/sparse")


def test_a_file_that_is_swapped_meanwhile_gives_its_own_content_or_none(confined: Confined) -> None:
    """A task swaps its result for a link to the owner's file while it is taken: never is another content taken."""
    secret = confined.folder.parent / "secret"
    target, spare = confined.scratch / "result", confined.scratch / "spare"
    target.write_bytes(GOOD)
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            # (A hard link to the owner's file cannot be made in there: the folder is a mount of its own.)
            spare.symlink_to(secret)
            os.replace(spare, target)
            os.mkfifo(spare)
            os.replace(spare, target)
            spare.write_bytes(GOOD)
            os.replace(spare, target)

    swapping = threading.Thread(target=swap)
    swapping.start()
    taken = refused = 0
    try:
        while taken < 20 or refused < 20:
            try:
                assert take(confined, "/scratch/result") == GOOD
                taken += 1
            except Tampered:
                refused += 1
            with pytest.raises(Tampered):
                take(confined, "/scratch/result", blake3.blake3(SECRET).hexdigest())
            assert taken + refused < 100_000
    finally:
        ended.set()
        swapping.join(30)


def test_two_workers_may_be_shown_the_same_at_once(confined: Confined, tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    for number in range(20):
        (modules / f"m{number}.py").write_text("")
    for round_ in range(20):
        with ThreadPoolExecutor(4) as threads:
            start = threading.Barrier(4)

            def show(number: int, name: str = f"blob-{round_}", start: threading.Barrier = start) -> str:
                start.wait(30)
                if number % 2:
                    return confined.expose(str(tmp_path / "secret"), name)
                return confined.expose_folder(str(modules), f"of-{name}")

            shown = list(threads.map(show, range(4)))
        assert shown == [f"/inputs/of-blob-{round_}", f"/inputs/blob-{round_}"] * 2
    left = [name for name in os.listdir(confined.inputs) if name.startswith(".") or name.endswith(".part")]
    assert not left


def test_a_tree_is_removed_whatever_a_task_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "file").write_bytes(SECRET)
    tree = tmp_path / "tree"
    deep = tree / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "out").symlink_to(tmp_path / "keep")
    (deep / "file").write_bytes(GOOD)
    (tree / "a").chmod(0)
    remove_tree(tree)
    assert not tree.exists()
    assert (tmp_path / "keep" / "file").read_bytes() == SECRET


def an_environment(folder: Path) -> str:
    """Its interpreter."""
    for name in ("bin", "lib"):
        (folder / name).mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("home = /usr/bin")
    (folder / "notes.txt").write_text("the owner's")
    (folder / "bin" / "python").symlink_to("/usr/bin/python3")
    return str(folder / "bin" / "python")


def test_of_an_environment_only_its_own_parts_are_shown(tmp_path: Path) -> None:
    python = an_environment(tmp_path / "project")
    assert interpreter_folders(python) == tuple(
        str(tmp_path / "project" / name) for name in ("bin", "lib", "pyvenv.cfg")
    )


def test_a_home_that_is_an_environment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "ada"
    python = an_environment(home)
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(SandboxUnavailable, match=r"in it lies all of .*ada: strangers' code would see it. .*-m venv"):
        interpreter_folders(python)


def test_packages_of_a_user_are_shown_where_they_are_no_part_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert user_packages(sys.executable) == ()
    monkeypatch.setattr(blake3, "__file__", str(tmp_path / "site-packages" / "blake3" / "__init__.py"))
    assert user_packages(sys.executable) == (str(tmp_path / "site-packages"),)
    assert user_packages("/usr/bin/another") == ()


def test_a_scratch_folder_of_its_own_is_taken_from_and_goes(tmp_path: Path) -> None:
    made = Confined(tmp_path / "box", 16 << 20)
    try:
        if all(not mount.bounded for mount in made.mounts(sys.executable)):
            pytest.skip("no file system of its own can be had here: see tests/sandbox/test_bounded_folder.py")
        named = made.result_path("/scratch/result")
        assert named is not None
        folder = open_folder_of(named)
        inside = Path(f"/proc/self/fd/{folder}")
        (inside / "result").write_bytes(GOOD)
        (tmp_path / "secret").write_bytes(SECRET)
        (inside / "link").symlink_to(tmp_path / "secret")
        (inside / "worker-1").mkdir()
        (inside / "worker-1" / "file").write_bytes(GOOD)
        assert os.listdir(made.scratch) == [], "the machine does not see it"
        assert take(made, "/scratch/result") == GOOD
        with pytest.raises(Tampered):
            take(made, "/scratch/link", blake3.blake3(SECRET).hexdigest())
        made.remove("worker-1")
        assert not (inside / "worker-1").exists()
        os.close(folder)
    finally:
        made.close()
    with pytest.raises(FileNotFoundError):
        open_folder_of(named)
    assert not made.folder.exists()
