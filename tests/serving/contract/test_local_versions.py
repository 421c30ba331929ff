"""Versions that come and go, and labels, seen through both protocols.

On the local server only: these cases put folders below the server's base path and choose its
labels, which a test cannot do on somebody else's TF Serving.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.serving.contract.api import Api, Refused, Which, opened
from tests.serving.contract.images import BAD, drawings
from tests.serving.contract.local import VERSION, Served, export, serving

IMAGES = {"image": drawings(2)}
LABELS = {"stable": VERSION, "canary": VERSION + 1, "next": VERSION + 9}


@pytest.fixture
def fresh(tmp_path: Path, served: Served) -> Iterator[Served]:
    with serving(tmp_path, exported=served.exported) as started:
        yield started


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, served: Served) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("labelled")
    with serving(folder, exported=served.exported, labels=LABELS, versions=2) as started:
        shutil.copytree(export(folder / "other", seed=2), started.models / f"{VERSION + 1}")
        client = opened("grpc", started.target)
        until(lambda: states(client).get(VERSION + 1) == "AVAILABLE")
        client.close()
        yield started


@pytest.fixture
def client(request: pytest.FixtureRequest, fresh: Served) -> Iterator[Api]:
    opened_api = opened(request.param, fresh.target)
    yield opened_api
    opened_api.close()


@pytest.fixture
def labelled_client(request: pytest.FixtureRequest, labelled: Served) -> Iterator[Api]:
    opened_api = opened(request.param, labelled.target)
    yield opened_api
    opened_api.close()


both = pytest.mark.parametrize("client", ["rest_rows", "grpc"], indirect=True)
both_labelled = pytest.mark.parametrize("labelled_client", ["rest_rows", "grpc"], indirect=True)


def states(client: Api) -> dict[int, str]:
    return dict(client.status())


def until(condition: Callable[[], bool]) -> None:
    """Waits, as long as the test may take."""
    while not condition():
        time.sleep(0.02)


@both
def test_a_new_version_answers_and_the_old_one_ends(fresh: Served, client: Api) -> None:
    fresh.push(VERSION + 1)
    until(lambda: states(client) == {VERSION + 1: "AVAILABLE", VERSION: "END"})
    assert client.metadata().version == VERSION + 1
    with pytest.raises(Refused, match=rf"Specific\(siamese, {VERSION}\)") as caught:
        client.predict("embed", IMAGES, Which(version=VERSION))
    assert caught.value.status == 404


@both
def test_no_request_fails_while_versions_are_swapped(fresh: Served, client: Api) -> None:
    stop = threading.Event()
    answers: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                client.predict("embed", IMAGES)
                answers.append("")
            except Refused as refused:
                answers.append(str(refused))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for version in (VERSION + 1, VERSION + 2):
        fresh.push(version)
        until(lambda version=version: states(client).get(version) == "AVAILABLE")
    stop.set()
    for asker in askers:
        asker.join()
    assert len(answers) > 2
    assert set(answers) == {""}


@both
def test_a_broken_version_says_so_and_the_old_one_goes_on(fresh: Served, client: Api) -> None:
    broken = fresh.models / f"{VERSION + 1}"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"broken")
    until(lambda: states(client).get(VERSION + 1) == "END")
    assert states(client)[VERSION] == "AVAILABLE"
    assert client.predict("embed", IMAGES)["embedding"].shape[0] == 2


@both
def test_folders_that_are_no_versions_are_left_alone(fresh: Served, client: Api) -> None:
    for name in ("tmp", ".5", "5a", "-5"):
        shutil.copytree(fresh.exported, fresh.models / name)
    fresh.push(VERSION + 1)
    until(lambda: states(client).get(VERSION + 1) == "AVAILABLE")
    assert set(states(client)) == {VERSION, VERSION + 1}


@both_labelled
def test_labels_choose_versions(labelled: Served, labelled_client: Api) -> None:
    by_label, by_version = (
        [labelled_client.predict("embed", IMAGES, which)["embedding"] for which in (stable, canary)]
        for stable, canary in (
            (Which(label="stable"), Which(label="canary")),
            (Which(version=VERSION), Which(version=VERSION + 1)),
        )
    )
    np.testing.assert_allclose(by_label[0], by_version[0], atol=1e-5)
    np.testing.assert_allclose(by_label[1], by_version[1], atol=1e-5)
    assert np.abs(by_label[0] - by_label[1]).max() > 0.01


@both_labelled
def test_metadata_follows_labels(labelled: Served, labelled_client: Api) -> None:
    assert labelled_client.metadata(Which(label="stable")).version == VERSION
    assert labelled_client.metadata(Which(label="canary")).version == VERSION + 1


@both_labelled
def test_a_label_of_a_version_that_is_not_loaded_is_not_found(
    labelled: Served, labelled_client: Api
) -> None:
    with pytest.raises(Refused) as caught:
        labelled_client.predict("embed", IMAGES, Which(label="next"))
    assert caught.value.status == 404


def test_one_bad_image_fails_no_request_but_its_own(served: Served) -> None:
    """TF Serving merges requests and fails them together; the local server takes them apart."""
    client = opened("grpc", served.target)
    bad = {"image": np.array([BAD["text"]], object)}
    outcomes: list[tuple[bool, str]] = []

    def ask(number: int) -> None:
        is_bad = number % 4 == 0
        try:
            client.predict("embed", bad if is_bad else IMAGES)
            outcomes.append((is_bad, "answered"))
        except Refused as refused:
            outcomes.append((is_bad, f"refused {refused.status}"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert set(outcomes) == {(True, "refused 400"), (False, "answered")}


def test_requests_of_both_protocols_are_counted(served: Served) -> None:
    rest, grpc_client = (opened(name, served.target) for name in ("rest_rows", "grpc"))
    for client in (rest, grpc_client):
        client.predict("embed", IMAGES)
    metrics = rest.http.get("/monitoring/prometheus/metrics").text  # type: ignore[attr-defined]
    assert ':tensorflow:serving:request_count{model_name="siamese",status="OK"}' in metrics
    for entry_point in ("REST", "GRPC"):
        labels = f'API="Predict",entrypoint="{entry_point}",model_name="siamese"'
        assert f":tensorflow:serving:request_latency_count{{{labels}}}" in metrics
    assert ":tensorflow:serving:batching:processed_batch_size" in metrics
    rest.close()
    grpc_client.close()
