"""Loading a SavedModel through TF Serving's path."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving.saved_model.loader import LoadedModel


class Lengths(tf.Module):
    """`lengths`: string[N] to int32[N], offset by a variable; refuses the empty string."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = tf.Variable(100)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def lengths(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        length = tf.strings.length(text)
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(length > 0), ["empty"])]):
            return {"length": length + self.offset}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    module = Lengths()
    tf.saved_model.save(module, str(directory), signatures={"lengths": module.lengths})
    return directory


def test_a_signature_is_called_by_the_names_of_its_inputs_and_outputs(exported: Path) -> None:
    with LoadedModel(exported) as model:
        assert list(model.signatures) == ["lengths"]
        outputs = model.run("lengths", {"text": [b"abc", b"z"]})
    assert list(outputs) == ["length"]
    np.testing.assert_array_equal(outputs["length"], [103, 101])


@pytest.mark.parametrize("name", ["model [1]", "m*?"])
def test_a_folder_whose_name_has_wildcards_is_loaded_like_any_other(
    name: str, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / name)
    with LoadedModel(tmp_path / name) as model:
        outputs = model.run("lengths", {"text": [b"abc"]})
    np.testing.assert_array_equal(outputs["length"], [103])


def test_zero_bytes_at_the_end_of_an_image_are_kept(exported: Path) -> None:
    with LoadedModel(exported) as model:
        assert model.run("lengths", {"text": [b"abc\0\0"]})["length"] == [105]


def test_unknown_signatures_and_inputs_are_named(exported: Path) -> None:
    with LoadedModel(exported) as model:
        with pytest.raises(KeyError, match=r"no signature 'embed'.*lengths"):
            model.run("embed", {"text": [b"a"]})
        with pytest.raises(KeyError, match=r"takes \['text'\], not \['image'\]"):
            model.run("lengths", {"image": [b"a"]})


def test_a_refused_value_does_not_harm_the_next_request(exported: Path) -> None:
    with LoadedModel(exported) as model:
        with pytest.raises(tf.errors.InvalidArgumentError):
            model.run("lengths", {"text": [b""]})
        assert model.run("lengths", {"text": [b"a"]})["length"] == [101]


def test_a_closed_model_cannot_be_called(exported: Path) -> None:
    model = LoadedModel(exported)
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.run("lengths", {"text": [b"a"]})


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="SavedModel"):
        LoadedModel(tmp_path)


def test_a_damaged_model_is_an_error(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(
        (exported / "saved_model.pb").read_bytes()[:100] + b"\xff" * 50
    )
    with pytest.raises((OSError, tf.errors.OpError)):
        LoadedModel(tmp_path)
