"""What TFX's Trainer runs, from records to an exported model."""

import hashlib
import io
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from components.serving_gate.component import keras_scorer
from components.trainer import fit as fitting
from components.trainer import run_fn as trainer
from components.trainer.calibration import UNCHANGED, Platt, calibrate, scale_head
from components.trainer.devices import Accelerator
from components.trainer.fit import Fit
from components.trainer.model import HEAD, build_model, embedding_function
from components.trainer.pair_data import PairData
from components.trainer.recipe import Recipe, TrainSettings
from components.trainer.run_fn import impostors, initial_weights, run_fn
from data_ingest.errors import InputError
from serving.saved_model.loader import LoadedModel
from serving.saved_model.trained_on import read_trained_on
from tests.pair_records import make_pairs, tiny_data, tiny_settings, write_records


@dataclass
class FnArgs:
    train_files: list[str]
    eval_files: list[str]
    serving_model_dir: str
    model_run_dir: str
    custom_config: dict[str, Any]
    base_model: str | None = None


@dataclass
class Workspace:
    folder: Path
    settings: TrainSettings = field(default_factory=tiny_settings)

    def fn_args(self) -> FnArgs:
        train = make_pairs(groups=3, classes=5)
        held_out = make_pairs(groups=2, classes=5, first=7)
        return FnArgs(
            train_files=[write_records(self.folder / "train", train)],
            eval_files=[write_records(self.folder / "eval", held_out)],
            serving_model_dir=str(self.folder / "model" / "Format-Serving"),
            model_run_dir=str(self.folder / "model_run"),
            custom_config={
                "train": self.settings.model_dump_json(),
                "dataset": "synthetic",
                "kind": "drawing",
                "source_hash": "0123",
                "checkpoint_dir": str(self.folder / "checkpoints"),
            },
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_fn(Workspace(folder).fn_args())
    return folder


def test_run_fn_leaves_a_model_facts_and_tensorboard_logs(finished: Path) -> None:
    facts = json.loads((finished / "model_run" / "training.json").read_text())
    assert facts["steps"] == 6
    assert facts["images_per_second"] > 0
    assert 0 <= facts["best_validation_accuracy"] <= 1
    assert (facts["validation_classes"], facts["remarks"]) == (10, [])
    assert [entry["step"] for entry in facts["history"]] == [3, 6]
    assert facts["device"]
    events = EventAccumulator(str(finished / "model_run"))
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert {"train/loss", "train/batch", "validation/one_shot_accuracy"} <= tags
    assert [event.step for event in events.Tensors("train/batch")] == [0, 3]
    width, height, png = events.Tensors("train/batch")[0].tensor_proto.string_val
    side = tiny_settings().recipe("drawing").image_size
    assert (int(width), int(height)) == (8 * side, 8 * side)
    with Image.open(io.BytesIO(png)) as batch:
        assert np.asarray(batch)[:side].max() > 128
    with Image.open(finished / "model_run" / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 300
    assert (finished / "model" / "Format-Serving" / "saved_model.pb").is_file()
    assert (finished / "model_run" / "projector_config.pbtxt").is_file()


def test_the_model_card_says_what_the_model_was_made_of(finished: Path) -> None:
    path = finished / "model" / "Format-Serving" / "assets.extra" / "model_card.json"
    card = json.loads(path.read_text())
    assert (card["dataset"], card["source_hash"]) == ("synthetic", "0123")
    assert (card["kind"], card["max_side"]) == ("drawing", 512)
    assert card["data"]["train"]["classes"] == 15
    assert card["recipe"]["seed"] == 1
    assert card["framing"] == card["recipe"]["framing"] == "ink"
    assert "eval_within_5way_accuracy" in card["metrics"]
    assert card["calibration"]["scale"] > 0


def test_the_model_remembers_the_images_that_shaped_it_and_those_before_it(
    finished: Path, tmp_path: Path
) -> None:
    base = finished / "model" / "Format-Serving"
    seen = read_trained_on(base)
    assert seen is not None
    for pairs in (make_pairs(groups=3, classes=5), make_pairs(groups=2, classes=5, first=7)):
        assert all(seen.any_of([pair.image_a]) and seen.any_of([pair.image_b]) for pair in pairs)
    other = tiny_data(tmp_path, first=20)
    assert not set(seen.digests.tolist()) & set(other.digests.tolist())
    warm = trainer.seen([other], base)
    assert set(warm.tolist()) == {*seen.digests.tolist(), *other.digests.tolist()}


def test_a_model_on_top_of_another_says_so_and_knows_its_images(
    finished: Path, tmp_path: Path
) -> None:
    before = finished / "model" / "Format-Serving"
    settings = tiny_settings(backbone=str(before), backbone_trainable="last", views=True, steps=2)
    arguments = Workspace(tmp_path, settings).fn_args()
    others = make_pairs(groups=3, classes=5, first=20)
    arguments.train_files = [write_records(tmp_path / "others", others)]
    run_fn(arguments)
    export = tmp_path / "model" / "Format-Serving"
    card = json.loads((export / "assets.extra" / "model_card.json").read_text())
    digest = hashlib.sha256((before / "assets.extra" / "model.keras").read_bytes()).hexdigest()
    assert card["backbone"] == {"name": str(before), "trainable": "last", "sha256": digest}
    seen = read_trained_on(export)
    assert seen is not None
    for pairs in (others, make_pairs(groups=3, classes=5)):
        assert seen.any_of([pairs[0].image_a])
    # What the gate compares: the graph that is served, and the model as Keras loads it.
    images = [[pair.image_a for pair in others[:4]], [pair.image_b for pair in others[:4]]]
    with LoadedModel(export) as model:
        served = model.run(
            "serving_default", dict(zip(("image_a", "image_b"), images, strict=True))
        )
    np.testing.assert_allclose(served["score"], keras_scorer(export)(*images), atol=1e-5)


def test_the_card_has_the_licence_of_a_named_network(finished: Path) -> None:
    recipe = tiny_settings(backbone="ResNet50", image_size=32).recipe()
    assert trainer.backbone_facts(recipe) == {
        "name": "ResNet50",
        "trainable": "frozen",
        "weights": "imagenet",
        "licence": "MIT (KaimingHe/deep-residual-networks)",
    }
    card = finished / "model" / "Format-Serving" / "assets.extra" / "model_card.json"
    assert json.loads(card.read_text())["backbone"] is None


def test_the_model_brings_how_alike_held_out_classes_look(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, pairs=400)
    model = build_model(tiny_settings().recipe())
    scale_head(model, calibrate(model, data).platt)
    shipped = impostors(model, data)
    assert [pairs.images for pairs in shipped][:2] == [1, 2]
    assert shipped[0].identities == len(data.index.classes)
    # No pair is of one class or of two groups.
    sizes = np.array([len(data.index.class_rows(c)) for c in range(len(data.index.classes))])
    expected = sum(
        int(sizes[a] * sizes[b])
        for g in range(len(data.index.groups))
        for a in data.index.group_classes(g)
        for b in data.index.group_classes(g)
        if a < b
    )
    assert shipped[0].pairs == expected


def test_what_folds_say_of_groups_in_general_is_in_the_exported_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = {}
    for name, found in (("with", Platt(0.5, 0.25)), ("without", UNCHANGED)):
        monkeypatch.setattr(trainer, "cross_fitted_correction", lambda *_, found=found, **__: found)
        (folder := tmp_path / name).mkdir()
        run_fn(Workspace(folder).fn_args())
        extra = folder / "model" / "Format-Serving" / "assets.extra"
        heads[name] = keras.models.load_model(extra / "model.keras").get_layer(HEAD)
        calibration = json.loads((extra / "model_card.json").read_text())["calibration"]
        assert (calibration["correction_scale"], calibration["correction_shift"]) == found
    np.testing.assert_allclose(heads["with"].w, 0.5 * np.asarray(heads["without"].w), rtol=1e-5)
    assert float(heads["with"].b0) == pytest.approx(0.5 * float(heads["without"].b0) + 0.25)


def test_the_checkpoint_goes_once_the_model_is_stored(finished: Path) -> None:
    assert list((finished / "checkpoints").iterdir()) == []


def test_a_kill_during_export_does_not_cost_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    monkeypatch.setattr(trainer, "export_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_fn(workspace.fn_args())
    monkeypatch.setattr(trainer, "export_model", lambda *_, **__: None)
    run_fn(workspace.fn_args())
    facts = json.loads((tmp_path / "model_run" / "training.json").read_text())
    assert facts["resumed_from_step"] == 6


def test_a_refit_goes_on_with_all_images_and_keeps_what_strangers_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Recipe, PairData, PairData]] = []
    started: list[Any] = []
    ended: list[Any] = []
    exported: list[dict[str, Any]] = []
    fit, export = fitting.fit, trainer.export_model

    def recorded(recipe: Recipe, train: PairData, held_out: PairData, **keywords: Any) -> Fit:
        calls.append((recipe, train, held_out))
        started.append(keywords["initial_weights"])
        fitted = fit(recipe, train, held_out, **keywords)
        ended.append(fitted.model.get_weights())
        return fitted

    monkeypatch.setattr(fitting, "fit", recorded)
    monkeypatch.setattr(
        trainer,
        "export_model",
        lambda *_, **keywords: exported.append(keywords) or export(*_, **keywords),
    )
    facts = []
    for name, settings in (
        ("refit", tiny_settings(steps=6, refit_share=0.5)),
        ("without", tiny_settings(steps=3)),
    ):
        (folder := tmp_path / name).mkdir()
        run_fn(Workspace(folder, settings).fn_args())
        facts.append(json.loads((folder / "model_run" / "training.json").read_text()))
        assert list((folder / "checkpoints").iterdir()) == []
    (_, train, held_out), (_, everything, nothing), _ = calls
    assert len(everything.index) == len(train.index) + len(held_out.index)
    assert set(everything.index.classes) == {*train.index.classes, *held_out.index.classes}
    assert len(nothing.index) == 0
    # From the weights as they were trained, not as they were calibrated.
    for start, end in zip(started[1], ended[0], strict=True):
        np.testing.assert_array_equal(start, end)
    refit, without = facts
    assert refit["refit"]["steps"] == 3
    assert without["refit"] is None
    for kept in ("calibration", "best_validation_accuracy"):
        assert refit[kept] == without[kept]
    assert exported[0]["impostors"] == exported[1]["impostors"]
    model = keras.models.load_model(
        tmp_path / "refit/model/Format-Serving/assets.extra/model.keras"
    )
    scale, shift = refit["calibration"]["scale"], refit["calibration"]["shift"]
    *_, w, b0 = ended[1]
    np.testing.assert_allclose(model.get_layer(HEAD).w, scale * w, rtol=1e-5)
    assert float(model.get_layer(HEAD).b0) == pytest.approx(scale * b0 + shift, rel=1e-5)


def test_a_kill_during_a_refit_costs_neither_it_nor_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path, tiny_settings(steps=6, refit_share=0.5))
    monkeypatch.setattr(trainer, "scale_head", killed_when_called(times=2))
    with pytest.raises(KeyboardInterrupt):
        run_fn(workspace.fn_args())
    monkeypatch.undo()
    resumed = []
    fit = fitting.fit

    def recorded(*arguments: Any, **keywords: Any) -> Fit:
        fitted = fit(*arguments, **keywords)
        resumed.append(fitted.facts.resumed_from_step)
        return fitted

    monkeypatch.setattr(fitting, "fit", recorded)
    run_fn(workspace.fn_args())
    assert resumed == [3, 3]


def killed_when_called(*, times: int) -> Callable[..., None]:
    """`scale_head` that is interrupted at that call."""
    calls = itertools.count(1)

    def scale(model: keras.Model, platt: Platt) -> None:
        if next(calls) == times:
            raise KeyboardInterrupt
        scale_head(model, platt)

    return scale


def test_a_gpu_is_found_and_gets_its_larger_batches_without_being_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Accelerator(tf.distribute.get_strategy(), True, True, "1 x NVIDIA L4", gpus=1)
    seen: dict[str, Any] = {}

    def fit(recipe: Recipe, *_: Any, accelerator: Accelerator, **__: Any) -> None:
        seen.update(recipe=recipe, accelerator=accelerator)
        raise InterruptedError

    monkeypatch.setattr(trainer, "choose_accelerator", lambda **_: gpu)
    monkeypatch.setattr(fitting, "fit", fit)
    with pytest.raises(InterruptedError):
        run_fn(Workspace(tmp_path, TrainSettings(image_size=16)).fn_args())
    assert seen["accelerator"] is gpu
    assert seen["recipe"] == TrainSettings(image_size=16).recipe("drawing", gpus=1)


def test_calibration_turns_held_out_scores_into_probabilities_and_keeps_their_order(
    tmp_path: Path,
) -> None:
    data = tiny_data(tmp_path, pairs=400)
    keras.utils.set_random_seed(3)
    model = build_model(tiny_settings().recipe())

    def logits() -> np.ndarray:
        vectors = embedding_function(model)(data.images)
        a, b = vectors[data.pairs[:, 0]], vectors[data.pairs[:, 1]]
        return float(model.get_layer(HEAD).b0) - np.abs(a - b).sum(axis=1)

    before = logits()
    calibration = calibrate(model, data)
    scale_head(model, calibration.platt)
    after = logits()
    np.testing.assert_allclose(
        after, calibration.scale * before + calibration.shift, rtol=1e-3, atol=1e-3
    )
    scores = 1 / (1 + np.exp(-after))
    assert scores.mean() == pytest.approx(data.labels.mean(), abs=0.01)
    assert calibration.accuracy == pytest.approx(np.mean((scores >= 0.5) == data.labels))
    assert (np.asarray(model.get_layer(HEAD).w) >= 0).all()


def test_a_warm_start_begins_with_the_weights_of_the_base_model(finished: Path) -> None:
    base = finished / "model" / "Format-Serving"
    weights = initial_weights(tiny_settings(warm_start=True), "drawing", str(base))
    stored = keras.models.load_model(base / "assets.extra" / "model.keras").get_weights()
    for one, other in zip(weights, stored, strict=True):
        np.testing.assert_array_equal(one, other)


def test_run_fn_hands_the_weights_of_a_warm_start_to_the_fit(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = Workspace(tmp_path, tiny_settings(warm_start=True)).fn_args()
    args.base_model = str(finished / "model" / "Format-Serving")
    handed = {}

    def fit(*_: object, **keywords: object) -> None:
        handed.update(keywords)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        run_fn(args)
    expected = initial_weights(tiny_settings(warm_start=True), "drawing", args.base_model)
    for one, other in zip(handed["initial_weights"], expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_blessed_model_a_warm_start_is_a_cold_one() -> None:
    assert initial_weights(tiny_settings(warm_start=True), "drawing", None) is None
    assert initial_weights(tiny_settings(), "drawing", "/ignored") is None


def test_a_base_model_that_does_not_fit_is_refused_with_the_way_out(
    finished: Path, tmp_path: Path
) -> None:
    base = str(finished / "model" / "Format-Serving")
    with pytest.raises(InputError, match=r"another architecture.*warm_start"):
        initial_weights(tiny_settings(warm_start=True, embedding_size=16), "drawing", base)
    with pytest.raises(InputError, match=r"does not exist.*warm_start"):
        initial_weights(tiny_settings(warm_start=True), "drawing", str(tmp_path))
    extra = tmp_path / "assets.extra"
    extra.mkdir()
    (extra / "model.keras").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"cannot be read.*warm_start"):
        initial_weights(tiny_settings(warm_start=True), "drawing", str(tmp_path))
