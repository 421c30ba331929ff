"""The graph of the pipeline."""

import json
from pathlib import Path

import pytest
from tfx import v1 as tfx

from components.trainer.recipe import TrainSettings
from data_ingest.errors import InputError
from data_ingest.sources.dataset import Dataset
from pipeline.config import PipelineConfig
from pipeline.dag import create_pipeline
from pipeline.runners.local import require_trainable


def graph(folder: Path, train: TrainSettings) -> tfx.dsl.Pipeline:
    return create_pipeline(
        config=PipelineConfig(train=train),
        dataset=Dataset("folder", folder, {"images": "images"}, "", "photo"),
        protocols={("within", 2)},
        pipeline_root=str(folder / "artifacts"),
        serving_model_dir=str(folder / "serving_model"),
        checkpoint_dir=str(folder / "checkpoints"),
    )


def test_an_edited_backbone_is_not_served_from_the_cache(tmp_path: Path) -> None:
    file = tmp_path / "net.keras"
    found = []
    for content in (b"one", b"another"):
        file.write_bytes(content)
        made = graph(tmp_path, TrainSettings(backbone=str(file)))
        trainer = {node.id: node for node in made.components}["Trainer"]
        found.append(json.loads(trainer.exec_properties["custom_config"]))
    assert found[0].pop("backbone") != found[1].pop("backbone")
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone": "no/such"}, "train.backbone: no/such does not exist"),
        ({"image_size": 20}, r"train: image_size: .* 32 pixels .*\(with images of kind photo\)"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_images_are_read(
    options: dict[str, object], said: str, tmp_path: Path
) -> None:
    dataset = Dataset("folder", tmp_path, {"images": "images"}, "", "photo")
    with pytest.raises(InputError, match=said):
        require_trainable(PipelineConfig(train=TrainSettings(**options)), dataset)
