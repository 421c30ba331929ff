"""The clients against the local server: a real model behind both protocols."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from components.trainer.model import build_model
from data_ingest.sources import images as source_images
from serving.client import (
    AsyncClient,
    Client,
    InvalidImage,
    InvalidRequest,
    Limits,
    NotFound,
    Tls,
    Unauthorized,
)
from serving.client.grpc import AsyncGrpcClient, GrpcClient
from serving.saved_model.contract import Preprocessing
from serving.saved_model.export import export_model
from serving.saved_model.loader import LoadedModel
from serving.server.models import ModelSetup
from serving.server.server import LocalServer, ServerOptions, TlsFiles
from serving.server.versions import HostOptions, Policy
from tests.pair_records import make_pairs, tiny_recipe
from tests.serving.certificates import make_certificate

IMAGES = [pair.image_a for pair in make_pairs(groups=2, classes=4, pairs=12)]
OLD, NEW = 1700000000, 1700000005


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("models") / "siamese"
    for seed, version in enumerate((OLD, NEW)):
        keras.utils.set_random_seed(seed)
        model = build_model(tiny_recipe())
        export_model(
            model,
            base / str(version),
            preprocessing=Preprocessing(16),
            card={},
            warmup_images=IMAGES[:1],
        )
    return base


@pytest.fixture(scope="module")
def models(base_path: Path) -> dict[str, ModelSetup]:
    options = HostOptions(policy=Policy(latest=2), labels={"stable": OLD, "canary": NEW})
    return {"siamese": ModelSetup(base_path, options)}


@pytest.fixture(scope="module")
def server(models: dict[str, ModelSetup]) -> Iterator[LocalServer]:
    with LocalServer(ServerOptions(models, grpc_port=0, rest_port=0)) as started:
        with Client(started.rest_url, version=NEW) as client:
            client.wait_ready(timeout=120)
        yield started


@pytest.fixture(params=["rest", "grpc"])
def client(request: pytest.FixtureRequest, server: LocalServer) -> Iterator[Any]:
    made = Client(server.rest_url) if request.param == "rest" else GrpcClient(server.grpc_target)
    with made:
        yield made


@pytest.mark.parametrize("pin", [{}, {"version": OLD}, {"label": "stable"}, {"label": "canary"}])
def test_answers_are_those_of_the_version_that_is_asked(
    client: Any, base_path: Path, pin: dict[str, Any]
) -> None:
    version = OLD if pin in ({"version": OLD}, {"label": "stable"}) else NEW
    pinned = client.pinned(**pin)
    assert pinned.wait_ready() == version
    with LoadedModel(base_path / str(version)) as model:
        embedded = model.run("embed", {"image": IMAGES})["embedding"]
        scored = model.run("serving_default", {"image_a": IMAGES, "image_b": IMAGES[::-1]})
    np.testing.assert_allclose(pinned.embed(IMAGES), embedded, atol=1e-5)
    scores = pinned.score(IMAGES, IMAGES[::-1])
    np.testing.assert_allclose(scores.logit, scored["logit"], atol=1e-4)
    np.testing.assert_allclose(
        pinned.match(embedded, embedded[::-1]).logit, scored["logit"], atol=1e-4
    )


def test_statuses_name_both_versions(client: Any) -> None:
    assert [(status.version, status.state) for status in client.status()] == [
        (OLD, "AVAILABLE"),
        (NEW, "AVAILABLE"),
    ]


def test_arrays_are_as_good_as_files(client: Any) -> None:
    drawing = np.ones((20, 24), np.float32)
    drawing[5:15, 8:12] = 0
    colour = np.repeat((drawing * 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)
    # Gray and colour are told apart by nothing but the rounding of the colour's brightness.
    np.testing.assert_allclose(client.embed(drawing), client.embed(colour), atol=0.02)


def test_the_place_of_an_image_that_is_refused_is_told(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidImage, match="image_b 1: not an image; give a PNG"):
        client.score(IMAGES[:2], [IMAGES[0], b"no image"])
    monkeypatch.setattr(source_images, "stored_form", lambda data, _form: data)
    with pytest.raises(InvalidRequest, match=r"in rows 0 to 2: .*image refused"):
        client.embed([IMAGES[0], b"no image", IMAGES[1]])


def test_unknown_models_versions_and_labels_are_told_apart(client: Any) -> None:
    with pytest.raises(NotFound):
        client.pinned(version=3).embed(IMAGES[:1])
    with pytest.raises(InvalidRequest, match="label"):
        client.pinned(label="nightly").embed(IMAGES[:1])


def test_asyncio_clients_answer_the_same(server: LocalServer) -> None:
    async def ask(made: Any) -> np.ndarray:
        async with made as client:
            parts = await asyncio.gather(*(client.embed([image]) for image in IMAGES))
        return np.concatenate(parts)

    rest = asyncio.run(ask(AsyncClient(server.rest_url, limits=Limits(images=2))))
    grpc = asyncio.run(ask(AsyncGrpcClient(server.grpc_target)))
    np.testing.assert_allclose(rest, grpc, atol=1e-5)


def test_token_and_tls_go_together(base_path: Path, tmp_path: Path) -> None:
    models = {"siamese": ModelSetup(base_path, HostOptions())}
    certificate, key = make_certificate(tmp_path)
    options = ServerOptions(
        models, grpc_port=0, rest_port=0, token="secret", tls=TlsFiles(certificate, key)
    )
    tls = Tls(ca=certificate)
    with LocalServer(options) as server:
        for cls, address in ((Client, server.rest_url), (GrpcClient, server.grpc_target)):
            with cls(address, version=NEW, tls=tls, token="secret") as client:
                assert client.wait_ready(timeout=120) == NEW
            with cls(address, tls=tls, token="wrong") as client, pytest.raises(Unauthorized):
                client.wait_ready()
