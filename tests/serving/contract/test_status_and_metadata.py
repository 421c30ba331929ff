"""What a server says about its versions and signatures."""

import pytest
from tensorflow.core.framework import types_pb2

from tests.serving.contract.api import Api, Refused, Which
from tests.serving.contract.images import drawings

SIGNATURES = {
    "serving_default": ({"image_a": "STRING", "image_b": "STRING"}, {"score", "logit"}),
    "embed": ({"image": "STRING"}, {"embedding"}),
    "match": ({"embedding_a": "FLOAT", "embedding_b": "FLOAT"}, {"score", "logit"}),
    "examples": ({"examples": "STRING"}, {"score", "logit"}),
}
NOT_THERE = 987_654_321


def newest(api: Api) -> int:
    return next(entry.version for entry in api.status() if entry.state == "AVAILABLE")


def test_a_version_is_available(api: Api) -> None:
    assert "AVAILABLE" in {entry.state for entry in api.status()}


def test_versions_are_listed_from_the_newest_on(api: Api) -> None:
    versions = [entry.version for entry in api.status()]
    assert versions == sorted(versions, reverse=True)


def test_one_version_can_be_asked_for(api: Api) -> None:
    version = newest(api)
    assert api.status(Which(version=version)) == [(version, "AVAILABLE")]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (Which("no_such_model"), "Could not find any versions of model no_such_model"),
        (Which(version=NOT_THERE), f"Could not find version {NOT_THERE} of model"),
    ],
    ids=["model", "version"],
)
def test_the_status_of_what_is_not_there_is_not_found(api: Api, which: Which, message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        api.status(which)
    assert caught.value.status == 404


def test_labels_say_nothing_to_the_status(api: Api) -> None:
    assert api.status(Which(label="no_such_label")) == api.status()


@pytest.mark.parametrize("signature", sorted(SIGNATURES))
def test_metadata_has_every_signature_with_types_and_batches(api: Api, signature: str) -> None:
    inputs, outputs = SIGNATURES[signature]
    definition = api.metadata().signatures.signature_def[signature]
    assert definition.method_name == "tensorflow/serving/predict"
    types = {name: types_pb2.DataType.Name(info.dtype) for name, info in definition.inputs.items()}
    assert types == {name: f"DT_{kind}" for name, kind in inputs.items()}
    assert set(definition.outputs) == outputs
    for info in [*definition.inputs.values(), *definition.outputs.values()]:
        assert info.tensor_shape.dim[0].size == -1


def test_metadata_names_the_version_that_answers(api: Api) -> None:
    version = newest(api)
    assert api.metadata().version == version
    assert api.metadata(Which(version=version)).version == version


@pytest.mark.parametrize(
    ("which", "status"),
    [
        (Which("no_such_model"), 404),
        (Which(version=NOT_THERE), 404),
        (Which(label="no_such_label"), 400),
    ],
    ids=["model", "version", "label"],
)
def test_there_is_no_metadata_of_what_is_not_there(api: Api, which: Which, status: int) -> None:
    with pytest.raises(Refused) as caught:
        api.metadata(which)
    assert caught.value.status == status


def test_the_newest_version_answers_unless_another_is_asked_for(api: Api) -> None:
    images = {"image": drawings(2)}
    pinned = api.predict("embed", images, Which(version=newest(api)))["embedding"]
    assert pinned.shape == api.predict("embed", images)["embedding"].shape
