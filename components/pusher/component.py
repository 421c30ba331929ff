"""TFX's Pusher, with versions that appear whole and never collide."""

import errno
import logging
from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.pusher import component, executor
from tfx.dsl.components.base import executor_spec
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils
from tfx.utils import io_utils, proto_utils

from components.pusher.object_store import is_remote, push_to_object_store
from components.pusher.pushed_models import MODEL_ID, NOT_PUSHED_BECAUSE, rolled_back
from components.pusher.versions import has_same_files, push_version
from serving.saved_model.versions import rolled_back_versions, versions

_log = logging.getLogger(__name__)


class Executor(executor.Executor):
    """Pushes a model that both the Evaluator and the ServingGate blessed.

    A model that was rolled back is not pushed again. One that is the newest version already,
    because an earlier run was cut off before ML Metadata knew of it, keeps its number.
    """

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """As TFX's, but atomic, and without a blessing from both it does not push.

        Where the destination is an object store, which renames nothing, `saved_model.pb` is
        copied last.

        The PushedModel's custom properties are TFX's: `pushed` (0 or 1), `pushed_destination` and
        `pushed_version`, and those of `components.pusher.pushed_models`.

        Raises:
          OSError: the model could not be written; the base path is as it was.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict["pushed_model"])
        if not self._is_blessed(input_dict):
            self._MarkNotPushed(pushed)
            _log.warning("Not pushed: the model is not blessed")
            return
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties["push_destination"], destination)
        if destination.WhichOneof("destination") != "filesystem":
            raise NotImplementedError("a model can be pushed to a file system only")
        base = destination.filesystem.base_directory
        model = artifact_utils.get_single_instance(input_dict["model"])
        source = str(self.GetModelPath(input_dict))
        if reason := _rolled_back(model, source, base):
            self._MarkNotPushed(pushed)
            pushed.set_string_custom_property(NOT_PUSHED_BECAUSE, reason)
            _log.warning("Not pushed: %s", reason)
            return
        # The archive first: when it fails, nothing has appeared that MLMD does not know.
        io_utils.copy_dir(source, pushed.uri)
        if is_remote(base):
            target, version = push_to_object_store(source, base)
        else:
            target, version = _push_to_folder(Path(source), Path(base))
        self._MarkPushed(pushed, pushed_destination=target, pushed_version=str(version))
        pushed.set_int_custom_property(MODEL_ID, model.id)
        _log.info("Pushed as version %d to %s", version, target)

    def _is_blessed(self, input_dict: dict[str, list[types.Artifact]]) -> bool:
        both = all(input_dict.get(name) for name in ("model_blessing", "infra_blessing"))
        return both and bool(self.CheckBlessing(input_dict))


def _rolled_back(model: types.Artifact, source: str, base: str) -> str:
    """Why this model must not be served again; empty if it may."""
    if reason := rolled_back(model.mlmd_artifact):
        return reason
    if not is_remote(base):
        # ML Metadata does not know a model whose run was cut off right after it had been pushed.
        for version, folder in rolled_back_versions(Path(base)).items():
            if has_same_files(Path(source), folder):
                return f"this model is version {version}, which was rolled back"
    return ""


def _push_to_folder(source: Path, base: Path) -> tuple[str, int]:
    """Path and number of the version; the newest one if it is this very model."""
    for version in versions(base)[-1:]:
        if has_same_files(source, base / str(version)):
            return str(base / str(version)), version
    try:
        target = push_version(source, base)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = "no space left to push the model; free some and run again"
            raise OSError(errno.ENOSPC, message, str(base)) from error
        raise
    return str(target), int(target.name)


class Pusher(component.Pusher):
    """TFX's Pusher with our executor; takes `model` and both blessings.

    Like any node it is cached: the same model and blessings are not pushed a second time.
    """

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
