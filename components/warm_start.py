"""Weights of an earlier model to begin with."""

import logging
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from components.model import build_model
from components.train_settings import TrainSettings
from data_ingest.errors import InputError
from serving.export import EXTRA, KERAS_MODEL

logger = logging.getLogger(__name__)


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
        logger.info("Warm start: no blessed model yet, so training starts from random weights.")
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
    logger.info(f"Warm start from {path.parents[1]}.")
    return weights
