"""ServedModel: the model that is served now, for orchestrators without Resolvers."""

import logging

from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component as function_component
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts
from tfx.utils import io_utils, path_utils

from components.object_store import newest_version

logger = logging.getLogger(__name__)

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
        logger.info("Nothing is served from %s yet", base_path)
        fileio.makedirs(model.uri)
        # An object store knows no empty folder.
        with fileio.open(f"{model.uri}/{_NOTE}", "w") as note:
            note.write(f"When this was made, there was no version in {base_path}.\n")
        model.set_int_custom_property(ABSENT, 1)
        return
    logger.info("Served now: %s", version)
    io_utils.copy_dir(version, path_utils.serving_model_dir(model.uri))
    model.set_string_custom_property("served_from", version)
