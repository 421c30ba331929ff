"""What TensorBoard shows besides curves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins import projector

from components.trainer import board
from components.trainer.board import projected, sheet, write_projector
from tests.pair_records import tiny_data


def test_images_lie_line_by_line_on_a_sheet() -> None:
    images = np.arange(1, 6, dtype=np.uint8).reshape(5, 1, 1, 1).repeat(2, axis=1)
    assert sheet(images, across=2, down=3)[..., 0].tolist() == [
        [1, 2],
        [1, 2],
        [3, 4],
        [3, 4],
        [5, 0],
        [5, 0],
    ]
    assert sheet(images, across=2, down=1)[..., 0].tolist() == [[1, 2], [1, 2]]


def test_embeddings_are_shown_with_name_and_image(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "pairs")
    vectors = np.linspace(0, 1, 3 * len(data.index)).reshape(-1, 3)
    write_projector(tmp_path, data, vectors)
    config = text_format.Parse(
        (tmp_path / "projector_config.pbtxt").read_text(), projector.ProjectorConfig()
    )
    (shown,) = config.embeddings
    written = np.loadtxt(tmp_path / shown.tensor_path, delimiter="\t")
    assert written == pytest.approx(vectors, abs=1e-4)
    heading, *names = (tmp_path / shown.metadata_path).read_text("utf-8").splitlines()
    assert heading == "class\tgroup"
    assert names == [
        f"{data.index.class_name(row)}\t{data.index.group_name(row)}"
        for row in range(len(data.index))
    ]
    height, width = data.images.shape[1:3]
    assert list(shown.sprite.single_image_dim) == [width, height]
    across = int(np.ceil(np.sqrt(len(names))))
    with Image.open(tmp_path / shown.sprite.image_path) as sprite:
        assert sprite.size == (across * width, across * height)
        last = len(names) - 1
        left, top = last % across * width, last // across * height
        found = np.asarray(sprite)[top : top + height, left : left + width]
    assert np.array_equal(found, data.images[last].squeeze())


def test_of_many_images_some_of_all_classes_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_data(tmp_path)
    assert projected(data).tolist() == list(range(len(data.index)))
    monkeypatch.setattr(board, "MOST_IMAGES", 10)
    rows = projected(data)
    assert (len(rows), rows[0], rows[-1]) == (10, 0, len(data.index) - 1)
    shape = (len(data.index), 4096, 4096, 1)
    large = replace(data, images=np.broadcast_to(np.uint8(0), shape))
    assert len(projected(large)) == 4
