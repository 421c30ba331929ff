"""Versions appear whole, never collide, and only with both blessings."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from components.pusher import versions as pusher_versions
from components.pusher.component import Executor
from components.pusher.pushed_models import MODEL_ID, NOT_PUSHED_BECAUSE, ROLLED_BACK
from components.pusher.versions import (
    TEMPORARY_PREFIX,
    has_same_files,
    push_version,
    remove_version,
    withdraw_version,
)
from data_ingest.durable import temporary_name
from serving.saved_model.versions import rolled_back_versions, versions

Push = Callable[..., standard_artifacts.PushedModel]

FILES = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"w" * 10_000,
    "assets.extra/model.keras": b"keras",
    "assets.extra/tf_serving_warmup_requests": b"warm-up",
    "assets.extra/model_card.json": b"{}",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the files of an export."""
    root = tmp_path / "model" / "Format-Serving"
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def is_whole(version: Path) -> bool:
    return {
        str(path.relative_to(version)): path.read_bytes()
        for path in version.rglob("*")
        if path.is_file()
    } == FILES


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


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which no more than two files of a push fit."""
    copied: list[Path] = []

    def copyfile(source: Path, target: Path) -> None:
        copied.append(target)
        target.touch()
        if len(copied) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(pusher_versions.shutil, "copyfile", copyfile)


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


@pytest.fixture
def pushed(source: Path, tmp_path: Path) -> Push:
    """Runs our Pusher's executor as TFX does."""

    def run(
        *, model_blessed: int | None = 1, infra_blessed: int | None = 1, rolled_back: str = ""
    ) -> standard_artifacts.PushedModel:
        model = standard_artifacts.Model()
        model.uri = str(source.parent)
        model.id = 6
        if rolled_back:
            model.set_string_custom_property(ROLLED_BACK, rolled_back)
        blessings = {}
        for name, kind, value in (
            ("model_blessing", standard_artifacts.ModelBlessing, model_blessed),
            ("infra_blessing", standard_artifacts.InfraBlessing, infra_blessed),
        ):
            if value is not None:
                blessings[name] = [kind()]
                blessings[name][0].set_int_custom_property("blessed", value)
        result = standard_artifacts.PushedModel()
        result.uri = str(tmp_path / f"pushed-{time.monotonic_ns()}")
        destination = pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(tmp_path / "base"))
        )
        Executor().Do(
            {"model": [model], **blessings},
            {"pushed_model": [result]},
            {"push_destination": proto_utils.proto_to_json(destination)},
        )
        return result

    return run


def test_a_blessed_model_is_pushed_and_recorded(pushed: Push, tmp_path: Path) -> None:
    result = pushed()
    version = result.get_string_custom_property("pushed_version")
    assert result.get_int_custom_property("pushed") == 1
    assert abs(int(version) - time.time()) < 60
    destination = Path(result.get_string_custom_property("pushed_destination"))
    assert destination == tmp_path / "base" / version
    assert is_whole(destination)
    assert is_whole(Path(result.uri))
    assert result.get_int_custom_property(MODEL_ID) == 6


def test_a_push_that_was_cut_off_before_it_was_recorded_is_not_repeated(
    pushed: Push, source: Path, tmp_path: Path
) -> None:
    known_to_nobody = push_version(source, tmp_path / "base", now=lambda: 100.0)
    result = pushed()
    assert result.get_string_custom_property("pushed_version") == "100"
    assert result.get_int_custom_property(MODEL_ID) == 6
    assert is_whole(Path(result.uri))
    assert list((tmp_path / "base").iterdir()) == [known_to_nobody]


def test_a_model_that_is_not_the_newest_any_more_is_pushed_again(
    pushed: Push, source: Path, tmp_path: Path
) -> None:
    first = pushed().get_string_custom_property("pushed_version")
    newer = tmp_path / "base" / str(int(first) + 1)
    newer.mkdir()
    assert int(pushed().get_string_custom_property("pushed_version")) > int(newer.name)


@pytest.mark.parametrize("known_to_mlmd", [True, False])
def test_a_model_that_was_rolled_back_is_not_pushed_again(
    pushed: Push, tmp_path: Path, known_to_mlmd: bool
) -> None:
    version = int(pushed().get_string_custom_property("pushed_version"))
    withdraw_version(tmp_path / "base", version)
    result = pushed(rolled_back=f"version {version} was rolled back" if known_to_mlmd else "")
    assert result.get_int_custom_property("pushed") == 0
    assert f"version {version}" in result.get_string_custom_property(NOT_PUSHED_BECAUSE)
    assert versions(tmp_path / "base") == []


@pytest.mark.parametrize(
    "blessings",
    [
        {"model_blessed": 0},
        {"infra_blessed": 0},
        {"model_blessed": None},
        {"infra_blessed": None},
        {"model_blessed": None, "infra_blessed": None},
    ],
)
def test_a_model_without_both_blessings_is_not_pushed(
    pushed: Push, tmp_path: Path, blessings: dict[str, int | None]
) -> None:
    result = pushed(**blessings)
    assert result.get_int_custom_property("pushed") == 0
    assert not (tmp_path / "base").exists()


def test_a_full_disk_is_said_plainly_and_not_marked_pushed(
    pushed: Push, tmp_path: Path, small_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "components.pusher.component.io_utils.copy_dir", lambda source, target: None
    )
    with pytest.raises(OSError, match="no space left to push the model"):
        pushed()
    assert list((tmp_path / "base").iterdir()) == []
