"""The configuration: every fault is told with its key and what is allowed."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline.config import ConfigError, PipelineConfig, load_config
from pipeline.fingerprint import PROJECT_ROOT

SHIPPED = PROJECT_ROOT / "pipeline_config.yaml"


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_the_shipped_file_holds_every_key_with_its_default() -> None:
    assert load_config(SHIPPED) == PipelineConfig()
    shipped = yaml.safe_load(SHIPPED.read_text())
    for section, settings in PipelineConfig():
        if hasattr(settings, "model_fields_set"):
            assert set(shipped[section]) == set(type(settings).model_fields), section


def test_every_key_of_the_shipped_file_is_explained_in_the_words_of_its_declaration() -> None:
    config, section, explained = PipelineConfig(), "", 0
    for line in SHIPPED.read_text().splitlines():
        if top := re.match(r"([a-z_]+):$", line):
            section = top[1]
        if option := re.match(r"  ([a-z_0-9]+):(.*)", line):
            field = type(getattr(config, section)).model_fields[option[1]]
            assert option[2].partition("  # ")[2] == field.description, line
            explained += 1
    assert explained > 80


def test_overrides_win_and_keep_their_yaml_types(tmp_path: Path) -> None:
    path = _write(tmp_path, "train: {steps: 10}\n")
    config = load_config(path, ["train.steps=500", "pairs.ways=[5]", "dataset.background=small1"])
    assert config.train.steps == 500
    assert config.pairs.ways == (5,)
    assert config.dataset.background == "small1"


def test_an_unknown_key_is_named_with_the_keys_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.stepz: unknown key; allowed here: .*steps"):
        load_config(_write(tmp_path, "train: {stepz: 10}\n"))


def test_an_unknown_section_is_named_with_the_sections_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"trian: unknown key; allowed here: .*dataset.*train"):
        load_config(SHIPPED, ["trian.steps=1"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps=many", r"train\.steps: .*integer.*'many'"),
        ("train.steps=0", r"train\.steps: .*greater than or equal to 1"),
        (
            "dataset.source=magic",
            r"dataset\.source: .*'auto', 'omniglot', 'folder' or 'synthetic'",
        ),
        ("dataset.background=some", r"dataset\.background: .*'small1'"),
        ("train.preset=best", r"train\.preset: .*'fast'"),
        ("dataset.writer_pattern='form_['", r"dataset\.writer_pattern: not a regular expression"),
        ("dataset.writer_pattern=form", r"writer_pattern: it needs exactly one group .*has 0"),
    ],
)
def test_a_wrong_type_or_range_is_told_with_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(SHIPPED, [override])


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SHIPPED, ["train.steps=0", "pairs.seed=-1"])
    assert "train.steps" in str(caught.value)
    assert "pairs.seed" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [", "not valid YAML"),
        ("- a list", "expected `key: value`"),
        ("train:\n  seed: 1\n  seed: 2\n", "'seed' appears twice"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused_when_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("override", ["train.steps", "=1", "train.seed.deep=1"])
def test_a_malformed_override_is_refused_with_the_right_form(override: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(override)):
        load_config(SHIPPED, ["train.seed=1", override])
