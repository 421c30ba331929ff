"""TFX's Evaluator with our configuration, on toy models: does it gate, and on what?"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2
from tfx.components.evaluator import executor as evaluator_executor
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import json_utils, proto_utils

from components.evaluator import extractors
from components.evaluator.eval_config import (
    EXTRACTORS_MODULE,
    eval_config,
    lacking,
    read_metrics,
    refusals,
)
from components.evaluator.extractors import (
    IMAGES_PER_BATCH,
    MEASURED_FEATURES,
    EmbedAndMatch,
    by_trial,
)
from components.evaluator.settings import EvaluateSettings, Threshold
from data_ingest.records import features
from data_ingest.records.features import Pair, serialize_pair
from serving.saved_model.contract import EMBED, MATCH

PROTOCOLS = {("official", 20), ("within", 5)}
OFFICIAL = "official_20way_accuracy"
BEAM = ["--runner=FnApiRunner", "--sdk_container_image=none"]


class ToyModel(tf.Module):
    """`logit = 2 - |a - b| * slope` of "images" that are numbers written as text."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = tf.Variable(slope)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image")])
    def embed(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": tf.strings.to_number(image)[:, tf.newaxis]}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 1], tf.float32, name=f"embedding_{side}") for side in "ab"
        ]
    )
    def match(self, embedding_a: tf.Tensor, embedding_b: tf.Tensor) -> dict[str, tf.Tensor]:
        logit = 2 - tf.abs(embedding_a - embedding_b)[:, 0] * self.slope
        return {"logit": logit, "score": tf.sigmoid(logit)}


def toy_model(directory: Path, slope: float) -> standard_artifacts.Model:
    module = ToyModel(slope)
    tf.saved_model.save(
        module,
        str(directory / "Format-Serving"),
        signatures={EMBED: module.embed, MATCH: module.match},
    )
    return artifact(standard_artifacts.Model(), directory)


def artifact(of: standard_artifacts.Model, uri: Path) -> standard_artifacts.Model:
    uri.mkdir(parents=True, exist_ok=True)
    of.uri = str(uri)
    of.type_id = of.id = 1
    return of


def trial_pairs(protocol: str, way: int, trials: int, wrong: int) -> Iterator[Pair]:
    """Trials whose candidates lie at 0, 10, 20...; in the first `wrong`, the query is far off."""
    for trial in range(trials):
        answer = trial % way
        query = (answer * 10 + (0.5 if trial >= wrong else 15)) % (way * 10)
        for candidate in range(way):
            yield Pair(
                image_a=b"%.2f" % query,
                image_b=b"%d" % (candidate * 10),
                label=int(candidate == answer),
                class_a=f"g/{answer}",
                class_b=f"g/{candidate}",
                group_a=f"run{trial % 2}",
                group_b=f"run{trial % 2}",
                writer_a=1,
                writer_b=2,
                trial=f"{protocol}/set{trial // 20}/item{trial % 20}",
                protocol=protocol,
                way=way,
            )


def verification_pairs() -> Iterator[Pair]:
    same, different = ("1", "1.2"), ("1", "9")
    for n in range(40):
        image_a, image_b = same if n % 2 else different
        pair = next(trial_pairs("verification", 2, 1, 0))
        yield pair._replace(
            image_a=image_a.encode(), image_b=image_b.encode(), label=n % 2, trial="", way=0
        )


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> standard_artifacts.Examples:
    """40 official trials of which 4 go wrong, 20 within trials, 40 verification pairs; shuffled."""
    pairs = [
        *trial_pairs("official", 20, 40, wrong=4),
        *trial_pairs("within", 5, 20, wrong=0),
        *verification_pairs(),
    ]
    return write_examples(tmp_path_factory.mktemp("examples"), pairs)


def write_examples(root: Path, pairs: list[Pair]) -> standard_artifacts.Examples:
    (root / "Split-one_shot").mkdir(parents=True)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(root / "Split-one_shot" / "data.gz"), options) as writer:
        for row in np.random.default_rng(0).permutation(len(pairs)):
            writer.write(serialize_pair(pairs[row]))
    result = artifact(standard_artifacts.Examples(), root)
    result.split_names = artifact_utils.encode_split_names(["train", "eval", "one_shot"])
    return result


@dataclasses.dataclass
class Verdict:
    blessed: bool
    evaluation: str


Judge = Callable[..., Verdict]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, standard_artifacts.Model]:
    root = tmp_path_factory.mktemp("models")
    return {
        name: toy_model(root / name, slope)
        for name, slope in {"good": 1.0, "constant": 0.0, "reversed": -1.0}.items()
    }


@pytest.fixture
def judge(
    examples: standard_artifacts.Examples,
    models: dict[str, standard_artifacts.Model],
    tmp_path: Path,
) -> Judge:
    """Runs TFX's Evaluator executor as a pipeline would."""

    def run(
        model: str,
        thresholds: dict[str, Threshold],
        *,
        baseline: str | None = None,
        protocols: set[tuple[str, int]] = PROTOCOLS,
        records: standard_artifacts.Examples | None = None,
    ) -> Verdict:
        blessing = artifact(standard_artifacts.ModelBlessing(), tmp_path / "blessing")
        evaluation = artifact(standard_artifacts.ModelEvaluation(), tmp_path / "evaluation")
        config = eval_config(EvaluateSettings(thresholds=thresholds), protocols)
        context = base_beam_executor.BaseBeamExecutor.Context(
            beam_pipeline_args=BEAM, tmp_dir=str(tmp_path), unique_id="1"
        )
        evaluator_executor.Executor(context).Do(
            {
                "examples": [records or examples],
                "model": [models[model]],
                **({"baseline_model": [models[baseline]]} if baseline else {}),
            },
            {"evaluation": [evaluation], "blessing": [blessing]},
            {
                "eval_config": proto_utils.proto_to_json(config),
                "example_splits": json_utils.dumps(["one_shot"]),
                "module_path": EXTRACTORS_MODULE,
            },
        )
        return Verdict(blessing.get_int_custom_property("blessed") == 1, evaluation.uri)

    return run


def test_a_good_model_is_blessed_and_its_figures_are_read_back(judge: Judge) -> None:
    verdict = judge(
        "good",
        {
            OFFICIAL: Threshold(min=0.85),
            "auc": Threshold(min=0.9),
        },
    )
    assert verdict.blessed
    assert refusals(verdict.evaluation) == []
    metrics = read_metrics(verdict.evaluation)
    assert metrics[OFFICIAL] == pytest.approx(0.9)
    assert metrics[f"{OFFICIAL}_n"] == 40
    low, high = metrics[f"{OFFICIAL}_ci95"]
    assert low < 0.9 < high
    assert metrics["within_5way_accuracy"] == 1
    assert metrics["auc"] == metrics["verification_accuracy"] == 1
    assert metrics["auc_n"] == 40
    assert metrics["per_group"][OFFICIAL]["run0"]["n"] == 20
    assert set(metrics["per_group"][OFFICIAL]) == {"run0", "run1"}
    figures = [name for name in metrics if name != "per_group"]
    assert figures == sorted(figures)
    assert "between_20way_accuracy" not in metrics


def test_a_constant_model_scores_chance_and_is_not_blessed(judge: Judge) -> None:
    verdict = judge("constant", EvaluateSettings().thresholds)
    metrics = read_metrics(verdict.evaluation)
    assert metrics[OFFICIAL] == pytest.approx(0.05)
    assert metrics["within_5way_accuracy"] == pytest.approx(0.2)
    assert metrics["auc"] == metrics["eer"] == 0.5
    assert not verdict.blessed
    assert any(reason.startswith(f"{OFFICIAL} 0.05") for reason in refusals(verdict.evaluation))


def test_every_threshold_that_must_fail_does(judge: Judge) -> None:
    thresholds = {
        OFFICIAL: Threshold(min=0.91),
        "within_5way_accuracy": Threshold(max=0.99),
        "auc": Threshold(max=0.99),
        "ece": Threshold(max=0.001),
        "eer": Threshold(max=0.5),
    }
    verdict = judge("good", thresholds)
    assert not verdict.blessed
    reasons = refusals(verdict.evaluation)
    assert [reason.split()[0] for reason in reasons] == sorted(set(thresholds) - {"eer"})


def test_a_second_run_with_a_baseline_that_is_not_better_is_blessed(judge: Judge) -> None:
    thresholds = {
        OFFICIAL: Threshold(min=0.85, max_drop=0.02),
        "ece": Threshold(max_drop=0.02),
    }
    verdict = judge("good", thresholds, baseline="reversed")
    assert verdict.blessed
    assert read_metrics(verdict.evaluation)[OFFICIAL] == pytest.approx(0.9)


def test_a_model_worse_than_its_baseline_by_more_than_max_drop_is_refused(judge: Judge) -> None:
    names = [OFFICIAL, "auc", "eer"]
    verdict = judge("constant", {name: Threshold(max_drop=0.02) for name in names}, baseline="good")
    assert not verdict.blessed
    reasons = refusals(verdict.evaluation)
    assert [reason.split()[0] for reason in reasons] == sorted(names)
    assert all("worse than the latest blessed" in reason for reason in reasons)


def test_a_max_drop_alone_leaves_a_threshold_without_a_baseline() -> None:
    settings = EvaluateSettings(thresholds={OFFICIAL: Threshold(max_drop=0.02)})
    config = tfma.utils.update_eval_config_with_defaults(
        eval_config(settings, PROTOCOLS), has_baseline=False, rubber_stamp=True
    )
    keys = tfma.metrics.metric_thresholds_from_metrics_specs(config.metrics_specs, config)
    assert [(key.name, key.is_diff) for key in keys] == [("one_shot_accuracy", False)]


def test_a_threshold_on_trials_that_there_are_not_blesses_nothing(judge: Judge) -> None:
    # One by the user's wish alone, one of trials that should be there, going by names.
    asked = {f"{kind}_20way_accuracy": Threshold(min=0.1) for kind in ("between", "within")}
    asked |= {f"{name}_skilled": Threshold(min=0.1) for name in ("auc", "eer")}
    protocols = PROTOCOLS | {("between", 20)}
    verdict = judge("good", {**asked, OFFICIAL: Threshold(min=0.5)}, protocols=protocols)
    assert not verdict.blessed
    assert lacking(verdict.evaluation, [OFFICIAL, *asked]) == sorted(asked)
    assert refusals(verdict.evaluation) == []


@pytest.fixture
def signatures(tmp_path: Path) -> standard_artifacts.Examples:
    """40 pairs a kind of forgery; of the skilled ones every third is taken."""
    pairs = [pair._replace(protocol="random") for pair in verification_pairs()]
    for number, pair in enumerate(verification_pairs()):
        taken = pair.label == 0 and number % 3 == 0
        pairs.append(pair._replace(protocol="skilled", image_b=b"1.1" if taken else pair.image_b))
    return write_examples(
        tmp_path / "signatures", [*trial_pairs("between", 5, 20, wrong=0), *pairs]
    )


def test_figures_and_thresholds_tell_random_from_skilled_forgeries(
    judge: Judge, signatures: standard_artifacts.Examples
) -> None:
    protocols = {("between", 5), ("random", 0), ("skilled", 0)}
    limits = {"eer_random": Threshold(max=0.1), "eer_skilled": Threshold(max=0.1)}
    limits["auc_skilled"] = Threshold(min=0.5)
    verdict = judge("good", limits, protocols=protocols, records=signatures)
    metrics = read_metrics(verdict.evaluation)
    assert metrics["eer_random"] == 0
    assert metrics["eer_skilled"] > 0.1
    assert metrics["verification_accuracy_random"] == 1
    assert metrics["verification_accuracy_skilled"] == 33 / 40
    assert metrics["auc_skilled"] < metrics["auc"] < metrics["auc_random"] == 1
    assert (metrics["eer_n"], metrics["eer_random_n"], metrics["eer_skilled_n"]) == (80, 40, 40)
    assert "ece_skilled" not in metrics
    assert not verdict.blessed
    assert [reason.split()[0] for reason in refusals(verdict.evaluation)] == ["eer_skilled"]


def test_a_worse_eer_with_skilled_forgeries_is_told_from_a_better_one() -> None:
    asked = EvaluateSettings(thresholds={"eer_skilled": Threshold(max_drop=0.01)})
    config = eval_config(asked, {("skilled", 0)})
    figures = config.metrics_specs[0].metrics
    (gate,) = [gate for figure in figures for gate in figure.per_slice_thresholds]
    assert gate.threshold.change_threshold.direction == config_pb2.LOWER_IS_BETTER
    assert dict(gate.slicing_specs[0].feature_values) == {"protocol": "skilled", "way": "0"}


def test_the_source_hash_is_part_of_the_configuration() -> None:
    one, other = (
        eval_config(EvaluateSettings(), PROTOCOLS, source_hash=each) for each in ("a", "b")
    )
    assert one != other


class CountedModel:
    """Embeds images as numbers, and says in which calls."""

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []
        self.signatures = {EMBED: self.embed, MATCH: self.match}

    def embed(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        self.calls.append(image.numpy().tolist())
        return {"embedding": tf.strings.to_number(image)[:, tf.newaxis]}

    def match(self, embedding_a: tf.Tensor, embedding_b: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logit": (embedding_a - embedding_b)[:, 0]}


@pytest.fixture
def counted() -> tuple[EmbedAndMatch, CountedModel]:
    model, step = CountedModel(), EmbedAndMatch({})
    step._model_loaders = {"": SimpleNamespace(load=lambda **_: model)}
    step.setup()
    return step, model


def batch_of(images: list[tuple[int, int]]) -> dict[str, Any]:
    columns = {name: np.array([[b""]] * len(images)) for name in MEASURED_FEATURES}
    for side, name in enumerate((features.IMAGE_A, features.IMAGE_B)):
        columns[name] = np.array([[b"%d" % pair[side]] for pair in images])
    return {"features": columns, "labels": np.zeros((len(images), 1)), "arrow_record_batch": None}


def test_an_image_is_embedded_once_in_whichever_batches_it_is(
    counted: tuple[EmbedAndMatch, CountedModel],
) -> None:
    step, model = counted
    (first,) = step.process(batch_of([(1, 2), (3, 1)]))
    (second,) = step.process(batch_of([(2, 4), (1, 3)]))
    assert model.calls == [[b"1", b"3", b"2"], [b"4"]]
    assert first["predictions"]["logit"].tolist() == [-1, 2]
    assert second["predictions"]["logit"].tolist() == [-2, -2]
    assert {*first} == {"features", "labels", "predictions"}
    assert {*first["features"]} == {*MEASURED_FEATURES}


def test_calls_and_what_is_kept_are_bounded(
    counted: tuple[EmbedAndMatch, CountedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, model = counted
    monkeypatch.setattr(extractors, "_KEPT_BYTES", 4 * 100)
    pairs = [(n, n + 1000) for n in range(600)]
    (scored,) = step.process(batch_of(pairs))
    assert scored["predictions"]["logit"].tolist() == [-1000] * 600
    assert max(map(len, model.calls)) == IMAGES_PER_BATCH
    assert sum(map(len, model.calls)) == 1200
    (scored,) = step.process(batch_of([(0, 1599)]))
    assert scored["predictions"]["logit"].tolist() == [-1599]
    assert model.calls[-1] == [b"0"], "the oldest has gone, the newest not"


def test_a_batch_is_taken_apart_by_trial() -> None:
    """And outside trials by protocol and group."""
    columns = {
        "trial": [[b"o/run01/item01"], [b""], [b"o/run01/item01"], [b""], [b"o/run01/item02"]],
        "protocol": [[b"official"], [b"verification"]] * 2 + [[b"official"]],
        "way": [[20], [0]] * 2 + [[20]],
        "group_a": [[b"run01"], [b"Greek"], [b"run01"], [b"Latin"], [b"run01"]],
        "image_a": [[b"a"]] * 5,
    }
    logits = np.arange(5, dtype=np.float32)
    parts = [
        *by_trial(
            {
                "features": {name: np.array(values) for name, values in columns.items()},
                "input": None,
                "labels": {"candidate": np.array([[1], [0], [0], [1], [1]])},
                "predictions": {"candidate": {"logit": logits}, "baseline": {"logit": -logits}},
            }
        )
    ]
    found = [
        (
            {name: value.tolist() for name, value in part["features"].items()},
            part["labels"]["candidate"].tolist(),
            [part["predictions"][model]["logit"].tolist() for model in ("candidate", "baseline")],
        )
        for part in parts
    ]
    names = ("trial", "protocol", "way", "group_a")
    assert [tuple(named[name][0] for name in names) for named, *_ in found] == [
        (b"o/run01/item01", b"official", 20, b"run01"),
        (b"", b"verification", 0, b"Greek"),
        (b"", b"verification", 0, b"Latin"),
        (b"o/run01/item02", b"official", 20, b"run01"),
    ]
    assert [rest for _, *rest in found] == [
        [[1, 0], [[0, 2], [0, -2]]],
        [[0], [[1], [-1]]],
        [[1], [[3], [-3]]],
        [[1], [[4], [-4]]],
    ]
    assert {*parts[0]} == {"features", "labels", "predictions"}
