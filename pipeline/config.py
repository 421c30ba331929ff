"""The typed configuration of the whole pipeline, read from YAML and `--set key=value`."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, Final, get_args

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
    KubeflowSettings,
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
        pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$",
        max_length=63,
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
    kubeflow: KubeflowSettings = KubeflowSettings()


_KINDS: Final = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "merge", "str", "seq", "map")}
_NULLS: Final = ("", "~", "null", "Null", "NULL")
_TEXT_TYPES: Final = ("string_type", "path_type")


class _Loader(yaml.SafeLoader):
    """YAML in which a value is text: its option's type says what `off`, `010` or `1e-3` is.

    YAML's own rules, by which these are a boolean, eight and a string, would guess without knowing
    the option. What is left of them are null and `<<`. Two equal keys are an error.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag in _KINDS]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag in _KINDS
    }

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} appears twice", problem_mark=key.start_mark
                )
        return node


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Reads `path` and applies `key.path=value` overrides, whose values are YAML.

    Args:
      path: the YAML file; None takes `pipeline_config.yaml` of the working folder, or the
        defaults where there is none.
      overrides: for example `["train.steps=500", "pairs.ways=[5]"]`; later ones win. A text or
        path is taken as it stands.

    Raises:
      ConfigError: the file cannot be read, or a key, type or range is wrong; the message lists
        every fault with its key's path and what is allowed.
    """
    file = path or DEFAULT_CONFIG
    tree = _read_file(file) if path or file.exists() else {}
    for override in overrides:
        _apply_override(tree, override)
    return validated(tree, named=str(file))


def validated(tree: Mapping[str, Any], *, named: str) -> PipelineConfig:
    """The configuration in a tree of sections, which messages call `named`.

    Raises:
      ConfigError: as `load_config`.
    """
    try:
        return PipelineConfig.model_validate(tree)
    except pydantic.ValidationError as error:
        faults = "\n".join(f"  {line}" for line in _explain(error))
        raise ConfigError(f"{named}: the configuration is not valid:\n{faults}") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            tree = _parse(file, named=str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: expected `key: value` lines at the top, found {reprlib.repr(tree)}"
        )
    # A section whose options are all commented out.
    return {key: {} if value is None else value for key, value in tree.items()}


def _parse(source: str | BinaryIO, *, named: str) -> Any:
    try:
        return yaml.load(source, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{named}: not valid YAML: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: write it as key.path=value, e.g. train.steps=500")
    value: Any = text
    if not _is_text(key) or text in _NULLS or text.startswith(("'", '"')):
        value = _parse(text, named=f"--set {override}")
    *sections, name = key.split(".")
    node = tree
    for section in sections:
        child = node.get(section)
        if not isinstance(child, dict | None):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
        # A copy: what has an alias in the file is set in this place alone.
        node[section] = dict(child or {})
        node = node[section]
    node[name] = value


def _is_text(key: str) -> bool:
    """Whether any text is of the option's type, so that `[`, `{` or ` #` in it is not YAML's."""
    section, _, name = key.partition(".")
    try:
        option = type(getattr(PipelineConfig(), section)).model_fields[name]
        pydantic.TypeAdapter(option.annotation).validate_python("[")
    except (AttributeError, KeyError, pydantic.ValidationError):
        return False
    return True


def _explain(error: pydantic.ValidationError) -> Iterator[str]:
    for fault in error.errors():
        location = fault["loc"]
        key = ".".join(str(part) for part in location) or "(top level)"
        if fault["type"] == "extra_forbidden":
            allowed = sorted(_allowed_keys(location[:-1]))
            near = _suggestion(str(location[-1]), allowed)
            yield f"{key}: unknown key; {near}allowed here: {', '.join(allowed)}"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = fault["input"]
            if fault["type"] in _TEXT_TYPES:
                message += ", in quotes where it begins with [ or {"
            shown = "" if isinstance(given, Mapping) else f" (got {reprlib.repr(given)})"
            yield f"{key}: {message}{shown}"


def _suggestion(name: str, allowed: Sequence[str]) -> str:
    """What was meant, if that can be told: the same name in a section, or one that is alike."""
    section, dot, option = name.partition(".")
    if dot:
        return f"in a file write {section}: {{{option}: ...}}; "
    meant = [
        f"{section}.{name}"
        for section, settings in PipelineConfig()
        if isinstance(settings, Settings) and name in type(settings).model_fields
    ]
    meant = meant or get_close_matches(name, allowed, n=1)
    return f"did you mean {' or '.join(meant)}? " if meant else ""


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
