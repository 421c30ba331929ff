"""Reads TF Serving's configuration files: the list of models, the batching parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.errors import ServingError, invalid
from serving.server.batching import BatchingOptions
from serving.server.models import ModelSetup
from serving.server.versions import HostOptions, Policy

_PLATFORM: Final = "tensorflow"
# Of session_bundle_config.proto, which the package of TF Serving's protos lacks.
_BATCHING_PROTO: Final = """
name: "serving/batching_parameters.proto" package: "tensorflow.serving" syntax: "proto3"
dependency: "google/protobuf/wrappers.proto"
message_type {
  name: "BatchingParameters"
  field { name: "max_batch_size" number: 1 type_name: ".google.protobuf.Int64Value" }
  field { name: "batch_timeout_micros" number: 2 type_name: ".google.protobuf.Int64Value" }
  field { name: "max_enqueued_batches" number: 3 type_name: ".google.protobuf.Int64Value" }
  field { name: "num_batch_threads" number: 4 type_name: ".google.protobuf.Int64Value" }
  field { name: "thread_pool_name" number: 5 type_name: ".google.protobuf.StringValue" }
  field { name: "allowed_batch_sizes" number: 6 type: TYPE_INT64 label: LABEL_REPEATED }
  field { name: "pad_variable_length_inputs" number: 7 type: TYPE_BOOL }
  field { name: "enable_large_batch_splitting" number: 8 type_name: ".google.protobuf.BoolValue" }
  field { name: "max_execution_batch_size" number: 9 type_name: ".google.protobuf.Int64Value" }
}
"""


class ConfigError(ValueError):
    """A configuration file that cannot be used; the message names the file and the field."""


def read_model_config(path: Path, *, defaults: HostOptions) -> dict[str, ModelSetup]:
    """Models of a `model_config_file`, a `ModelServerConfig` in text format.

    Raises:
      ConfigError: it cannot be read or understood.
    """
    config = model_server_config_pb2.ModelServerConfig()
    _parse(path, config)
    try:
        return setups_from_config(config, defaults=defaults)
    except ServingError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def setups_from_config(
    config: model_server_config_pb2.ModelServerConfig, *, defaults: HostOptions
) -> dict[str, ModelSetup]:
    """Models by name.

    Args:
      config: a `model_config_list`.
      defaults: settings that the configuration says nothing about.

    Raises:
      ServingError: INVALID_ARGUMENT: there is no list, or an entry is not complete.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
            "ModelConfigList is currently supported"
        )
    setups: dict[str, ModelSetup] = {}
    for entry in config.model_config_list.config:
        if not entry.name:
            raise invalid("a model has no name")
        if entry.name in setups:
            raise invalid(f"Duplicate model name: {entry.name}")
        if not entry.base_path:
            raise invalid(f"model {entry.name} has no base_path")
        if entry.model_platform not in ("", _PLATFORM):
            raise invalid(
                f"model {entry.name}: model_platform is {_PLATFORM!r}, not {entry.model_platform!r}"
            )
        setups[entry.name] = ModelSetup(
            Path(entry.base_path),
            replace(
                defaults,
                policy=_policy(entry.name, entry.model_version_policy),
                labels=dict(entry.version_labels),
            ),
        )
    return setups


def read_batching_parameters(path: Path, *, defaults: BatchingOptions) -> BatchingOptions:
    """A `batching_parameters_file`, `BatchingParameters` in text format.

    Fields that only exist inside TF Serving are read and passed over.

    Raises:
      ConfigError: it cannot be read or understood, or a value is out of range.
    """
    parameters = _batching_parameters()
    _parse(path, parameters)
    given: dict[str, Any] = {
        name: getattr(parameters, name).value
        for name in (
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
            "num_batch_threads",
        )
        if parameters.HasField(name)
    }
    if parameters.enable_large_batch_splitting.value and parameters.HasField(
        "max_execution_batch_size"
    ):
        # In TF Serving `max_batch_size` then limits requests; here larger ones are split too.
        given["max_batch_size"] = parameters.max_execution_batch_size.value
    try:
        return replace(defaults, **given, allowed_batch_sizes=tuple(parameters.allowed_batch_sizes))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _policy(
    name: str,
    policy: Any,  # FileSystemStoragePathSourceConfig.ServableVersionPolicy
) -> Policy:
    match policy.WhichOneof("policy_choice"):
        case "all":
            return Policy(latest=None)
        case "specific":
            if not policy.specific.versions:
                raise invalid(f"model {name}: the policy 'specific' names no versions")
            return Policy(specific=frozenset(policy.specific.versions))
        case "latest":
            # Unset is 0 in a proto, and 0 versions would be no service.
            return Policy(latest=max(1, policy.latest.num_versions))
        case _:
            return Policy()


def _parse(path: Path, proto: message.Message) -> None:
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), proto)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _batching_parameters() -> Any:
    """An empty `tensorflow.serving.BatchingParameters`."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = text_format.Parse(_BATCHING_PROTO, descriptor_pb2.FileDescriptorProto())
    pool.AddSerializedFile(file.SerializeToString())
    name = "tensorflow.serving.BatchingParameters"
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))()
