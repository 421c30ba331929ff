"""TFX's nodes that read examples."""

import json
from pathlib import Path
from typing import NoReturn

import pytest
import tensorflow_data_validation as tfdv
from tensorflow_data_validation.statistics.generators import time_stats_generator
from tfx.components.evaluator import executor as evaluator_executor
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils, standard_artifacts
from tfx_bsl.tfxio import tf_example_record

from components import examples_readers
from components.evaluator import extractors
from components.example_validator import stats_options
from components.examples_readers import EvaluatorExecutor, StatisticsExecutor
from data_ingest.errors import InputError
from data_ingest.sampling.protocols import SPLITS
from tests.pair_records import make_pairs, write_records


@pytest.fixture
def context(tmp_path: Path) -> base_beam_executor.BaseBeamExecutor.Context:
    return base_beam_executor.BaseBeamExecutor.Context(
        beam_pipeline_args=["--runner=FnApiRunner", "--sdk_container_image=none"],
        tmp_dir=str(tmp_path / "tmp"),
        unique_id="1",
    )


@pytest.fixture
def examples(tmp_path: Path) -> standard_artifacts.Examples:
    artifact = standard_artifacts.Examples()
    artifact.uri = str(tmp_path / "examples")
    artifact.split_names = artifact_utils.encode_split_names(list(SPLITS))
    for split in SPLITS:
        write_records(Path(artifact.uri, f"Split-{split}"), make_pairs(groups=1, classes=2))
    return artifact


def test_statistics_name_the_file_that_is_damaged(
    context: base_beam_executor.BaseBeamExecutor.Context,
    examples: standard_artifacts.Examples,
    tmp_path: Path,
) -> None:
    (path,) = Path(examples.uri, "Split-eval").iterdir()
    path.write_bytes(path.read_bytes()[:-200])
    statistics = standard_artifacts.ExampleStatistics()
    statistics.uri = str(tmp_path / "statistics")
    with pytest.raises(InputError, match=f"{path} cannot be read"):
        StatisticsExecutor(context).Do({"examples": [examples]}, {"statistics": [statistics]}, {})


def test_statistics_tell_images_and_look_for_no_times(
    context: base_beam_executor.BaseBeamExecutor.Context,
    examples: standard_artifacts.Examples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unwanted:
        def __iter__(self) -> NoReturn:
            raise AssertionError("a text is compared with formats of times")

    formats = Unwanted()
    monkeypatch.setattr(time_stats_generator, "_TIME_RE_LIST", formats)
    # Below as many values TFDV does not say that they are images.
    write_records(Path(examples.uri, "Split-train"), make_pairs(groups=4, classes=8))
    statistics = standard_artifacts.ExampleStatistics()
    statistics.uri = str(tmp_path / "statistics")
    options = {"stats_options_json": stats_options().to_json()}
    StatisticsExecutor(context).Do({"examples": [examples]}, {"statistics": [statistics]}, options)
    assert time_stats_generator._TIME_RE_LIST is formats
    found = tfdv.load_stats_binary(f"{statistics.uri}/Split-train/FeatureStats.pb")
    domains = {
        feature.path.step[0]: {stat.name for stat in feature.custom_stats}
        for feature in found.datasets[0].features
    }
    assert "image_format_histogram" in domains["image_a"]


def test_the_evaluator_names_the_image_that_the_model_refuses(
    context: base_beam_executor.BaseBeamExecutor.Context,
    examples: standard_artifacts.Examples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("InvalidArgumentError [while running 'Evaluate/Predict']")

    monkeypatch.setattr(evaluator_executor.Executor, "Do", refuse)
    with pytest.raises(RuntimeError, match="while running"):
        EvaluatorExecutor(context).Do({"examples": [examples]}, {}, {})
    pairs = make_pairs(groups=1, classes=2)
    pairs[5] = pairs[5]._replace(image_a=b"no image", trial="official/run01/item03")
    write_records(Path(examples.uri, "Split-one_shot"), pairs)
    with pytest.raises(InputError, match="image_a of record 5 of official/run01/item03, class"):
        EvaluatorExecutor(context).Do({"examples": [examples]}, {}, {})


@pytest.mark.parametrize(
    ("reasons", "blessed"), [([], 1), (["within_2way_accuracy 0.4 does not beat HOG"], 0)]
)
def test_a_model_that_does_not_beat_the_baselines_loses_its_blessing(
    reasons: list[str],
    blessed: int,
    context: base_beam_executor.BaseBeamExecutor.Context,
    examples: standard_artifacts.Examples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blessing, evaluation = standard_artifacts.ModelBlessing(), standard_artifacts.ModelEvaluation()
    blessing.uri, evaluation.uri = str(tmp_path), str(tmp_path)

    def bless(*_: object) -> None:
        (tmp_path / "BLESSED").touch()
        blessing.set_int_custom_property("blessed", 1)

    asked: list[bool] = []
    monkeypatch.setattr(evaluator_executor.Executor, "Do", bless)
    monkeypatch.setattr(
        examples_readers, "compare", lambda beat, **_: asked.append(beat) or reasons
    )
    inputs, outputs = (
        {"examples": [examples]},
        {"blessing": [blessing], "evaluation": [evaluation]},
    )
    properties: dict[str, object] = {"eval_config": "{}"}
    EvaluatorExecutor(context).Do(inputs, outputs, properties)
    assert asked == []
    EvaluatorExecutor(context).Do(inputs, outputs, properties | {"beat_baselines": 1})
    assert asked == [True]
    assert blessing.get_int_custom_property("blessed") == blessed
    assert {path.name for path in tmp_path.glob("*BLESSED")} == {
        "BLESSED" if blessed else "NOT_BLESSED"
    }


def test_statistics_and_evaluation_tell_how_far_they_are(
    context: base_beam_executor.BaseBeamExecutor.Context,
    examples: standard_artifacts.Examples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[tuple[str, int]] = []
    for module in (examples_readers, extractors):
        monkeypatch.setattr(
            module, "advance", lambda name, count, total=None: counted.append((name, count))
        )
    original = tf_example_record._DecodeBatchExamplesDoFn.process
    pairs = len(make_pairs(groups=1, classes=2))
    statistics = standard_artifacts.ExampleStatistics()
    statistics.uri = str(tmp_path / "statistics")
    StatisticsExecutor(context).Do({"examples": [examples]}, {"statistics": [statistics]}, {})
    assert sum(count for _, count in counted) == len(SPLITS) * pairs
    assert {name for name, _ in counted} == {"Taking statistics"}
    assert tf_example_record._DecodeBatchExamplesDoFn.process is original
    assert examples_readers._pairs(examples, SPLITS) is None
    kinds = {"pairs": [{"pairs": 3}, {"pairs": 4}]}
    summary = {"splits": dict.fromkeys(SPLITS, kinds)}
    Path(examples.uri, "sampling.json").write_text(json.dumps(summary), "utf-8")
    assert examples_readers._pairs(examples, SPLITS) == 7 * len(SPLITS)
    assert examples_readers._pairs(examples, ["one_shot"]) == 7
