"""Trains and exports a model: the function that TFX's Trainer runs."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

import keras
import numpy as np
import numpy.typing as npt

from components.trainer.board import projected, write_projector
from components.trainer.calibration import calibrate, cross_fitted_correction, scale_head
from components.trainer.contact_sheet import CONTACT_SHEET, contact_sheet
from components.trainer.devices import choose_accelerator
from components.trainer.fit import fit_stages
from components.trainer.model import HEAD, build_model, embed_all, embedding_function
from components.trainer.outlook import expected, remarks, validated
from components.trainer.pair_data import PairData, read_pair_data
from components.trainer.pretrained import APPLICATIONS, exported_folder, fingerprint, is_path
from components.trainer.recipe import Recipe, TrainSettings
from data_ingest.errors import InputError
from data_ingest.progress import step
from data_ingest.sources.kinds import Kind, form_of
from serving.saved_model.contract import EXTRA, KERAS_MODEL, Preprocessing
from serving.saved_model.export import export_model
from serving.saved_model.impostors import ImpostorPairs, held_out_pairs
from serving.saved_model.trained_on import Digests, read_trained_on

TRAINING_FACTS: Final = "training.json"

_log = logging.getLogger(__name__)


class FnArgs(Protocol):
    """The part of `tfx.components.FnArgs` that is used."""

    train_files: list[str]
    eval_files: list[str]
    serving_model_dir: str
    model_run_dir: str
    base_model: str | None
    custom_config: Mapping[str, Any]


def run_fn(fn_args: FnArgs) -> None:
    """Trains on the `train` pairs and exports the model; weights are chosen on the `eval` pairs.

    A refit goes on from the chosen weights with the images of both, as is usual once everything is
    chosen (scikit-learn's `refit`). What the `eval` pairs measured is kept from before it: the
    calibration of the scores, and how alike strangers look.

    `custom_config`: 'train' (TrainSettings as JSON), 'dataset' (where the images are from), 'kind'
    (of the images), 'source_hash' (so that neither TFX's cache nor a checkpoint survives edited
    code) and, optional, 'crop' (what was cut out of the images), 'backbone' (its fingerprint, for
    the same reason as the hash) and 'checkpoint_dir' (a folder that outlives the process).

    Raises:
      InputError: no or unusable records, or a backbone or a model to start from that is not there
        or does not fit.
      TrainingDiverged: the loss became NaN or infinite.
    """
    config = fn_args.custom_config
    settings = TrainSettings.model_validate_json(config["train"])
    accelerator = choose_accelerator(mixed_precision=settings.mixed_precision, xla=settings.xla)
    preprocessing = settings.recipe(config["kind"]).preprocessing
    train = _read("Training", fn_args.train_files, preprocessing)
    held_out = _read("Held-out", fn_args.eval_files, preprocessing)
    classes = len(train.index.genuine)
    recipe = settings.recipe(config["kind"], classes=classes, gpus=accelerator.gpus)
    both = [*fn_args.train_files, *fn_args.eval_files]
    everything = _read("All", both, preprocessing) if recipe.refit_share else None
    _log.info(expected(classes, config["kind"]))
    if recipe.restyling:
        _log.info(
            "Whole classes are distorted into new ones, mirror images among them (train.restyling)"
        )
    log_dir = Path(fn_args.model_run_dir)
    log_dir.mkdir(parents=True, exist_ok=True)
    (log_dir / CONTACT_SHEET).write_bytes(contact_sheet(train.samples, preprocessing))
    base_model = fn_args.base_model if settings.warm_start else None
    fits = fit_stages(
        recipe,
        train,
        held_out,
        everything,
        accelerator=accelerator,
        initial_weights=initial_weights(settings, config["kind"], base_model),
        checkpoint_dir=config.get("checkpoint_dir") or None,
        checkpoint_every=settings.checkpoint_every,
        log_dir=log_dir,
        code_version=f"{config.get('source_hash')} {config.get('backbone', '')}".rstrip(),
    )
    facts = fits[0].facts
    correction = cross_fitted_correction(
        recipe, train, held_out, everything, accelerator=accelerator
    )
    calibration = calibrate(fits[0].model, held_out, correction)
    for done in fits:
        scale_head(done.model, calibration.platt)
    refit = None
    if len(fits) > 1:
        refit = {"steps": fits[1].facts.steps, "seconds": fits[1].facts.seconds}
    trials = f"{facts.validation_protocol}_{facts.validation_way}way"
    with step("Exporting the model"):
        export_model(
            fits[-1].model,
            Path(fn_args.serving_model_dir),
            preprocessing=preprocessing,
            card={
                "dataset": config.get("dataset"),
                "kind": config["kind"],
                "max_side": form_of(config["kind"], config.get("max_side")).max_side,
                "crop": config.get("crop"),
                "source_hash": config.get("source_hash"),
                "recipe": recipe.model_dump(mode="json"),
                "backbone": backbone_facts(recipe),
                "data": {"train": _summary(train), "eval": _summary(held_out)},
                "metrics": {
                    f"eval_{trials}_accuracy": facts.best_validation_accuracy,
                    "eval_verification_accuracy": calibration.accuracy,
                },
                "calibration": calibration._asdict(),
                "training": {
                    "steps": facts.steps,
                    "best_step": facts.best_step,
                    "refit": refit,
                    "device": facts.device,
                    "warm_start_from": base_model,
                },
            },
            warmup_images=held_out.samples,
            # Of the model before a refit: to one after it, held-out classes are no strangers
            # any more.
            impostors=impostors(fits[0].model, held_out),
            trained_on=seen([train, held_out], *_origins(recipe, base_model)),
        )
    strangers = held_out.take(projected(held_out))
    # As of the impostors: by the model to which they are strangers.
    vectors = embed_all(embedding_function(fits[0].model), strangers.images)
    write_projector(log_dir, strangers, vectors)
    told = [*remarks(facts.history, way=facts.validation_way, classes=facts.validation_classes)]
    written = {
        **asdict(facts),
        "calibration": calibration._asdict(),
        "refit": refit,
        "remarks": told,
    }
    (log_dir / TRAINING_FACTS).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    for done in fits:
        done.checkpoint.remove()
    best = ""
    if facts.best_validation_accuracy:
        accuracy = validated(
            facts.validation_way, facts.validation_classes, facts.best_validation_accuracy
        )
        best = f", best validation at step {facts.best_step}: {accuracy}"
    _log.info(f"Trained {facts.steps} steps in {facts.seconds:.0f} s{best}.")
    for remark in told:
        _log.warning("%s.", remark)


def initial_weights(
    settings: TrainSettings, kind: Kind, base_model: str | None
) -> list[npt.NDArray[np.float32]] | None:
    """Weights to start from, in the order of `model.get_weights()`; None: start at random.

    Args:
      settings: `warm_start` says whether to look at all.
      kind: of the images.
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
    wanted = [tuple(weight.shape) for weight in build_model(settings.recipe(kind)).weights]
    if [weight.shape for weight in weights] != wanted:
        raise InputError(
            f"train.warm_start: the model in {path} has another architecture than "
            f"train.preset '{settings.preset}' and its overrides ask for; set train.warm_start to "
            "false, or the settings back to those of that model"
        )
    _log.info(f"Warm start from {path.parents[1]}.")
    return weights


def impostors(model: keras.Model, held_out: PairData) -> tuple[ImpostorPairs, ...]:
    """How alike different held-out classes look to the calibrated `model`: a gallery's thresholds
    rest on it until it holds enough identities of its own. Forgers are none of them."""
    head = model.get_layer(HEAD)
    genuine = np.flatnonzero(~held_out.index.class_forged[held_out.index.row_class])
    index = held_out.index.take(genuine)
    vectors = embed_all(embedding_function(model), held_out.images[genuine])
    return held_out_pairs(vectors, index.row_class, index.row_group, bias=float(head.b0))


def seen(data: Sequence[PairData], *origins: Path) -> Digests:
    """Digests of all images that shaped the weights, those of the models they began with too."""
    before = [known.digests for known in map(read_trained_on, origins) if known is not None]
    return np.concatenate([*(one.digests for one in data), *before])


def _origins(recipe: Recipe, base_model: str | None) -> list[Path]:
    """Folders of the exported models that the weights come from."""
    backbone = None if recipe.backbone is None else exported_folder(recipe.backbone)
    return [Path(folder) for folder in (base_model, backbone) if folder is not None]


def backbone_facts(recipe: Recipe) -> dict[str, str] | None:
    """What the model card says of a backbone."""
    name = recipe.backbone
    if name is None:
        return None
    facts = {"name": name, "trainable": recipe.backbone_trainable}
    if is_path(name):
        return facts | {"sha256": fingerprint(name)}
    return facts | {"weights": "imagenet", "licence": APPLICATIONS[name].licence}


def _read(name: str, patterns: list[str], preprocessing: Preprocessing) -> PairData:
    with step(f"Reading pairs ({name.lower()} data)"):
        data = read_pair_data(patterns, preprocessing)
    _log.info(
        f"{name} data: {len(data.labels)} pairs of {len(data.index)} images, "
        f"{len(data.index.classes)} classes, {len(data.index.groups)} groups"
    )
    return data


def _summary(data: PairData) -> dict[str, int | str]:
    return {
        "pairs": len(data.labels),
        "images": len(data.index),
        "classes": len(data.index.classes),
        "groups": len(data.index.groups),
        "fingerprint": data.fingerprint,
    }
