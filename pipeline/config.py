"""The typed configuration of the whole pipeline, read from YAML and `--set key=value`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml
from pydantic import Field

from components.evaluator.settings import EvaluateSettings, GateSettings
from components.trainer.recipe import TrainSettings
from data_ingest.errors import InputError
from data_ingest.settings import DatasetSettings, PairSettings, Settings
from pipeline.settings import (
    BeamSettings,
    DriftSettings,
    MetadataSettings,
    NotifySettings,
    PushSettings,
    RetrainSettings,
)

DEFAULT_CONFIG = Path("pipeline_config.yaml")


class ConfigError(InputError):
    """The configuration has an unknown key, a wrong type or a value out of range."""


class PipelineConfig(Settings):
    """Every option of the pipeline. Sections belong to the part that reads them."""

    pipeline_name: str = Field(
        "oneshot",
        pattern=r"^[a-z][a-z0-9-]*$",
        description="name of the pipeline in ML Metadata",
    )
    dataset: DatasetSettings = DatasetSettings()
    pairs: PairSettings = PairSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    gate: GateSettings = GateSettings()
    push: PushSettings = PushSettings()
    beam: BeamSettings = BeamSettings()
    metadata: MetadataSettings = MetadataSettings()
    retrain: RetrainSettings = RetrainSettings()
    drift: DriftSettings = DriftSettings()
    notify: NotifySettings = NotifySettings()


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
    file = path or DEFAULT_CONFIG
    tree = _read_yaml(file) if path or file.exists() else {}
    for override in overrides:
        _apply_override(tree, override)
    try:
        return PipelineConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        faults = "\n".join(f"  {line}" for line in _explain(error))
        raise ConfigError(f"{file}: the configuration is not valid:\n{faults}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from None
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
