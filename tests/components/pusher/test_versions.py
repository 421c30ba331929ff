"""Versions appear whole and never collide."""

import errno
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.pusher import versions as pusher_versions
from components.pusher.versions import (
    TEMPORARY_PREFIX,
    has_same_files,
    push_version,
    remove_version,
    withdraw_version,
)
from data_ingest.durable import temporary_name
from serving.saved_model.versions import rolled_back_versions, versions
from tests.components.pusher.export_files import is_whole


def test_a_version_is_the_time_and_holds_everything(source: Path, tmp_path: Path) -> None:
    target = push_version(source, tmp_path / "base", now=lambda: 1_700_000_000.9)
    assert target == tmp_path / "base" / "1700000000"
    assert is_whole(target)
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["1700000000"]


def test_pushes_within_one_second_get_following_numbers(source: Path, tmp_path: Path) -> None:
    pushed = [push_version(source, tmp_path, now=lambda: 100.0).name for _ in range(3)]
    assert pushed == ["100", "101", "102"]


def test_a_clock_that_was_set_back_still_makes_the_newest_version(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "2000").mkdir()
    assert push_version(source, tmp_path, now=lambda: 100.0).name == "2001"


def test_the_number_of_a_version_that_was_rolled_back_is_not_used_again(
    source: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        push_version(source, tmp_path, now=lambda: 100.0)
    withdraw_version(tmp_path, 101)
    withdraw_version(tmp_path, 101)  # no effect
    assert rolled_back_versions(tmp_path) == {101: tmp_path / "rolled-back-101"}
    assert versions(tmp_path) == [100]
    assert push_version(source, tmp_path, now=lambda: 100.0).name == "102"


def test_a_removed_version_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    push_version(source, tmp_path, now=lambda: 100.0)
    push_version(source, tmp_path, now=lambda: 100.0)
    remove_version(tmp_path, 100)
    assert [path.name for path in tmp_path.glob("*") if path.name != "model"] == ["101"]


@pytest.mark.parametrize("change", ["content", "missing", "more"])
def test_folders_are_the_same_only_if_every_file_is(
    source: Path, tmp_path: Path, change: str
) -> None:
    target = push_version(source, tmp_path / "base")
    assert has_same_files(source, target)
    weights = target / "variables/variables.data-00000-of-00001"
    if change == "content":
        weights.write_bytes(b"w" * 9_999 + b"v")
    elif change == "missing":
        weights.unlink()
    else:
        (target / "more").touch()
    assert not has_same_files(source, target)


def test_pushes_at_the_same_time_all_get_whole_versions(source: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    with ThreadPoolExecutor(8) as pool:
        pushed = list(pool.map(lambda _: push_version(source, base, now=lambda: 100.0), range(16)))
    assert len(set(pushed)) == 16
    assert all(is_whole(version) for version in pushed)
    assert len(list(base.iterdir())) == 16


def test_a_number_taken_between_looking_and_renaming_is_skipped(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[list[str]] = []
    next_version = pusher_versions.next_version

    def blind_at_first(names: Iterable[str], now: Callable[[], float]) -> int:
        looked.append(list(names))
        return 100 if len(looked) == 1 else next_version(looked[-1], now)

    push_version(source, tmp_path / "base", now=lambda: 100.0)
    monkeypatch.setattr(pusher_versions, "next_version", blind_at_first)
    assert push_version(source, tmp_path / "base", now=lambda: 100.0).name == "101"


PUSH = """
import os, shutil, sys
from pathlib import Path
from components.pusher import versions
from components.pusher.versions import push_version
from data_ingest import durable

step, source, base = sys.argv[1:]
def die(*args, **kwargs):
    os.kill(os.getpid(), 9)
copied = []
def copy_some(*args, real_copy=shutil.copyfile, **kwargs):
    copied.append(args)
    if len(copied) == 3:
        die()
    return real_copy(*args, **kwargs)

if step == "in the middle of the copy":
    shutil.copyfile = copy_some
elif step == "after the copy":
    versions.next_version = die
elif step == "before the rename":
    Path.rename = die
elif step == "after the rename":
    durable.synchronize = lambda folder: (
        die() if folder == Path(base) else None)
push_version(Path(source), Path(base), now=lambda: 100.0)
"""


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("in the middle of the copy", []),
        ("after the copy", []),
        ("before the rename", []),
        ("after the rename", ["100"]),
    ],
)
def test_a_push_killed_at_any_point_leaves_no_half_version(
    source: Path, tmp_path: Path, step: str, left: list[str]
) -> None:
    base = tmp_path / "base"
    killed = subprocess.run(
        [sys.executable, "-c", PUSH, step, str(source), str(base)],
        check=False,
        cwd=Path(__file__).parents[3],
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(path.name for path in base.iterdir() if path.name.isdigit()) == left
    assert all(is_whole(base / name) for name in left)
    temporaries = [path for path in base.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
    assert len(temporaries) == 1 - len(left)
    target = push_version(source, base, now=lambda: 100.0)
    assert is_whole(target)
    assert sorted(path.name for path in base.iterdir()) == [*left, target.name]


def test_a_temporary_folder_of_a_running_push_is_left_alone(source: Path, tmp_path: Path) -> None:
    running = tmp_path / temporary_name()
    running.mkdir()
    elsewhere = tmp_path / f"{TEMPORARY_PREFIX}another-host-1-1-abc"
    elsewhere.mkdir()
    push_version(source, tmp_path)
    assert running.exists()
    assert elsewhere.exists()


def test_a_recycled_process_number_does_not_keep_a_dead_push_alive(
    source: Path, tmp_path: Path
) -> None:
    host, pid, _, rest = temporary_name().rsplit("-", 3)
    stale = tmp_path / f"{host}-{pid}-1-{rest}"
    stale.mkdir()
    push_version(source, tmp_path)
    assert not stale.exists()


def test_a_full_disk_leaves_nothing_behind(source: Path, tmp_path: Path, small_disk: None) -> None:
    base = tmp_path / "base"
    with pytest.raises(OSError, match="No space left") as raised:
        push_version(source, base)
    assert raised.value.errno == errno.ENOSPC
    assert list(base.iterdir()) == []


def test_a_folder_without_a_model_is_not_pushed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(FileNotFoundError):
        push_version(tmp_path / "model", tmp_path / "base")
    assert not (tmp_path / "base").exists()
