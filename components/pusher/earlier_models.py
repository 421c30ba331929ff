"""Finds the model to compare with and to start from: the latest one pushed and not rolled back."""

import logging

from ml_metadata import MetadataStore
from tfx import types
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component as function_component
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts
from tfx.utils import io_utils, path_utils

from components.pusher.object_store import newest_version
from components.pusher.pushed_models import MODEL_ID, custom_int, sound_models

ABSENT = "absent"
"""Custom property of a Model artifact that stands for no model at all."""
_NOTE = "NO_MODEL.txt"
_log = logging.getLogger(__name__)


class PushedModelStrategy(ResolverStrategy):
    """Resolves the latest model that was pushed and has not been rolled back.

    TFX's LatestBlessedModelStrategy also sees the candidate itself once it is blessed: the
    baseline of an unchanged second run would differ from that of the first, so the Evaluator
    would run again and the Pusher would push the same model a second time.

    Channels: `model` (Model), `pushed_model` (PushedModel) and, for a baseline, `candidate`
    (Model, the Trainer's output): only what is older than the candidate counts then. Where there
    is no such model `model` and `pushed_model` are empty.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]] | None:
        del store
        by_id = {model.id: model for model in input_dict["model"]}
        sound = sound_models(
            [model.mlmd_artifact for model in by_id.values()],
            [pushed.mlmd_artifact for pushed in input_dict["pushed_model"]],
        )
        chosen = [model.id for model in sound]
        if "candidate" in input_dict:
            newest = max((model.id for model in input_dict["candidate"]), default=0)
            chosen = [number for number in chosen if number < newest]
        # Whatever is returned becomes an event in ML Metadata: nothing but what is needed.
        return {
            **input_dict,
            "model": [by_id[number] for number in chosen[-1:]],
            "pushed_model": [
                pushed
                for pushed in input_dict["pushed_model"]
                if custom_int(pushed.mlmd_artifact, MODEL_ID) in chosen[-1:]
            ],
        }


@function_component
def ServedModel(  # noqa: N802
    model: OutputArtifact[standard_artifacts.Model],
    base_path: Parameter[str],
) -> None:
    """Copies the newest version of a model base path, local or `gs://`, into a Model artifact.

    Only blessed models are pushed there, and a version that was rolled back no longer has a
    number for its name; so this is the latest blessed model that still counts, which is what the
    Resolver of the local runner finds in ML Metadata.

    Every output needs an artifact. Where nothing was pushed yet it is one with the custom property
    `absent`, and whoever runs the nodes leaves it out of the inputs of those that follow.
    """
    version = newest_version(base_path)
    if version is None:
        _log.info("Nothing is served from %s yet", base_path)
        fileio.makedirs(model.uri)
        # An object store knows no empty folder.
        with fileio.open(f"{model.uri}/{_NOTE}", "w") as note:
            note.write(f"When this was made, there was no version in {base_path}.\n")
        model.set_int_custom_property(ABSENT, 1)
        return
    _log.info("Served now: %s", version)
    io_utils.copy_dir(version, path_utils.serving_model_dir(model.uri))
    model.set_string_custom_property("served_from", version)
