"""Versions that come, go and fail, with loading replaced by something that can be held still."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.errors import Code, ServingError
from serving.server.batching import BatchScheduler
from serving.server.metrics import ServingMetrics
from serving.server.model_host import ModelHost
from serving.server.versions import HostOptions, Policy, State

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
    """Stands in for `LoadedVersion`.

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
    monkeypatch.setattr("serving.server.model_host.LoadedVersion", loader)
    return loader


@pytest.fixture
def serve(loader: FakeLoader, tmp_path: Path) -> Iterator[Callable[..., ModelHost]]:
    scheduler = BatchScheduler(1)
    hosts = []

    def start(
        policy: Policy | None = None, *, base_path: Path = tmp_path, **options: Any
    ) -> ModelHost:
        host = ModelHost(
            "siamese",
            base_path,
            options=HostOptions(policy=policy or Policy(), poll_seconds=0.01, **options),
            scheduler=scheduler,
            metrics=ServingMetrics(),
        )
        host.start()
        hosts.append(host)
        return host

    yield start
    loader.gate.set()
    for host in hosts:
        host.close()
    scheduler.close()


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for what the host's thread is about to do."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen")


def states(host: ModelHost) -> dict[int, int]:
    try:
        return {status.version: status.state for status in host.status()}
    except ServingError:  # nothing has been seen yet
        return {}


def answering(host: ModelHost, **which: Any) -> int:
    served = host.acquire(which.get("version"), which.get("label"))
    host.release(served)
    return served.version


def add(base_path: Path, *versions: int) -> None:
    for version in versions:
        (base_path / str(version)).mkdir()


def test_the_newest_version_answers_and_replaces_the_one_before(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    host = serve()
    assert host.wait_available(PATIENCE)
    assert answering(host) == 2
    add(tmp_path, 3)
    eventually(lambda: states(host) == {3: State.AVAILABLE, 2: State.END})
    assert answering(host) == 3
    assert loader.loads == [2, 3]
    assert loader.loaded[2].unloaded


def test_the_old_version_answers_while_the_new_one_is_being_loaded(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1)
    host = serve()
    assert host.wait_available(PATIENCE)
    loader.gate.clear()
    add(tmp_path, 2)
    eventually(lambda: states(host).get(2) == State.LOADING)
    assert states(host)[1] == State.AVAILABLE
    assert answering(host) == 1
    loader.gate.set()
    eventually(lambda: states(host) == {2: State.AVAILABLE, 1: State.END})


def test_a_version_is_unloaded_only_after_its_last_request(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1)
    host = serve()
    assert host.wait_available(PATIENCE)
    first, second = host.acquire(None, None), host.acquire(1, None)
    add(tmp_path, 2)
    eventually(lambda: states(host) == {2: State.AVAILABLE, 1: State.UNLOADING})
    with pytest.raises(ServingError, match=r"Specific\(siamese, 1\)") as error:
        host.acquire(1, None)
    assert error.value.code is Code.NOT_FOUND
    host.release(first)
    assert answering(host) == 2
    assert not loader.loaded[1].unloaded
    host.release(second)
    eventually(lambda: states(host)[1] == State.END)
    assert loader.loaded[1].unloaded


def test_a_version_that_cannot_be_loaded_leaves_the_others_alone(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1)
    host = serve()
    assert host.wait_available(PATIENCE)
    loader.broken.add(2)
    add(tmp_path, 2)
    eventually(lambda: states(host) == {2: State.END, 1: State.AVAILABLE})
    (failed,) = host.status(2)
    assert (failed.status.error_code, failed.status.error_message) == (
        Code.DATA_LOSS,
        "2/variables are torn",
    )
    assert answering(host) == 1
    add(tmp_path, 3)
    eventually(lambda: states(host).get(3) == State.AVAILABLE)
    assert answering(host) == 3
    assert loader.loads == [1, 2, 3]


def test_a_failed_version_is_tried_again_when_its_files_change(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    loader.broken.add(1)
    add(tmp_path, 1)
    host = serve()
    eventually(lambda: states(host) == {1: State.END})
    loader.broken.clear()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"now whole")
    assert host.wait_available(PATIENCE)
    assert answering(host) == 1
    assert loader.loads == [1, 1]


def test_a_version_that_is_taken_away_gives_way_to_the_one_before(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    host = serve()
    assert host.wait_available(PATIENCE)
    (tmp_path / "2").rmdir()
    eventually(lambda: states(host) == {1: State.AVAILABLE, 2: State.END})
    assert answering(host) == 1


def test_while_the_base_path_is_away_everything_stays(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    base_path = tmp_path / "models"
    base_path.mkdir()
    add(base_path, 1)
    host = serve(base_path=base_path)
    assert host.wait_available(PATIENCE)
    base_path.rename(tmp_path / "away")
    host.update(host.options)  # another look
    assert host.wait_settled(PATIENCE)
    assert states(host) == {1: State.AVAILABLE}
    assert answering(host) == 1
    add(tmp_path / "away", 2)
    (tmp_path / "away").rename(base_path)
    eventually(lambda: states(host) == {2: State.AVAILABLE, 1: State.END})


def test_policies_choose_the_versions(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2, 3, 4)
    available = State.AVAILABLE
    assert serve(Policy(latest=2)).wait_settled(PATIENCE)
    assert sorted(loader.loads) == [3, 4]
    everything = serve(Policy(latest=None))
    assert everything.wait_settled(PATIENCE)
    assert states(everything) == {1: available, 2: available, 3: available, 4: available}
    specific = serve(Policy(specific=frozenset({2, 9})))
    assert specific.wait_settled(PATIENCE)
    assert states(specific) == {2: available}
    assert answering(specific) == 2
    assert answering(everything, version=3) == 3


def test_a_changed_policy_takes_effect(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    host = serve()
    assert host.wait_available(PATIENCE)
    host.update(HostOptions(policy=Policy(specific=frozenset({1})), labels={"stable": 1}))
    assert host.wait_settled(PATIENCE)
    assert answering(host) == answering(host, label="stable") == 1
    eventually(lambda: states(host) == {1: State.AVAILABLE, 2: State.END})


def test_a_version_goes_after_the_label_that_points_to_it(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    host = serve(Policy(latest=None), labels={"stable": 2})
    assert host.wait_settled(PATIENCE)
    only_the_first = Policy(specific=frozenset({1}))
    # What a reload does: labels move last, when what they will point to is known to be loaded.
    host.update(HostOptions(policy=only_the_first, labels={"stable": 2}, poll_seconds=0.01))
    assert host.wait_settled(PATIENCE)
    assert answering(host, label="stable") == 2
    host.update(HostOptions(policy=only_the_first, labels={"stable": 1}, poll_seconds=0.01))
    assert answering(host, label="stable") == 1
    eventually(lambda: loader.loaded[2].unloaded)


def test_labels_lead_to_loaded_versions_only(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1, 2)
    host = serve(Policy(latest=None), labels={"stable": 1, "canary": 2, "next": 3})
    assert host.wait_settled(PATIENCE)
    assert answering(host, label="stable") == 1
    assert answering(host, label="canary") == 2
    with pytest.raises(ServingError, match=r"Specific\(siamese, 3\)") as not_loaded:
        host.acquire(None, "next")
    assert not_loaded.value.code is Code.NOT_FOUND
    with pytest.raises(ServingError, match="Unrecognized servable version label: gone") as unknown:
        host.acquire(None, "gone")
    assert unknown.value.code is Code.INVALID_ARGUMENT
    add(tmp_path, 3)
    eventually(lambda: states(host).get(3) == State.AVAILABLE)
    assert answering(host, label="next") == 3


def test_without_versions_nothing_is_found(serve: Callable[..., ModelHost], tmp_path: Path) -> None:
    host = serve()
    assert host.wait_settled(PATIENCE)
    assert not host.wait_available(0)
    with pytest.raises(ServingError, match=r"Latest\(siamese\)") as error:
        host.acquire(None, None)
    assert error.value.code is Code.NOT_FOUND


def test_closing_waits_for_the_requests_under_way(
    serve: Callable[..., ModelHost], loader: FakeLoader, tmp_path: Path
) -> None:
    add(tmp_path, 1)
    host = serve()
    assert host.wait_available(PATIENCE)
    served = host.acquire(None, None)
    closing = threading.Thread(target=host.close)
    closing.start()
    eventually(lambda: states(host)[1] == State.UNLOADING)
    with pytest.raises(ServingError) as error:
        host.acquire(None, None)
    assert error.value.code is Code.UNAVAILABLE
    assert not loader.loaded[1].unloaded
    host.release(served)
    closing.join(PATIENCE)
    assert loader.loaded[1].unloaded
    assert states(host) == {1: State.END}
