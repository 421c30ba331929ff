"""Images that trials are drawn from."""

from pathlib import Path

import pytest

from components.evaluator.trials import sound_images
from data_ingest.errors import InputError
from data_ingest.sources.layout import ImageReader, list_images
from tests.data_ingest.tiny_images import omniglot_tree, write_folder


def test_an_image_that_changes_while_a_model_is_measured_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, omniglot_tree("a", groups=2, classes=2, writers=2))
    with ImageReader() as reader:
        images = sound_images(list_images(tmp_path), reader)
        changed = Path(images.files[1].path)
        assert images.encoded(1) == changed.read_bytes()
        changed.write_bytes(changed.read_bytes()[:50])
        with pytest.raises(InputError, match=f"{changed} has changed since .*truncated"):
            images.encoded(1)
