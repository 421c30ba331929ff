"""Which record was it?"""

import re
from pathlib import Path

import pytest
import tensorflow as tf

from components.evaluator.baselines import pixel_nearest_neighbour_accuracy
from components.trainer.pair_data import read_pair_data
from data_ingest.errors import InputError
from data_ingest.records.features import read_pairs
from data_ingest.records.unsound import first_unsound, naming_unsound
from serving.saved_model.contract import Preprocessing
from tests.image_variants import variants
from tests.pair_records import make_pairs, trial_records, write_records

VARIANTS = {variant.name: variant.data for variant in variants()}


def split(folder: Path, image: bytes) -> Path:
    """The third record's second image is this one."""
    pairs = make_pairs(groups=1, classes=3, pairs=6)
    pairs[2] = pairs[2]._replace(image_b=image)
    write_records(folder / "Split-train", pairs)
    return folder / "Split-train" / "data_tfrecord-00000-of-00001.gz"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("jpeg CMYK", "not in a form that is stored"),
        ("jpeg without its end (broken)", "truncated"),
        ("png with two IHDR (broken)", "unreadable"),
        ("png white (blank)", "nothing is drawn on it"),
        ("text (broken)", "not an image"),
    ],
)
def test_an_image_of_an_earlier_release_is_named_with_its_class(
    tmp_path: Path, name: str, reason: str
) -> None:
    path = split(tmp_path, VARIANTS[name])
    class_b = make_pairs(groups=1, classes=3, pairs=6)[2].class_b
    message = f"{path}: image_b of record 2, class {class_b}, cannot be used ({reason})"
    assert first_unsound(str(path)) == message
    with (
        pytest.raises(InputError, match=re.escape(f"Delete {tmp_path} and run again")) as found,
        naming_unsound([str(path)]),
    ):
        raise RuntimeError("Beam's, several pages of it")
    assert str(found.value).startswith(message)


def test_a_training_names_the_image_that_it_cannot_decode(tmp_path: Path) -> None:
    path = split(tmp_path, VARIANTS["png with two IHDR (broken)"])
    with pytest.raises(InputError, match=re.escape(f"{path}: image_b of record 2, class group00/")):
        read_pair_data([f"{path.parent}/*"], Preprocessing(16))


def test_a_file_that_the_disk_has_changed_is_named(tmp_path: Path) -> None:
    path = split(tmp_path, png_of_a_class())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(tf.errors.DataLossError):
        list(read_pairs(path.parent))
    with pytest.raises(InputError, match=re.escape(f"{path} cannot be read (")):
        read_pair_data([f"{path.parent}/*"], Preprocessing(16))


def test_baselines_name_the_image_that_pillow_cannot_read(tmp_path: Path) -> None:
    candidates = [png_of_a_class(number) for number in range(3)]
    broken = VARIANTS["jpeg cut off in the middle (broken)"]
    pairs = trial_records("within/g/1", [*candidates, broken], query=candidates[0])
    write_records(tmp_path / "Split-one_shot", pairs)
    with pytest.raises(InputError, match="of within/g/1, class g/3, cannot be used"):
        pixel_nearest_neighbour_accuracy(tmp_path)


def test_other_errors_are_left_as_they_are_where_all_records_are_sound(tmp_path: Path) -> None:
    path = split(tmp_path, png_of_a_class())
    assert first_unsound(str(path)) is None
    with pytest.raises(RuntimeError, match="of another kind"), naming_unsound([str(path)]):
        raise RuntimeError("of another kind")


def png_of_a_class(number: int = 0) -> bytes:
    return make_pairs(groups=1, classes=4, pairs=8)[number].image_a
