"""Typed settings of training, and the recipe that a preset and its overrides amount to."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from data_ingest.settings import Settings
from serving.saved_model.contract import Framing, Polarity, Preprocessing

Preset = Literal["fast", "accurate", "koch2015"]
Switch = Literal["auto", "on", "off"]
Width = Annotated[int, Field(ge=1, le=4096)]


BATCH_FIELDS: Final = ("steps", "classes_per_batch", "images_per_class", "learning_rate")
"""Who sets one of these has the size of a batch in mind."""
REFIT_RATE: Final = 0.5
"""Learning rate of a refit, as a share of the training's."""
KOCH_STAGES: Final = 4
KOCH_SMALLEST: Final = 65
"""Below this its unpadded convolutions leave nothing."""


class Recipe(Settings):
    """Everything that training depends on, with no value left open.

    One batch of the loss `batch` is `classes_per_batch * images_per_class` images; one of the
    loss `pair` is half as many pairs, so an image budget means the same for both.
    """

    network: Literal["residual", "koch2015"]
    widths: tuple[int, ...]
    embedding_size: int
    image_size: int
    views: bool
    polarity: Polarity
    framing: Framing
    loss: Literal["batch", "pair"]
    steps: int
    refit_share: float
    """Of the steps: the last ones, on all images."""
    seed: int
    classes_per_batch: int
    images_per_class: int
    same_group_share: float
    quarter_turns: bool
    restyling: float
    generated_share: float
    augmentation: float
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    ema: float
    validate_every: int
    """Steps; 0 is once a pass over the pairs."""
    validation_trials: int
    patience: int
    calibration_folds: int

    gpu_batch: int
    """How many times larger a batch is on GPUs."""

    @property
    def images_per_batch(self) -> int:
        return self.classes_per_batch * self.images_per_class

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.image_size, self.polarity, self.framing)

    def stages(self) -> tuple["Recipe", "Recipe | None"]:
        """Two recipes: of the training that held-out images judge, and of that on all images.

        The second starts from where the first ends, at `REFIT_RATE` of its learning rate, decays
        like it and validates nothing; None where all steps are of the first.
        """
        last = min(round(self.refit_share * self.steps), self.steps - 1)
        if not last:
            return self, None

        def stage(steps: int, learning_rate: float) -> Recipe:
            return self.model_copy(
                update={
                    "steps": steps,
                    "warmup_steps": min(self.warmup_steps, steps // 5),
                    "learning_rate": learning_rate,
                }
            )

        return (
            stage(self.steps - last, self.learning_rate),
            stage(last, REFIT_RATE * self.learning_rate),
        )

    def on_gpus(self, gpus: int) -> "Recipe":
        """The recipe for that many GPUs, each of which has a batch of its own.

        A step then sees `gpu_batch` times as many images, and there are as many times fewer
        steps. Learning rate and weight decay grow with its square root, as they should for Adam
        (Malladi et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms");
        the averaged weights reach as many images back as before. More GPUs than `gpu_batch` only
        add images.
        """
        own = max(1, self.gpu_batch // max(gpus, 1))
        factor = min(own * gpus, self.gpu_batch)
        if factor <= 1:
            return self
        return self.model_copy(
            update={
                "classes_per_batch": self.classes_per_batch * own,
                "steps": math.ceil(self.steps / factor),
                "warmup_steps": math.ceil(self.warmup_steps / factor),
                "validate_every": math.ceil(self.validate_every / factor),
                "learning_rate": self.learning_rate * math.sqrt(factor),
                "weight_decay": self.weight_decay * math.sqrt(factor),
                "ema": self.ema**factor,
            }
        )


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "fast": MappingProxyType(
            {
                "network": "residual",
                "widths": (32, 64, 128, 192),
                "embedding_size": 128,
                "image_size": 28,
                "framing": "ink",
                "views": False,
                "loss": "batch",
                "steps": 1200,
                "refit_share": 0.0,
                "classes_per_batch": 24,
                "images_per_class": 4,
                "same_group_share": 0.5,
                "quarter_turns": True,
                "restyling": 0.0,
                "generated_share": 0.0,
                "augmentation": 1.0,
                "learning_rate": 6e-3,
                "warmup_steps": 50,
                "weight_decay": 4e-3,
                "ema": 0.995,
                "validate_every": 150,
                "validation_trials": 1200,
                "patience": 0,
                "calibration_folds": 0,
                "gpu_batch": 4,
            }
        ),
        "accurate": MappingProxyType(
            {
                "network": "residual",
                "widths": (32, 64, 128, 192),
                "embedding_size": 256,
                "image_size": 28,
                "framing": "ink",
                "views": True,
                "loss": "batch",
                "steps": 12_000,
                "refit_share": 0.3,
                "classes_per_batch": 24,
                "images_per_class": 4,
                "same_group_share": 0.5,
                "quarter_turns": True,
                "restyling": 1.0,
                "generated_share": 0.0,
                "augmentation": 1.0,
                "learning_rate": 6e-3,
                "warmup_steps": 50,
                "weight_decay": 4e-3,
                "ema": 0.998,
                "validate_every": 500,
                "validation_trials": 2000,
                "patience": 0,
                "calibration_folds": 3,
                "gpu_batch": 4,
            }
        ),
        "koch2015": MappingProxyType(
            {
                "network": "koch2015",
                "widths": (64, 128, 128, 256),
                "embedding_size": 4096,
                "image_size": 105,
                "framing": "whole",
                "views": False,
                "loss": "pair",
                "steps": 47_000,
                "refit_share": 0.0,
                "classes_per_batch": 64,
                "images_per_class": 4,
                "same_group_share": 0.5,
                "quarter_turns": False,
                "restyling": 0.0,
                "generated_share": 0.0,
                "augmentation": 1.0,
                # At 0.1 the features saturate within two epochs, and nothing is learnt any more.
                "learning_rate": 0.01,
                "warmup_steps": 0,
                "weight_decay": 1e-4,
                "ema": 0.0,
                "validate_every": 0,
                "validation_trials": 320,
                "patience": 20,
                "calibration_folds": 0,
                "gpu_batch": 1,
            }
        ),
    }
)


class TrainSettings(Settings):
    """How the model is trained. What is left at null is the preset's."""

    preset: Preset = Field(
        default="fast",
        description="fast: minutes on two CPU cores; accurate: larger and longer; "
        "koch2015: the paper's network, for a GPU",
    )
    steps: int | None = Field(default=None, ge=1, le=10_000_000, description="training steps")
    refit_share: float | None = Field(
        default=None,
        ge=0,
        le=0.9,
        description="share of the steps, the last ones, that are on all images, those that were "
        "held out to choose weights and to calibrate too",
    )
    seed: int = Field(
        default=1,
        ge=0,
        lt=2**31,
        description="seed of weights, batches and augmentation",
    )
    loss: Literal["batch", "pair"] | None = Field(
        default=None,
        description="batch: every same-class pair against all others of its batch; "
        "pair: cross-entropy of the sampled pairs",
    )
    image_size: int | None = Field(
        default=None,
        ge=16,
        le=512,
        description="side to which images are resized, pixels",
    )
    views: bool | None = Field(
        default=None,
        description="embed every image in five slightly different views and take the mean: better, "
        "and five times the work of a request",
    )
    polarity: Polarity = Field(
        default="auto",
        description="which is ink: auto decides by the brightness of the border",
    )
    framing: Framing | None = Field(
        default=None,
        description="whole: all of an image; ink: a window about the middle of the drawing",
    )
    widths: tuple[Width, ...] | None = Field(
        default=None,
        min_length=2,
        max_length=6,
        description="channels of each stage of the network, the stem's first",
    )
    embedding_size: int | None = Field(
        default=None, ge=2, le=16_384, description="floats in an embedding"
    )
    classes_per_batch: int | None = Field(
        default=None, ge=2, le=4096, description="classes in a batch"
    )
    images_per_class: int | None = Field(
        default=None, ge=2, le=256, description="images of each class in a batch"
    )
    same_group_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of a batch's classes from a single alphabet",
    )
    quarter_turns: bool | None = Field(
        default=None,
        description="classes turned by 90, 180 and 270 degrees count as new classes",
    )
    restyling: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="strength of distortions that make new classes of whole classes",
    )
    generated_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the batches that are of generated alphabets: for drawings, of which "
        "there are few classes",
    )
    augmentation: float | None = Field(
        default=None,
        ge=0,
        le=3,
        description="strength of random distortions; 0 is none",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="peak learning rate of Muon; koch2015: first one of SGD",
    )
    weight_decay: float | None = Field(
        default=None, ge=0, le=1, description="weight decay; koch2015: L2"
    )
    ema: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="momentum of the averaged weights; 0 is no averaging",
    )
    validate_every: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="steps between one-shot validations",
    )
    patience: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="stop after so many validations without a better one; 0 is never",
    )
    calibration_folds: int | None = Field(
        default=None,
        ge=0,
        le=20,
        description="short trainings besides, each without a part of the alphabets, so that scores "
        "are probabilities for alphabets unlike the held-out ones; 0 is none, else 2 or more",
    )
    checkpoint_every: int = Field(
        default=100, ge=1, le=10_000_000, description="steps between checkpoints"
    )
    warm_start: bool = Field(
        default=False, description="start from the weights of the latest blessed model"
    )
    mixed_precision: Switch = Field(
        default="auto",
        description="bfloat16 arithmetic; auto: where GPUs, or else CPUs, are fast at it",
    )
    xla: Switch = Field(default="auto", description="XLA compilation; auto: on a GPU")

    @model_validator(mode="after")
    def _network_fits_image(self) -> "TrainSettings":
        recipe = self.recipe()
        stages = len(recipe.widths)
        if recipe.network == "koch2015" and stages != KOCH_STAGES:
            raise ValueError(f"widths: preset koch2015 has {KOCH_STAGES} stages, not {stages}")
        if recipe.generated_share and recipe.loss != "batch":
            raise ValueError("generated_share: must be 0 unless loss is batch")
        if recipe.calibration_folds == 1:
            raise ValueError("calibration_folds: must be 0, or 2 or more: one fold leaves no group")
        smallest = KOCH_SMALLEST if recipe.network == "koch2015" else 2**stages
        if recipe.image_size < smallest:
            raise ValueError(
                f"image_size: {stages} stages need {smallest} pixels or more, "
                f"not {recipe.image_size}"
            )
        return self

    def recipe(self, *, gpus: int = 0) -> Recipe:
        """The preset's values with this object's overrides.

        Args:
          gpus: how many there are to train on. They get the preset's larger batches, unless the
            length of training, a batch or its learning rate is set: those then hold as they are.
        """
        values = dict(PRESETS[self.preset])
        for name in Recipe.model_fields:
            own = getattr(self, name, None)
            if own is not None:
                values[name] = own
        values["warmup_steps"] = min(values["warmup_steps"], values["steps"] // 5)
        recipe = Recipe(**values)
        if any(getattr(self, name) is not None for name in BATCH_FIELDS):
            return recipe
        return recipe.on_gpus(gpus)
