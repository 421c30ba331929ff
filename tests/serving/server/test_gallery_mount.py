"""A gallery that is embedded by the model beside it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tensorflow as tf

from serving.errors import Code, ServingError
from serving.gallery.embedder import probe_image
from serving.server.gallery_mount import HostEmbedder
from serving.server.model_host import ModelHost
from serving.server.models import ModelSetup, ServerState
from serving.server.server import LocalServer, ServerOptions
from serving.server.versions import HostOptions
from tests.serving.server.word_model import push

PATIENCE = 120.0
v1 = tf.compat.v1


def export_first_bytes(directory: Path, *, scale: float) -> Path:
    """`embed`: the first 4 of an image's bytes from 100 on, times `scale`; `match`: 10 - L1."""
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.string, [None], name="image")
        a = v1.placeholder(tf.float32, [None, 4], name="a")
        b = v1.placeholder(tf.float32, [None, 4], name="b")
        factor = v1.get_variable("factor", initializer=tf.constant(scale))
        raw = tf.io.decode_raw(tf.strings.substr(image, 100, 4), tf.uint8)
        vector = tf.reshape(tf.cast(raw, tf.float32) * factor, [-1, 4])
        logit = 10.0 - tf.reduce_sum(tf.abs(a - b), axis=1)
        predict = v1.saved_model.predict_signature_def
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "embed": predict({"image": image}, {"embedding": vector}),
                "match": predict(
                    {"embedding_a": a, "embedding_b": b},
                    {"score": tf.sigmoid(logit), "logit": logit},
                ),
            },
        )
        builder.save()
    return directory


@pytest.fixture
def base_path(tmp_path: Path) -> Path:
    base_path = tmp_path / "models"
    base_path.mkdir()
    push(export_first_bytes(tmp_path / "one", scale=1.0), base_path, 1)
    return base_path


@pytest.fixture
def host(base_path: Path) -> Iterator[ModelHost]:
    state = ServerState({"siamese": ModelSetup(base_path, HostOptions(poll_seconds=0.05))})
    yield state.host("siamese")
    state.close()


def test_images_are_embedded_by_the_version_that_is_served(host: ModelHost) -> None:
    embedder = HostEmbedder(host)
    with pytest.raises(ServingError) as error:
        embedder.latest()
    assert error.value.code is Code.UNAVAILABLE
    host.start()
    assert host.wait_available(PATIENCE)
    assert embedder.latest() == "1"
    image = b"x" * 100 + bytes([1, 2, 3, 4])
    np.testing.assert_array_equal(embedder.embed([image], version="1"), [[1, 2, 3, 4]])
    facts = embedder.facts("1")
    assert facts.bias == 10.0
    np.testing.assert_array_equal(facts.probe, embedder.embed([probe_image()], version="1")[0])


def test_a_version_that_is_not_served_any_more_still_embeds(
    host: ModelHost, base_path: Path, tmp_path: Path
) -> None:
    host.start()
    embedder = HostEmbedder(host)
    push(export_first_bytes(tmp_path / "two", scale=2.0), base_path, 2)
    assert host.wait_settled(PATIENCE)
    host.update(host.options)
    assert host.wait_settled(PATIENCE)
    assert embedder.latest() == "2"
    image = b"x" * 100 + bytes([1, 2, 3, 4])
    np.testing.assert_array_equal(embedder.embed([image], version="1"), [[1, 2, 3, 4]])
    np.testing.assert_array_equal(embedder.embed([image], version="2"), [[2, 4, 6, 8]])
    with pytest.raises(ServingError) as error:
        embedder.embed([image], version="3")
    assert error.value.code is Code.NOT_FOUND
    embedder.close()


def test_the_server_answers_for_the_gallery_beside_the_model(
    base_path: Path, tmp_path: Path
) -> None:
    options = ServerOptions(
        {"siamese": ModelSetup(base_path, HostOptions())},
        grpc_port=None,
        rest_port=0,
        gallery=str(tmp_path / "gallery.db"),
    )
    with LocalServer(options) as server:
        assert server.wait_available(PATIENCE)
        answer = httpx.get(f"{server.rest_url}/v1/gallery", timeout=PATIENCE)
        assert answer.status_code == 200
        assert answer.json()["latest_version"] == "1"
        assert httpx.get(f"{server.rest_url}/v1/models/siamese").status_code == 200
