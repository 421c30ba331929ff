"""Versions that come, go and fail, with loading replaced by something that can be held still."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.errors import Code, ServingError
from serving.server.batching import BatchScheduler
from serving.server.versions import (
    All,
    HostOptions,
    Latest,
    Policy,
    Specific,
    State,
    VersionManager,
)

PATIENCE = 30.0


class FakeVersion:
    """A loaded version that counts nothing but its requests."""

    warmup_requests = 0

    def __init__(self, version: int) -> None:
        self.version = version
        self.requests = 0
        self.unloaded = False

    def unload(self) -> None:
        assert not self.requests
        self.unloaded = True


class FakeLoader:
    """Stands in for `load_version`.

    Attributes:
      broken: versions that cannot be loaded.
      loaded: by version.
      loads: versions in the order in which they were asked for.
      gate: loading waits while it is not set.
    """

    def __init__(self) -> None:
        self.broken: set[int] = set()
        self.loaded: dict[int, FakeVersion] = {}
        self.loads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, folder: Path, version: int, **_: Any) -> FakeVersion:
        self.loads.append(version)
        assert self.gate.wait(PATIENCE)
        if version in self.broken:
            raise ServingError(Code.DATA_LOSS, f"{folder}/variables are torn")
        self.loaded[version] = FakeVersion(version)
        return self.loaded[version]


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> FakeLoader:
    loader = FakeLoader()
    monkeypatch.setattr("serving.server.versions.load_version", loader)
    return loader


@pytest.fixture
def manage(loader: FakeLoader, tmp_path: Path) -> Iterator[Callable[..., VersionManager]]:
    scheduler = BatchScheduler(1)
    managers = []

    def start(
        policy: Policy | None = None, *, base_path: Path = tmp_path, **options: Any
    ) -> VersionManager:
        manager = VersionManager(
            "siamese",
            base_path,
            options=HostOptions(policy=policy or Latest(), poll_seconds=0.01, **options),
            scheduler=scheduler,
            watch=lambda *_: None,
        )
        manager.start()
        managers.append(manager)
        return manager

    yield start
    loader.gate.set()
    for manager in managers:
        manager.close()
    scheduler.close()


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for what the manager's thread is about to do."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen")


def states(manager: VersionManager) -> dict[int, State]:
    return {status.version: status.state for status in manager.states()}


def answering(manager: VersionManager, **which: Any) -> int:
    served = manager.acquire(which.get("version"), which.get("label"))
    manager.release(served)
    return served.version


def add(base_path: Path, *versions: int) -> None:
    for version in versions:
        (base_path / str(version)).mkdir()


def test_the_newest_version_answers_and_replaces_the_one_before(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    manager = manage()
    assert manager.wait_available(PATIENCE)
    assert answering(manager) == 2
    add(tmp_path, 3)
    eventually(lambda: states(manager) == {3: State.AVAILABLE, 2: State.END})
    assert answering(manager) == 3
    assert loader.loads == [2, 3]
    assert loader.loaded[2].unloaded


def test_the_old_version_answers_while_the_new_one_is_being_loaded(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1)
    manager = manage()
    assert manager.wait_available(PATIENCE)
    loader.gate.clear()
    add(tmp_path, 2)
    eventually(lambda: states(manager).get(2) is State.LOADING)
    assert states(manager)[1] is State.AVAILABLE
    assert answering(manager) == 1
    loader.gate.set()
    eventually(lambda: states(manager) == {2: State.AVAILABLE, 1: State.END})


def test_a_version_is_unloaded_only_after_its_last_request(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1)
    manager = manage()
    assert manager.wait_available(PATIENCE)
    first, second = manager.acquire(None, None), manager.acquire(1, None)
    add(tmp_path, 2)
    eventually(lambda: states(manager) == {2: State.AVAILABLE, 1: State.UNLOADING})
    with pytest.raises(ServingError, match=r"Specific\(siamese, 1\)") as error:
        manager.acquire(1, None)
    assert error.value.code is Code.NOT_FOUND
    manager.release(first)
    assert answering(manager) == 2
    assert not loader.loaded[1].unloaded
    manager.release(second)
    eventually(lambda: states(manager)[1] is State.END)
    assert loader.loaded[1].unloaded


def test_a_version_that_cannot_be_loaded_leaves_the_others_alone(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1)
    manager = manage()
    assert manager.wait_available(PATIENCE)
    loader.broken.add(2)
    add(tmp_path, 2)
    eventually(lambda: states(manager) == {2: State.END, 1: State.AVAILABLE})
    (failed,) = manager.states(2)
    assert (failed.code, failed.message) == (Code.DATA_LOSS, "2/variables are torn")
    assert answering(manager) == 1
    add(tmp_path, 3)
    eventually(lambda: states(manager).get(3) is State.AVAILABLE)
    assert answering(manager) == 3
    assert loader.loads == [1, 2, 3]


def test_a_failed_version_is_tried_again_when_its_files_change(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    loader.broken.add(1)
    add(tmp_path, 1)
    manager = manage()
    eventually(lambda: states(manager) == {1: State.END})
    loader.broken.clear()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"now whole")
    assert manager.wait_available(PATIENCE)
    assert answering(manager) == 1
    assert loader.loads == [1, 1]


def test_a_version_that_is_taken_away_gives_way_to_the_one_before(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    manager = manage()
    assert manager.wait_available(PATIENCE)
    (tmp_path / "2").rmdir()
    eventually(lambda: states(manager) == {1: State.AVAILABLE, 2: State.END})
    assert answering(manager) == 1


def test_while_the_base_path_is_away_everything_stays(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    base_path = tmp_path / "models"
    base_path.mkdir()
    add(base_path, 1)
    manager = manage(base_path=base_path)
    assert manager.wait_available(PATIENCE)
    base_path.rename(tmp_path / "away")
    manager.update(manager.options)  # another look
    assert manager.wait_settled(PATIENCE)
    assert states(manager) == {1: State.AVAILABLE}
    assert answering(manager) == 1
    add(tmp_path / "away", 2)
    (tmp_path / "away").rename(base_path)
    eventually(lambda: states(manager) == {2: State.AVAILABLE, 1: State.END})


def test_policies_choose_the_versions(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2, 3, 4)
    available = State.AVAILABLE
    assert manage(Latest(2)).wait_settled(PATIENCE)
    assert sorted(loader.loads) == [3, 4]
    everything = manage(All())
    assert everything.wait_settled(PATIENCE)
    assert states(everything) == {1: available, 2: available, 3: available, 4: available}
    specific = manage(Specific(frozenset({2, 9})))
    assert specific.wait_settled(PATIENCE)
    assert states(specific) == {2: available}
    assert answering(specific) == 2
    assert answering(everything, version=3) == 3


def test_a_changed_policy_takes_effect(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    manager = manage()
    assert manager.wait_available(PATIENCE)
    manager.update(HostOptions(policy=Specific(frozenset({1})), labels={"stable": 1}))
    assert manager.wait_settled(PATIENCE)
    assert answering(manager) == answering(manager, label="stable") == 1
    eventually(lambda: states(manager) == {1: State.AVAILABLE, 2: State.END})


def test_a_version_goes_after_the_label_that_points_to_it(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    manager = manage(All(), labels={"stable": 2})
    assert manager.wait_settled(PATIENCE)
    only_the_first = Specific(frozenset({1}))
    # What a reload does: labels move last, when what they will point to is known to be loaded.
    manager.update(HostOptions(policy=only_the_first, labels={"stable": 2}, poll_seconds=0.01))
    assert manager.wait_settled(PATIENCE)
    assert answering(manager, label="stable") == 2
    manager.update(HostOptions(policy=only_the_first, labels={"stable": 1}, poll_seconds=0.01))
    assert answering(manager, label="stable") == 1
    eventually(lambda: loader.loaded[2].unloaded)


def test_labels_lead_to_loaded_versions_only(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    manager = manage(All(), labels={"stable": 1, "canary": 2, "next": 3})
    assert manager.wait_settled(PATIENCE)
    assert answering(manager, label="stable") == 1
    assert answering(manager, label="canary") == 2
    with pytest.raises(ServingError, match=r"Specific\(siamese, 3\)") as not_loaded:
        manager.acquire(None, "next")
    assert not_loaded.value.code is Code.NOT_FOUND
    with pytest.raises(ServingError, match="Unrecognized servable version label: gone") as unknown:
        manager.acquire(None, "gone")
    assert unknown.value.code is Code.INVALID_ARGUMENT
    add(tmp_path, 3)
    eventually(lambda: states(manager).get(3) is State.AVAILABLE)
    assert answering(manager, label="next") == 3


def test_without_versions_nothing_is_found(
    manage: Callable[..., VersionManager], tmp_path: Path
) -> None:
    manager = manage()
    assert manager.wait_settled(PATIENCE)
    assert not manager.wait_available(0)
    with pytest.raises(ServingError, match=r"Latest\(siamese\)") as error:
        manager.acquire(None, None)
    assert error.value.code is Code.NOT_FOUND


def test_closing_waits_for_the_requests_under_way(
    manage: Callable[..., VersionManager], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1)
    manager = manage()
    assert manager.wait_available(PATIENCE)
    served = manager.acquire(None, None)
    closing = threading.Thread(target=manager.close)
    closing.start()
    eventually(lambda: states(manager)[1] is State.UNLOADING)
    with pytest.raises(ServingError) as error:
        manager.acquire(None, None)
    assert error.value.code is Code.UNAVAILABLE
    assert not loader.loaded[1].unloaded
    manager.release(served)
    closing.join(PATIENCE)
    assert loader.loaded[1].unloaded
    assert states(manager) == {1: State.END}
