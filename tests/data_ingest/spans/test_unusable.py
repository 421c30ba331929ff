"""Spans that an earlier release landed, which took images that no model can see."""

from pathlib import Path

import pytest

from data_ingest.records.read import list_inputs
from data_ingest.settings import PairSettings
from data_ingest.sources import layout
from data_ingest.sources.layout import ImageReader
from data_ingest.spans.image_figures import measure_images
from data_ingest.spans.span import Span
from data_ingest.spans.store import SpanStore
from tests.data_ingest.tiny_images import omniglot_tree, write_folder
from tests.image_variants import variants

BAD = {"a0/character01/cmyk.jpg": "jpeg CMYK", "a1/character02/blank.png": "png white (blank)"}
CUT_OFF = "a2/character01/cut.jpg"


@pytest.fixture
def span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Span:
    data = {variant.name: variant.data for variant in variants()}
    images = omniglot_tree("a", groups=4, classes=3, writers=2)
    images |= {name: data[variant] for name, variant in BAD.items()}
    images[CUT_OFF] = data["jpeg cut off in the middle (broken)"]
    source = write_folder(tmp_path / "images", images)
    with monkeypatch.context() as earlier:
        earlier.setattr(layout, "stored_form", lambda data, form: data)
        return SpanStore(tmp_path / "spans").land(
            1, [source], pairs=PairSettings(ways=(2,)), max_rejected_share=0.0
        )


def test_they_are_what_landed_and_say_which_images_trainings_leave_out(span: Span) -> None:
    span.check()
    found = {bad.file.partition(".zip/")[2]: bad.reason for bad in span.unusable()}
    assert found == {"a1/character02/blank.png": "nothing is drawn on it", CUT_OFF: "truncated"}


def test_trainings_and_figures_leave_them_out_and_use_the_others(span: Span) -> None:
    window = SpanStore(span.path.parent).window(1, 0)
    files = [file for part in list_inputs(window.containers()).portions for file in part.images]
    rejected: list[tuple[layout.ImageFile, str]] = []
    with ImageReader() as reader:
        sound = {file.uri: data for _, file, data in reader.sound(files, rejected)}
    assert len(sound) == 4 * 3 * 2 + 1
    assert sound["a0/character01/cmyk.jpg"].startswith(b"\x89PNG")
    assert all(bad.path.startswith(str(window.base)) for bad, _ in rejected)
    figures = measure_images([span.containers], limit=1000)
    assert (len(figures), figures.rejected) == (len(sound), 2)
