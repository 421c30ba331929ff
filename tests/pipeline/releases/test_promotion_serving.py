"""Servers that are running follow promotions and rollbacks, and answer all the while."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import ml_metadata
import numpy as np
import pytest
from ml_metadata.proto import metadata_store_pb2

from pipeline.releases.promotion import Promotions
from pipeline.runs.workspace import Workspace
from pipeline.settings import PushSettings
from serving.server.config_files import read_model_config
from serving.server.model_host import ModelHost
from serving.server.models import ModelSetup
from serving.server.server import LocalServer, ServerOptions
from serving.server.versions import HostOptions, State
from tests.pipeline.cli.test_serve import served
from tests.serving.server.word_model import export_word_model, push, words

POLL = 0.2
PATIENCE = 120.0
GOOD, BAD = 7, 8


class Asking:
    """A client that asks again and again, and what it was told: version by version."""

    def __init__(self, host: ModelHost, *, label: str | None) -> None:
        self._host = host
        self._label = label
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.answers: list[int] = []
        self.errors: list[Exception] = []

    def wait_for(self, version: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.answers[-1:] != [version]:
            assert time.monotonic() < deadline, (self.answers[-3:], self.errors[-3:])
            time.sleep(0.01)

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                prediction = self._host.predict(words(b"abc"), label=self._label)
            except Exception as error:
                self.errors.append(error)
            else:
                length = int(np.asarray(prediction.outputs["length"])[0])
                assert length == 3 + prediction.version
                self.answers.append(prediction.version)
            time.sleep(0.002)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An output folder with two versions."""
    workspace = Workspace(tmp_path)
    workspace.serving_model.mkdir(parents=True)
    for version in (GOOD, BAD):
        exported = export_word_model(tmp_path / f"model-{version}", offset=version)
        push(exported, workspace.serving_model, version)
    return workspace


def promotions_in(
    workspace: Workspace, *, sleep: Callable[[float], None] = time.sleep
) -> Promotions:
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(workspace.metadata_db)
    config.sqlite.connection_mode = (
        metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    )
    store = ml_metadata.MetadataStore(config)
    return Promotions(workspace, store, settings=PushSettings(), sleep=sleep)


def distinct(answers: list[int]) -> list[int]:
    return [a for number, a in enumerate(answers) if number == 0 or answers[number - 1] != a]


def test_a_server_that_follows_the_newest_version_returns_to_the_one_before(
    workspace: Workspace,
) -> None:
    setup = ModelSetup(workspace.serving_model, HostOptions(poll_seconds=POLL))
    options = ServerOptions({"siamese": setup}, grpc_port=0, rest_port=0)
    with LocalServer(options) as server:
        assert server.wait_available(PATIENCE)
        with Asking(server.state.host("siamese"), label=None) as client:
            client.wait_for(BAD)
            promotions_in(workspace).rollback()
            client.wait_for(GOOD)
    assert client.errors == []
    assert distinct(client.answers) == [BAD, GOOD]


class Following:
    """A server that reads models.config again and again, as `oneshot serve` does."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._defaults = HostOptions(poll_seconds=POLL)
        self._known = file.read_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        setups = read_model_config(file, defaults=self._defaults)
        self._server = LocalServer(ServerOptions(setups, grpc_port=0, rest_port=0))

    @property
    def host(self) -> ModelHost:
        return self._server.state.host("siamese")

    def wait_until_read(self, _seconds: float = 0) -> None:
        wait_until(lambda: self._known == self._file.read_bytes())

    def _follow(self) -> None:
        while not self._stop.wait(POLL):
            content = self._file.read_bytes()
            if content != self._known:
                self._server.state.reload(read_model_config(self._file, defaults=self._defaults))
                self._known = content

    def __enter__(self) -> "Following":
        assert self._server.wait_available(PATIENCE)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._server.close()


def test_a_label_answers_without_a_gap_through_promotion_and_rollback(
    workspace: Workspace,
) -> None:
    promotions_in(workspace).promote(GOOD, "stable")
    with Following(workspace.models_config) as server:
        promotions = promotions_in(workspace, sleep=server.wait_until_read)
        server.host.wait_settled(PATIENCE)
        with Asking(server.host, label="stable") as client:
            client.wait_for(GOOD)
            promotions.promote(BAD, "stable")
            client.wait_for(BAD)
            promotions.rollback(why="wrong answers")
            client.wait_for(GOOD)
            wait_until(lambda: not is_available(server.host, BAD))
    assert client.errors == []
    assert distinct(client.answers) == [GOOD, BAD, GOOD]


def is_available(host: ModelHost, version: int) -> bool:
    return any(status.state == State.AVAILABLE for status in host.status(version))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_oneshot_serve_follows_the_labels_of_its_file(workspace: Workspace) -> None:
    promotions = promotions_in(workspace, sleep=lambda _: None)
    promotions.promote(GOOD, "stable")
    promotions.promote(BAD, "stable")
    with served(
        f"--model_config_file={workspace.models_config}",
        f"--model_config_file_poll_wait_seconds={POLL}",
    ) as (_, said):
        url = f"{said['rest']}/v1/models/siamese/labels/stable:predict"

        def answered_by(version: int) -> bool:
            answer = httpx.post(url, json={"inputs": ["abc"]}, timeout=PATIENCE)
            return answer.is_success and answer.json()["outputs"]["length"] == [3 + version]

        wait_until(lambda: answered_by(BAD))
        promotions.rollback()
        wait_until(lambda: answered_by(GOOD))
