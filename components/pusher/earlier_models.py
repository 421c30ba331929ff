"""Which models have been pushed and not been rolled back: only from these is anything learnt."""

import logging
from collections.abc import Iterable

from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component as function_component
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts
from tfx.utils import io_utils, path_utils

from components.pusher.versions import newest_version

MODEL_ID = "model_id"
"""Custom property of a PushedModel: id of the Model that was pushed."""
ROLLED_BACK = "rolled_back"
"""Custom property of a Model: who took it out of service, when and why; empty if nobody did."""
NOT_PUSHED_BECAUSE = "not_pushed_because"
"""Custom property of a PushedModel that was not pushed although it was blessed."""


def sound_models(
    models: Iterable[metadata_store_pb2.Artifact],
    pushed_models: Iterable[metadata_store_pb2.Artifact],
) -> list[metadata_store_pb2.Artifact]:
    """Models that were pushed and not rolled back, the oldest first.

    A model that the Evaluator blessed but that has not been pushed is not among them: the
    ServingGate refused it, or its run was cut off and is still to continue, which it can do from
    the cache only while baseline and warm start are what they were.

    Args:
      models: Model artifacts, all of them live.
      pushed_models: PushedModel artifacts.
    """
    pushed = {custom_int(artifact, MODEL_ID) for artifact in pushed_models if is_pushed(artifact)}
    sound = [model for model in models if model.id in pushed and not rolled_back(model)]
    return sorted(sound, key=lambda model: model.id)


def is_pushed(pushed_model: metadata_store_pb2.Artifact) -> bool:
    """Whether the Pusher did push."""
    return custom_int(pushed_model, "pushed") == 1


def rolled_back(model: metadata_store_pb2.Artifact) -> str:
    """Who took this Model out of service, when and why; empty if nobody did."""
    return custom_text(model, ROLLED_BACK)


def custom_int(artifact: metadata_store_pb2.Artifact, name: str) -> int:
    """A custom property; 0 where there is none. Looking it up by index would add it."""
    properties = artifact.custom_properties
    return int(properties[name].int_value) if name in properties else 0


def custom_text(artifact: metadata_store_pb2.Artifact, name: str) -> str:
    """A custom property; empty where there is none."""
    properties = artifact.custom_properties
    return str(properties[name].string_value) if name in properties else ""


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


_log = logging.getLogger(__name__)

ABSENT = "absent"
"""Custom property of a Model artifact that stands for no model at all."""
_NOTE = "NO_MODEL.txt"


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
