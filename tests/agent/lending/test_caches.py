"""What is kept stays within the disk that is lent; what is in use stays whatever happens."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fallow.agent.caches import Caches, tree_bytes

HOUR_S = 3600.0


def make(folder: Path, size: int, used_s_ago: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_bytes(os.urandom(size))
    then = time.time() - used_s_ago
    os.utime(folder, (then, then))
    return folder


def test_the_limit_is_held(tmp_path: Path) -> None:
    old = make(tmp_path / "environments" / ("a" * 32), 200_000, 3 * HOUR_S)
    used = make(tmp_path / "environments" / ("b" * 32), 200_000, 9 * HOUR_S)
    new = make(tmp_path / "modules" / ("c" * 64), 200_000, HOUR_S)
    blob = tmp_path / "blobs" / ("d" * 64)
    blob.parent.mkdir()
    blob.write_bytes(os.urandom(200_000))
    os.utime(blob, (time.time() - 2 * HOUR_S,) * 2)
    caches = Caches(tmp_path, lambda: {str(used / "bin" / "python")})
    usage = caches.look(time.time())
    assert {one.kind for one in usage.kept} == {"environment", "modules", "data"}
    assert 800_000 <= usage.kept_bytes < 900_000
    left = caches.prune(500_000, time.time())
    assert not old.exists()
    assert not blob.exists()
    assert used.exists(), "it is in use"
    assert new.exists()
    assert left.kept_bytes < 500_000
    assert caches.prune(1, time.time()).kept_bytes == tree_bytes(used)
    assert not new.exists()


def test_clearing_by_age(tmp_path: Path) -> None:
    old = make(tmp_path / "environments" / ("a" * 32), 1000, 50 * HOUR_S)
    new = make(tmp_path / "environments" / ("b" * 32), 1000, HOUR_S)
    caches = Caches(tmp_path, frozenset)
    removed, left = caches.clear(24 * HOUR_S, time.time())
    assert [one.path for one in removed] == [str(old)]
    assert left == []
    assert new.exists()


def test_what_came_into_use_meanwhile_stays(tmp_path: Path) -> None:
    folder = make(tmp_path / "environments" / ("a" * 32), 1000, 50 * HOUR_S)
    needed: set[str] = set()
    caches = Caches(tmp_path, lambda: needed)
    usage = caches.look(time.time())
    needed.add(str(folder / "bin" / "python"))
    assert caches._remove(list(usage.kept)) == []
    needed.clear()
    os.utime(folder)
    assert caches._remove(list(usage.kept)) == []
    assert folder.exists()


def test_what_a_dead_agent_was_removing_goes(tmp_path: Path) -> None:
    half = make(tmp_path / "environments" / (".going-" + "a" * 32), 1000, HOUR_S)
    assert Caches(tmp_path, frozenset).prune(10**9, time.time()).kept == ()
    assert not half.exists()


def test_links_cost_once_and_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(400_000))
    (tmp_path / "inside").mkdir()
    os.link(tmp_path / "file", tmp_path / "inside" / "same")
    os.symlink("/usr", tmp_path / "inside" / "link")
    assert 400_000 <= tree_bytes(tmp_path) < 500_000
