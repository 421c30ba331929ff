"""What TFX's Trainer runs: read, fit, calibrate, export."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import numpy.typing as npt

from components.trainer.calibration import UNCHANGED, Platt, fit_platt, groups_in_general
from components.trainer.devices import choose_accelerator
from components.trainer.fit import Fit, embed_all, fit, pair_logits, refit
from components.trainer.model import HEAD, build_model, embedding_function
from components.trainer.pair_data import PairData, read_pair_data
from components.trainer.recipe import Recipe, TrainSettings
from data_ingest.errors import InputError
from serving.saved_model.contract import EXTRA, KERAS_MODEL
from serving.saved_model.export import export_model
from serving.saved_model.impostors import ImpostorPairs, held_out_pairs

_log = logging.getLogger(__name__)


def initial_weights(
    settings: TrainSettings, base_model: str | None
) -> list[npt.NDArray[np.float32]] | None:
    """Weights to start from, in the order of `model.get_weights()`; None: start at random.

    Args:
      settings: `warm_start` says whether to look at all.
      base_model: SavedModel folder of the latest blessed model, None where there is none yet.

    Raises:
      InputError: the folder holds no Keras model, or one that is not of the configured shape.
    """
    if not settings.warm_start:
        return None
    if base_model is None:
        _log.info("Warm start: no blessed model yet, so training starts from random weights.")
        return None
    path = Path(base_model) / EXTRA / KERAS_MODEL
    if not path.is_file():
        raise InputError(f"train.warm_start: {path} does not exist; set train.warm_start to false")
    try:
        earlier: keras.Model = keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(
            f"train.warm_start: {path} cannot be read ({error}); set train.warm_start to false"
        ) from error
    weights: list[npt.NDArray[np.float32]] = earlier.get_weights()
    wanted = [tuple(weight.shape) for weight in build_model(settings.recipe()).weights]
    if [weight.shape for weight in weights] != wanted:
        raise InputError(
            f"train.warm_start: the model in {path} has another architecture than "
            f"train.preset '{settings.preset}' and its overrides ask for; set train.warm_start to "
            "false, or the settings back to those of that model"
        )
    _log.info(f"Warm start from {path.parents[1]}.")
    return weights


TRAINING_FACTS = "training.json"


class FnArgs(Protocol):
    """The part of `tfx.components.FnArgs` that is used."""

    train_files: list[str]
    eval_files: list[str]
    serving_model_dir: str
    model_run_dir: str
    base_model: str | None
    custom_config: Mapping[str, Any]


class Calibration(NamedTuple):
    """How the head was scaled, and what its scores are worth on held-out pairs."""

    scale: float
    shift: float
    correction_scale: float
    """Of that, what is due to groups other than the held-out ones: see `groups_in_general`."""
    correction_shift: float
    pairs: int
    accuracy: float
    """Share of the pairs on the right side of score 0.5."""

    @property
    def platt(self) -> Platt:
        return Platt(self.scale, self.shift)


def run_fn(fn_args: FnArgs) -> None:
    """Trains on the `train` pairs and exports the model; weights are chosen on the `eval` pairs.

    A refit goes on from the chosen weights with the images of both, as is usual once everything is
    chosen (scikit-learn's `refit`). What the `eval` pairs measured is kept from before it: the
    calibration of the scores, and how alike strangers look.

    `custom_config`: 'train' (TrainSettings as JSON), 'dataset' (kind of data), 'source_hash' (so
    that neither TFX's cache nor a checkpoint survives edited code) and, optional,
    'checkpoint_dir' (a folder that outlives the process).

    Raises:
      InputError: no or unusable records, or a model that a warm start does not fit.
      TrainingDiverged: the loss became NaN or infinite.
    """
    config = fn_args.custom_config
    settings = TrainSettings.model_validate_json(config["train"])
    accelerator = choose_accelerator(mixed_precision=settings.mixed_precision, xla=settings.xla)
    recipe = settings.recipe(gpus=accelerator.gpus)
    train = _read("Training", fn_args.train_files, recipe)
    held_out = _read("Held-out", fn_args.eval_files, recipe)
    judged, last = recipe.stages()
    both = [*fn_args.train_files, *fn_args.eval_files]
    everything = _read("All", both, recipe) if last is not None else None
    log_dir = Path(fn_args.model_run_dir)
    how: dict[str, Any] = {
        "accelerator": accelerator,
        "checkpoint_dir": config.get("checkpoint_dir") or None,
        "checkpoint_every": settings.checkpoint_every,
        "code_version": str(config.get("source_hash")),
    }
    start = initial_weights(settings, fn_args.base_model)
    fits = [fit(judged, train, held_out, initial_weights=start, log_dir=log_dir, **how)]
    model = fits[0].model
    weights = model.get_weights()
    correction = groups_in_general(recipe, train, held_out, everything, accelerator=accelerator)
    calibration = calibrate(model, held_out, correction)
    facts = {**fits[0].facts, "calibration": calibration._asdict(), "refit": None}
    # Before a refit: to it, held-out classes are no strangers any more.
    shipped = impostors(model, held_out)
    if last is not None and everything is not None:
        _log.info(f"Refit: {last.steps} steps on all images, the held-out ones too")
        fits.append(refit(last, weights, everything, log_dir=log_dir / "refit", **how))
        model = fits[1].model
        scale_head(model, calibration.platt)
        facts["refit"] = {name: fits[1].facts[name] for name in ("steps", "seconds")}
    export_model(
        model,
        Path(fn_args.serving_model_dir),
        preprocessing=recipe.preprocessing,
        card={
            "dataset": config.get("dataset"),
            "source_hash": config.get("source_hash"),
            "recipe": recipe.model_dump(mode="json"),
            "data": {"train": _summary(train), "eval": _summary(held_out)},
            **_results(facts),
            "training": {
                **{name: facts[name] for name in ("steps", "best_step", "refit", "device")},
                "warm_start_from": fn_args.base_model if settings.warm_start else None,
            },
        },
        warmup_images=held_out.samples,
        impostors=shipped,
    )
    _write_facts(log_dir, facts)
    for done in fits:
        done.checkpoint.remove()
    _log_end(fits[0])


def calibrate(model: keras.Model, held_out: PairData, correction: Platt = UNCHANGED) -> Calibration:
    """Scales the head of `model` so that its scores are probabilities.

    Args:
      correction: from those of the held-out pairs to those of groups in general.
    """
    logits = pair_logits(model, held_out)
    platt = fit_platt(logits, held_out.labels).then(correction)
    scale_head(model, platt)
    right = (platt.scale * logits + platt.shift >= 0) == (held_out.labels == 1)
    return Calibration(*platt, *correction, len(right), float(right.mean()))


def scale_head(model: keras.Model, platt: Platt) -> None:
    """Makes `platt.scale * logit + platt.shift` of every logit of `model`."""
    head = model.get_layer(HEAD)
    w, b0 = platt.fold(np.asarray(head.w, np.float64), float(head.b0))
    head.w.assign(w.astype(np.float32))
    head.b0.assign(b0)


def impostors(model: keras.Model, held_out: PairData) -> tuple[ImpostorPairs, ...]:
    """How alike different held-out classes look to the calibrated `model`: a gallery's thresholds
    rest on it until it holds enough identities of its own."""
    head = model.get_layer(HEAD)
    index = held_out.index
    vectors = embed_all(embedding_function(model), held_out.images)
    return held_out_pairs(vectors, index.row_class, index.row_group, bias=float(head.b0))


def _read(name: str, patterns: list[str], recipe: Recipe) -> PairData:
    data = read_pair_data(patterns, recipe.preprocessing)
    _log.info(
        f"{name} data: {len(data.labels)} pairs of {len(data.index)} images, "
        f"{len(data.index.classes)} classes, {len(data.index.groups)} groups"
    )
    return data


def _results(facts: Mapping[str, Any]) -> dict[str, Any]:
    calibration = facts["calibration"]
    trials = f"{facts['validation_protocol']}_{facts['validation_way']}way"
    return {
        "metrics": {
            f"eval_{trials}_accuracy": facts["best_validation_accuracy"],
            "eval_verification_accuracy": calibration["accuracy"],
        },
        "calibration": calibration,
    }


def _summary(data: PairData) -> dict[str, int | str]:
    return {
        "pairs": len(data.labels),
        "images": len(data.index),
        "classes": len(data.index.classes),
        "groups": len(data.index.groups),
        "fingerprint": data.fingerprint,
    }


def _write_facts(directory: Path, facts: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TRAINING_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _log_end(fitted: Fit) -> None:
    facts = fitted.facts
    accuracy = facts["best_validation_accuracy"]
    best = (
        f", best validation {100 * accuracy:.1f} % at step {facts['best_step']}" if accuracy else ""
    )
    _log.info(f"Trained {facts['steps']} steps in {facts['seconds']:.0f} s{best}.")
