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

from components.versions import push_version

logger = logging.getLogger(__name__)

MODEL_BLESSING = "model_blessing"
INFRA_BLESSING = "infra_blessing"


class Executor(executor.Executor):
    """Pushes a model that both the Evaluator and the ServingGate blessed."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """As TFX's, but atomic, and without a blessing from both it does not push.

        The PushedModel's custom properties are TFX's: `pushed` (0 or 1), `pushed_destination` and
        `pushed_version`.

        Raises:
          OSError: the model could not be written; the base path is as it was.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict["pushed_model"])
        if not self._is_blessed(input_dict):
            self._MarkNotPushed(pushed)
            logger.warning("Not pushed: the model is not blessed")
            return
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties["push_destination"], destination)
        if destination.WhichOneof("destination") != "filesystem":
            raise NotImplementedError("a model can be pushed to a file system only")
        source = Path(self.GetModelPath(input_dict))
        # The archive first: when it fails, nothing has appeared that MLMD does not know.
        io_utils.copy_dir(str(source), pushed.uri)
        base = Path(destination.filesystem.base_directory)
        try:
            target = push_version(source, base)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                message = "no space left to push the model; free some and run again"
                raise OSError(errno.ENOSPC, message, str(base)) from error
            raise
        self._MarkPushed(pushed, pushed_destination=str(target), pushed_version=target.name)
        logger.info("Pushed as version %s", target.name)

    def _is_blessed(self, input_dict: dict[str, list[types.Artifact]]) -> bool:
        both = all(input_dict.get(name) for name in (MODEL_BLESSING, INFRA_BLESSING))
        return both and bool(self.CheckBlessing(input_dict))


class Pusher(component.Pusher):
    """TFX's Pusher with our executor; takes `model` and both blessings.

    Like any node it is cached: the same model and blessings are not pushed a second time.
    """

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
