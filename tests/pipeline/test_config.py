"""The configuration: every fault is told with its key and what is allowed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from components.evaluator.settings import Threshold
from components.trainer.recipe import Preset
from data_ingest.settings import Settings
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
    with pytest.raises(ConfigError, match=r"train\.stepz: unknown key; .*allowed here: .*steps"):
        load_config(_write(tmp_path, "train: {stepz: 10}\n"))


def test_an_unknown_section_is_named_with_the_sections_that_exist() -> None:
    with pytest.raises(
        ConfigError,
        match=r"trian: unknown key; .*allowed here: .*dataset.*train",
    ):
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
        ("train:\n\tseed: 1\n", "line 2"),
        ("train.seed: 1", "in a file write train: {seed: ...}"),
        ("train: {seed: !!int 1}", "not valid YAML"),
        ("train: " + "[" * 600, "not valid YAML"),
        ("unknown:\n", "unknown: unknown key"),
        ("dataset: {data: {SPAN}}", "in quotes where it begins with [ or {"),
        ("dataset: {data: ''}", "dataset.data: give a path"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def _option(text: str) -> Any:
    """What an option is set to by `section.key=value`."""
    value: Any = load_config(SHIPPED, [text])
    for name in text.partition("=")[0].split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("name", ["xla", "mixed_precision"])
@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (("on", "On", "true", "yes"), "on"),
        (("off", "OFF", "false", "no"), "off"),
        (("auto",), "auto"),
    ],
)
def test_a_switch_takes_every_word_for_on_and_off(
    tmp_path: Path, name: str, words: tuple[str, ...], meaning: str
) -> None:
    for word in words:
        path = _write(tmp_path, f"train: {{{name}: {word}}}\n")
        assert getattr(load_config(path).train, name) == meaning, word
        assert _option(f"train.{name}={word}") == meaning, word
        train = {name: {"true": True, "false": False}.get(word, word)}
        assert getattr(PipelineConfig.model_validate({"train": train}).train, name) == meaning


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.views=yes", True),
        ("train.quarter_turns=Off", False),
        ("train.steps=010", 10),
        ("train.steps=08", 8),
        ("train.learning_rate=1e-3", 0.001),
        ("train.learning_rate=.5", 0.5),
        ("train.steps=", None),
        ("train.steps=~", None),
        ("push.model_name=no", "no"),
        ("push.model_name=2026-01-31", "2026-01-31"),
        ("notify.smtp_user=007", "007"),
        ("notify.smtp_user=a=b", "a=b"),
        ("notify.smtp_user='a'", "a"),
        ("dataset.data=/a b/c #1", Path("/a b/c #1")),
        ("dataset.data={SPAN}/images", Path("{SPAN}/images")),
        ("dataset.writer_pattern=[^_]+_(\\d+)", r"[^_]+_(\d+)"),
        ("dataset.data=null", None),
        ("beam.extra_args=[--a=1, '--b=, c']", ("--a=1", "--b=, c")),
    ],
)
def test_the_type_of_an_option_says_what_a_text_means(override: str, value: object) -> None:
    assert _option(override) == value
    assert type(_option(override)) is type(value)


@pytest.mark.parametrize(
    "text", ["1:30", "0x10", "true", "2026-01-31", "1e400", "nan", "-.inf", "5s"]
)
def test_what_only_looks_like_a_number_is_refused(text: str) -> None:
    for key in ("train.steps", "train.learning_rate"):
        with pytest.raises(ConfigError, match=rf"{key}: Input should be a"):
            load_config(SHIPPED, [f"{key}={text}"])


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = """
evaluate:
  thresholds:
    auc: &strict {min: 0.9}
    verification_accuracy: &both
      <<: *strict
      max_drop: 0.1
    official_5way_accuracy: {<<: [*both, *strict], min: 0.8}
    eer: &loose {max: 0.2}
    ece: *loose
"""
    path = _write(tmp_path, text)
    thresholds = load_config(path).evaluate.thresholds
    assert thresholds == {
        "auc": Threshold(min=0.9),
        "verification_accuracy": Threshold(min=0.9, max_drop=0.1),
        "official_5way_accuracy": Threshold(min=0.8, max_drop=0.1),
        "eer": Threshold(max=0.2),
        "ece": Threshold(max=0.2),
    }
    changed = load_config(path, ["evaluate.thresholds.eer.max=0.1"]).evaluate.thresholds
    assert changed == {**thresholds, "eer": Threshold(max=0.1)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_any_editor_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("train:\r\n  steps: 7 # ä\r\npairs:\r\n  # seed: 3\r\n".encode(encoding))
    assert load_config(path) == load_config(SHIPPED, ["train.steps=7"])
    path.write_bytes(b"train: {steps: 7} # \xe4\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: not valid YAML: .*#x00e4"):
        load_config(path)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.stepz", r"steps\?"),
        ("train.warm-start", r"warm_start\?"),
        ("train.train_pairs", r"pairs\.train_pairs\?"),
        ("steps", r"train\.steps\?"),
        ("seed", r"pairs\.seed or train\.seed\?"),
        ("Train.steps", r"train\?"),
        ("evaluate.thresholds.auc.mim", r"min\?"),
    ],
)
def test_an_unknown_key_is_answered_with_what_was_meant(key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key; did you mean {meant}"):
        load_config(SHIPPED, [f"{key}=1"])


@pytest.mark.parametrize(
    "override",
    [
        *(
            f"push.model_name={name}"
            for name in ("..", ".", ".x", "-x", "a/b", "a b", "a:b", "é", "")
        ),
        *(f"push.model_name={name}" for name in ("1700000000", "models.config", "a" * 64)),
        *(f"pipeline_name={name}" for name in ("..", "a/b", "a_b", "A", "0a", "a-", "a" * 64, "")),
        *(f"beam.runner={name}" for name in ("SparkRunner", "FnApiRunner", "")),
        *(f"beam.worker_pool={name}" for name in ("host", "http://host:1", "host:port", ":1")),
        "beam.extra_args=[flink_master=x]",
        *(f"notify.smtp_host={name}" for name in ("a b", "user@host", "http://host")),
        'notify.mail_from="a@b.org\\nBcc: c@d.org"',
        'notify.mail_to=["a@b.org\\r\\n"]',
        "notify.mail_to=['']",
        "dataset.download_url=file:///etc",
        "dataset.download_url=https://a b",
        "dataset.download_url=https://ann:password@mirror/",
        'dataset.data="a\\0b"',
        'dataset.cache_dir=""',
    ],
)
def test_a_name_that_cannot_be_a_path_host_or_address_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_config(SHIPPED, [override])


def _numbers(settings: Settings, prefix: str = "") -> Iterator[str]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from _numbers(value, f"{prefix}{name}.")
        elif {int, float} & {field.annotation, *_arguments(field.annotation)}:
            yield prefix + name


def _arguments(annotation: Any) -> Iterator[Any]:
    for argument in get_args(annotation):
        yield argument
        yield from _arguments(argument)


def test_every_number_has_bounds(tmp_path: Path) -> None:
    path = _write(tmp_path, "")
    keys = list(_numbers(PipelineConfig()))
    assert {"train.steps", "train.widths", "gate.max_p99_ms", "pairs.ways"} <= set(keys)
    assert len(keys) > 50
    keys += [f"evaluate.thresholds.auc.{name}" for name in ("min", "max", "max_drop")]
    for key in keys:
        for absurd in ("-1e30", "1e30", "9" * 5000, "-1", "nan", "inf", "many", "true"):
            text = f"[{absurd}]" if key in ("train.widths", "pairs.ways") else absurd
            with pytest.raises(ConfigError, match=rf"\n  {key}(\.0)?: "):
                load_config(path, [f"{key}={text}"])


_EXPLAINED = r"(?:^|; |, or )((?:\w+(?:, or |, | or ))*\w+): "


def _choices() -> Iterator[tuple[str, str]]:
    """Each option with a word that its description explains, or that its type lists."""
    for section, settings in PipelineConfig():
        if not isinstance(settings, Settings):
            continue
        for name, field in type(settings).model_fields.items():
            listed = {str(one) for one in _arguments(field.annotation) if isinstance(one, str)}
            told = re.findall(_EXPLAINED, field.description or "")
            explained = {word for words in told for word in re.split(r", or |, | or ", words)}
            explained -= set() if name == "preset" else set(get_args(Preset))
            for word in listed | explained:
                yield f"{section}.{name}", word


def test_every_choice_of_an_option_is_taken(tmp_path: Path) -> None:
    others = {"job_endpoint": "a:1", "worker_pool": "a:2", "project": "p", "region": "r"}
    others |= {"temp_location": "gs://b/t", "worker_image": "i"}
    path, choices = _write(tmp_path, f"beam: {others}"), set(_choices())
    assert {
        ("train.xla", "auto"),
        ("train.xla", "off"),
        ("train.preset", "koch2015"),
        ("retrain.label", "null"),
        ("dataset.source", "folder"),
        ("notify.events", "drift"),
    } <= choices
    for key, word in choices:
        load_config(path, [f"{key}=[{word}]" if key == "notify.events" else f"{key}={word}"])


def test_a_missing_file_is_refused_when_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("override", ["train.steps", "=1", "train.seed.deep=1"])
def test_a_malformed_override_is_refused_with_the_right_form(override: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(override)):
        load_config(SHIPPED, ["train.seed=1", override])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["beam.runner=portable"], "needs job_endpoint, worker_pool"),
        (["beam.runner=portable", "beam.job_endpoint='[::1]:8099'"], "needs worker_pool"),
        (["beam.runner=dataflow", "beam.project=p"], "needs region, temp_location, worker_image"),
        (["beam.extra_args=[--runner=SparkRunner]"], "--runner follows from the other options"),
        (["beam.extra_args=[--direct_num_workers=2]"], "--direct_num_workers follows"),
    ],
)
def test_what_a_beam_runner_lacks_is_said(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"beam: .*{said}"):
        load_config(SHIPPED, overrides)
