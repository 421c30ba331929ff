"""What ML Metadata says of pushed models: which were pushed, and which were rolled back since.

Needs no TFX, so that promotion and clean-up start quickly.
"""

from collections.abc import Iterable

from ml_metadata.proto import metadata_store_pb2

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
    ServingGate did not, or its run was cut off and is still to continue, which it can do from the
    cache only while baseline and warm start are what they were.

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


def pushed_version(pushed_model: metadata_store_pb2.Artifact) -> int:
    """Number of the version that was pushed."""
    return int(custom_text(pushed_model, "pushed_version"))


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
