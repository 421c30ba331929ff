"""What is refused, with which code, whichever way it is asked."""

import grpc
import numpy as np
import pytest

from tests.serving.contract.api import DEFAULT, Api, GrpcApi, Refused, Which
from tests.serving.contract.images import BAD, drawings

IMAGES = {"image_a": drawings(2), "image_b": drawings(2, writer=2)}
NOT_THERE = 987_654_321
LONGEST_GRPC_MESSAGE = 1024 + len("...TRUNCATED")


def refused(
    api: Api, inputs: dict[str, np.ndarray], *, signature: str = "", which: Which = DEFAULT
) -> Refused:
    with pytest.raises(Refused) as caught:
        api.predict(signature, inputs, which)
    return caught.value


@pytest.mark.parametrize(
    "which",
    [Which(model="no_such_model"), Which(version=NOT_THERE), Which("no_such_model", NOT_THERE)],
    ids=["model", "version", "both"],
)
def test_what_is_not_served_is_not_found(api: Api, which: Which) -> None:
    error = refused(api, IMAGES, which=which)
    assert error.status == 404
    assert error.code in (None, grpc.StatusCode.NOT_FOUND)
    assert "Servable not found for request" in error.message


@pytest.mark.parametrize("model", [None, "no_such_model"])
def test_an_unknown_label_is_an_invalid_argument(api: Api, model: str | None) -> None:
    error = refused(api, IMAGES, which=Which(model, label="no_such_label"))
    assert error.status == 400
    assert error.code in (None, grpc.StatusCode.INVALID_ARGUMENT)
    assert "Unrecognized servable version label: no_such_label" in error.message


def test_an_unknown_signature_is_named(api: Api) -> None:
    error = refused(api, IMAGES, signature="no_such_signature")
    assert error.status == 400
    assert error.code in (None, grpc.StatusCode.FAILED_PRECONDITION)
    assert "no_such_signature" in error.message


def test_a_missing_input_is_named(api: Api) -> None:
    error = refused(api, {"image_a": IMAGES["image_a"]})
    assert error.status == 400
    assert "image_b" in error.message


def test_numbers_are_no_images(api: Api) -> None:
    numbers = np.arange(2, dtype=np.int64)
    error = refused(api, {"image_a": numbers, "image_b": numbers})
    assert error.status == 400
    assert error.code in (None, grpc.StatusCode.INVALID_ARGUMENT)


def test_texts_are_no_embeddings(api: Api) -> None:
    texts = np.array(["a", "b"], object)
    error = refused(api, {"embedding_a": texts, "embedding_b": texts}, signature="match")
    assert error.status == 400
    assert error.code in (None, grpc.StatusCode.INVALID_ARGUMENT)


def test_embeddings_of_different_lengths_do_not_match(api: Api) -> None:
    a, b = np.zeros((2, 5), np.float32), np.zeros((2, 3), np.float32)
    error = refused(api, {"embedding_a": a, "embedding_b": b}, signature="match")
    assert error.status == 400


def test_a_record_that_is_no_example_is_refused(api: Api) -> None:
    error = refused(api, {"examples": np.array([b"\xff\xff"], object)}, signature="examples")
    assert error.status == 400


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_is_no_decent_image_is_an_invalid_argument(api: Api, name: str) -> None:
    error = refused(api, {"image": np.array([BAD[name]], object)}, signature="embed")
    assert error.status == 400
    assert error.code in (None, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("name", ["empty", "text", "gif", "bomb", "too_wide", "no_pixels"])
def test_an_image_that_is_not_even_decoded_is_told_why(api: Api, name: str) -> None:
    error = refused(api, {"image": np.array([BAD[name]], object)}, signature="embed")
    assert "image refused" in error.message


def test_a_refused_request_does_not_harm_the_next(api: Api) -> None:
    before = api.predict("", IMAGES)["logit"]
    for name in ("text", "png_cut", "bomb"):
        refused(api, {"image": np.array([BAD[name]], object)}, signature="embed")
    np.testing.assert_allclose(api.predict("", IMAGES)["logit"], before, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["classify", "regress"])
def test_there_is_nothing_to_classify_or_regress_with(api: Api, method: str) -> None:
    """TF Serving looks for a signature first; the local server does not serve these at all."""
    with pytest.raises(Refused) as caught:
        getattr(api, method)()
    refusals = (None, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
    assert caught.value.code in refusals
    assert caught.value.status in (400, 501)


def test_messages_tell_nothing_of_the_machine(api: Api) -> None:
    error = refused(api, {"image": np.array([BAD["text"]], object)}, signature="embed")
    assert ".py" not in error.message
    assert "/home" not in error.message


def test_grpc_messages_are_short(grpc_api: GrpcApi) -> None:
    error = refused(grpc_api, IMAGES, signature="x" * 5000)
    assert len(error.message) <= LONGEST_GRPC_MESSAGE


def test_inputs_of_different_sizes_are_refused_where_they_can_be_sent(grpc_api: GrpcApi) -> None:
    error = refused(grpc_api, {"image_a": drawings(2), "image_b": drawings(3)})
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
