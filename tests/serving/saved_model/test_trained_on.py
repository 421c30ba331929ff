"""Digests of images that a model has seen."""

from pathlib import Path

import numpy as np
import pytest

from serving.saved_model.trained_on import TRAINED_ON, digest_of, read_trained_on, write_trained_on

IMAGES = [f"image {number}".encode() for number in range(100)]


def test_a_model_tells_the_images_that_it_has_seen_from_others(tmp_path: Path) -> None:
    (tmp_path / TRAINED_ON).parent.mkdir()
    digests = [digest_of(image) for image in [*IMAGES, *IMAGES[:9]]]
    write_trained_on(tmp_path, np.array(digests, np.uint64))
    assert (tmp_path / TRAINED_ON).stat().st_size == 8 * len(IMAGES)
    seen = read_trained_on(tmp_path)
    assert seen is not None
    assert all(seen.any_of([b"another", image]) for image in IMAGES)
    assert not seen.any_of([b"another"])
    assert not seen.any_of([])


def test_an_export_that_does_not_say_is_told_from_one_that_is_damaged(tmp_path: Path) -> None:
    assert read_trained_on(tmp_path) is None
    (tmp_path / TRAINED_ON).parent.mkdir()
    (tmp_path / TRAINED_ON).write_bytes(b"12345")
    with pytest.raises(ValueError, match="middle of a digest"):
        read_trained_on(tmp_path)
