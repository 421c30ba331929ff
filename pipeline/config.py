"""The typed configuration of the whole pipeline, read from YAML and `--set key=value`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import pydantic
import yaml
from pydantic import Field, SecretStr

from components.evaluator.settings import EvaluateSettings, GateSettings
from components.trainer.recipe import TrainSettings
from data_ingest.errors import InputError
from data_ingest.settings import DatasetSettings, PairSettings, Settings
from pipeline.settings import DriftSettings, NotifySettings, RetrainSettings

DEFAULT_CONFIG = Path("pipeline_config.yaml")
LOCAL_BEAM_RUNNERS: Final = ("FnApiRunner", "DirectRunner", "PrismRunner")
"""Beam runners whose workers are on the machine that starts them."""
Stage = Literal["data", "train", "evaluate", "push"]
"""How far a run goes: validated examples, a model, both verdicts on it, or all the way."""
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)


class ConfigError(InputError):
    """The configuration has an unknown key, a wrong type or a value out of range."""


class BeamSettings(Settings):
    """How Beam runs the ingestion, statistics and evaluation steps."""

    runner: str = Field(
        "FnApiRunner", description="Beam runner, for example FnApiRunner, FlinkRunner"
    )
    running_mode: Literal["in_memory", "multi_threading", "multi_processing"] = Field(
        "in_memory", description="how FnApiRunner runs workers on one machine"
    )
    workers: int = Field(1, ge=0, le=1024, description="workers of FnApiRunner; 0 is one per core")
    extra_args: tuple[str, ...] = Field((), description="further Beam arguments, each --name=value")

    def pipeline_args(self) -> list[str]:
        """Beam arguments, complete: nothing is left for Beam to find on the network."""
        # Without sdk_container_image TFX builds a source distribution of itself in each component.
        args = [f"--runner={self.runner}"]
        if not any(arg.startswith("--sdk_container_image=") for arg in self.extra_args):
            args.append("--sdk_container_image=none")
        if self.runner == "FnApiRunner":
            args.append(f"--direct_running_mode={self.running_mode}")
            args.append(f"--direct_num_workers={self.workers}")
        return [*args, *self.extra_args]


class PushSettings(Settings):
    """Where a blessed model goes."""

    model_name: str = Field(
        "siamese",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="TF Serving model name; versions appear in <output>/serving_model/<model_name>",
    )
    server_base_path: str | None = Field(
        None,
        min_length=1,
        description="that folder as the servers see it, for models.config: /models/siamese, "
        "s3://...; null: under the same path as here",
    )
    server_poll_seconds: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="servers read models.config again within this time; a label moves to a version "
        "only after they could load it",
    )


class MetadataSettings(Settings):
    """Where ML Metadata is kept."""

    url: SecretStr | None = Field(
        None,
        description="sqlite:, postgresql: or mysql: URL; one with a password is better given by "
        "ONESHOT_METADATA_URL; null: metadata.db in the output folder",
    )


class PipelineConfig(Settings):
    """Every option of the pipeline. Sections belong to the part that reads them."""

    pipeline_name: str = Field(
        "oneshot",
        pattern=r"^[a-z][a-z0-9-]*$",
        description="name of the pipeline in ML Metadata",
    )
    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    pairs: PairSettings = Field(default_factory=PairSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)
    gate: GateSettings = Field(default_factory=GateSettings)
    push: PushSettings = Field(default_factory=PushSettings)
    beam: BeamSettings = Field(default_factory=BeamSettings)
    metadata: MetadataSettings = Field(default_factory=MetadataSettings)
    retrain: RetrainSettings = Field(default_factory=RetrainSettings)
    drift: DriftSettings = Field(default_factory=DriftSettings)
    notify: NotifySettings = Field(default_factory=NotifySettings)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ConfigError(f"key '{key}' appears twice in the section at line {line}")
        return super().construct_mapping(node, deep=deep)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Reads `path` and applies `key.path=value` overrides, whose values are YAML.

    Args:
      path: the YAML file; None takes `pipeline_config.yaml` of the working folder, or the
        defaults where there is none.
      overrides: for example `["train.steps=500", "pairs.ways=[5]"]`; later ones win.

    Raises:
      ConfigError: the file cannot be read, or a key, type or range is wrong; the message lists
        every fault with its key's path and what is allowed.
    """
    explicit = path is not None
    path = path or DEFAULT_CONFIG
    tree: Any = {}
    if explicit or path.exists():
        tree = _read_yaml(path)
    for override in overrides:
        _apply_override(tree, override)
    try:
        return PipelineConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        faults = "\n".join(f"  {line}" for line in _explain(error))
        raise ConfigError(f"{path}: the configuration is not valid:\n{faults}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from None
    try:
        tree = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top, found {tree!r}")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: write it as key.path=value, e.g. train.steps=500")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None
    *sections, name = key.split(".")
    node = tree
    for section in sections:
        child = node.get(section)
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
        node = child
    node[name] = value


def _explain(error: pydantic.ValidationError) -> Iterator[str]:
    for fault in error.errors():
        location = fault["loc"]
        key = ".".join(str(part) for part in location) or "(top level)"
        if fault["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(_allowed_keys(location[:-1])))
            yield f"{key}: unknown key; allowed here: {allowed}"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if isinstance(fault["input"], Mapping) else f" (got {fault['input']!r})"
            yield f"{key}: {message}{given}"


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[pydantic.BaseModel] = PipelineConfig
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            # A key of a mapping (`evaluate.thresholds.<metric>`) is free.
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel)]
        if inner:
            model = inner[-1]
    return list(model.model_fields)
