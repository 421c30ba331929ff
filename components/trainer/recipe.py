"""The training recipe: every option, the presets, and the overrides of the `train:` section."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BeforeValidator, Field, create_model, model_validator

from components.trainer.pretrained import APPLICATIONS, SMALLEST_SIDE, is_path
from data_ingest.settings import Settings
from data_ingest.sources.kinds import KINDS, Kind
from serving.saved_model.contract import ColorMode, Contrast, Framing, Polarity, Preprocessing

Preset = Literal["fast", "accurate", "koch2015"]
Trainable = Literal["frozen", "last", "all"]
"""What of a backbone is trained: nothing, its last blocks, or all of it."""


def _on_or_off(value: object) -> object:
    word = str(value).lower()
    return {"true": "on", "yes": "on", "false": "off", "no": "off"}.get(word, word)


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)]
"""YAML 1.1, and people, take `on`, `true` and `yes` for the same."""
Width = Annotated[int, Field(ge=1, le=4096)]

PRESET_ONLY: Final = ("network", "warmup_steps", "validation_trials", "gpu_batch")
"""Fields of a recipe that only a preset sets."""
ALIKE: Final = ("seed", "backbone", "backbone_trainable")
"""Fields of a recipe that no preset changes, so that `train:` shows their defaults."""
BATCH_FIELDS: Final = ("steps", "classes_per_batch", "images_per_class", "learning_rate")
"""With an override of one of these, GPUs get no larger batches."""
REFIT_RATE: Final = 0.5
"""Learning rate of a refit, as a share of the training's."""
KOCH_STAGES: Final = 4
KOCH_SMALLEST: Final = 65
"""Below this its unpadded convolutions leave nothing."""


class Recipe(Settings):
    """Everything that training depends on, with no value left open.

    The defaults are the preset `fast` for drawings; `PRESETS` says what others have instead. This
    is the only place where an option of training is declared: all but `PRESET_ONLY` can be
    overridden in the configuration, see `TrainSettings`.

    One batch of the loss `batch` is `classes_per_batch * images_per_class` images; one of the
    loss `pair` is half as many pairs, so an image budget means the same for both.
    """

    network: Literal["residual", "photo", "koch2015"] = "residual"
    backbone: str | None = Field(
        None,
        description="a network that is there already, in place of the preset's: one of Keras "
        "Applications by name, a .keras file, or the folder of a pushed model",
    )
    backbone_trainable: Trainable = Field(
        "frozen", description="what of it is trained too: frozen, last (its last blocks) or all"
    )
    steps: int = Field(1200, ge=1, le=10_000_000, description="training steps")
    refit_share: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="share of the steps, the last ones, that are on all images, those that were "
        "held out to choose weights and to calibrate too",
    )
    seed: int = Field(1, ge=0, lt=2**31, description="seed of weights, batches and augmentation")
    loss: Literal["batch", "pair"] = Field(
        "batch",
        description="batch: every same-class pair against all others of its batch; "
        "pair: cross-entropy of the sampled pairs",
    )
    image_size: int = Field(
        28, ge=16, le=512, description="height to which images are resized, pixels"
    )
    aspect: float = Field(
        1.0, ge=0.25, le=4, description="width to which they are resized, as a multiple of that"
    )
    color_mode: ColorMode = Field(
        "grayscale",
        description="grayscale: the ink of a drawing; rgb: all of an image, in colour",
    )
    views: bool = Field(
        False,
        description="embed every image in several slightly different views and take the mean: an "
        "image and its mirror image where mirroring is on, else five, and as many times the work "
        "of a request",
    )
    polarity: Polarity = Field(
        "auto",
        description="which is ink in grayscale: auto decides by the brightness of the border",
    )
    framing: Framing = Field(
        "ink",
        description="whole: all of an image in grayscale; ink: a window about the middle of the "
        "drawing; box: the box around the drawing, whatever its size",
    )
    contrast: Contrast = Field(
        "as_is",
        description="as_is: ink in grayscale is as dark as it is; paper: it is measured from the "
        "paper to the darkest strokes, whatever brightness these have",
    )
    widths: tuple[Width, ...] = Field(
        (32, 64, 128, 192),
        min_length=2,
        max_length=6,
        description="channels of each stage of the network, the stem's first",
    )
    embedding_size: int = Field(128, ge=2, le=16_384, description="floats in an embedding")
    classes_per_batch: int = Field(24, ge=2, le=4096, description="classes in a batch")
    images_per_class: int = Field(4, ge=2, le=256, description="images of each class in a batch")
    same_group_share: float = Field(
        0.5, ge=0, le=1, description="share of a batch's classes from a single alphabet"
    )
    quarter_turns: bool = Field(
        True, description="classes turned by 90, 180 and 270 degrees count as new classes"
    )
    mirroring: bool = Field(
        False,
        description="an image and its mirror image are of one class: for faces, not for arrows",
    )
    restyling: float = Field(
        0.0,
        ge=0,
        le=2,
        description="strength of distortions that make new classes of whole classes",
    )
    generated_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the batches that are of generated alphabets: for drawings, of which "
        "there are few classes",
    )
    augmentation: float = Field(
        1.0, ge=0, le=3, description="strength of random distortions; 0 is none"
    )
    learning_rate: float = Field(
        6e-3, gt=0, le=1, description="peak learning rate of Muon; koch2015: first one of SGD"
    )
    warmup_steps: int = 50
    weight_decay: float = Field(4e-3, ge=0, le=1, description="weight decay; koch2015: L2")
    ema: float = Field(
        0.995, ge=0, lt=1, description="momentum of the averaged weights; 0 is no averaging"
    )
    validate_every: int = Field(
        150,
        ge=0,
        le=10_000_000,
        description="steps between one-shot validations; 0 is one a pass over the pairs",
    )
    validation_trials: int = 1200
    patience: int = Field(
        0,
        ge=0,
        le=100_000,
        description="stop after so many validations without a better one; 0 is never",
    )
    calibration_folds: int = Field(
        0,
        ge=0,
        le=20,
        description="short trainings besides, each without a part of the alphabets, so that scores "
        "are probabilities for alphabets unlike the held-out ones; 0 is none, else 2 or more",
    )
    gpu_batch: int = 4
    """How many times larger a batch is on GPUs."""

    @model_validator(mode="after")
    def _fields_go_together(self) -> "Recipe":
        koch, stages = self.network == "koch2015", len(self.widths)
        smallest = KOCH_SMALLEST if koch else 2**stages
        if self.framing == "ink" and self.color_mode == "grayscale" and self.aspect != 1:
            raise ValueError(
                f"framing: must be whole or box where aspect is {self.aspect}, not ink"
            )
        if self.generated_share and self.color_mode != "grayscale":
            raise ValueError("generated_share: must be 0 where color_mode is rgb")
        if koch and self.color_mode != "grayscale":
            raise ValueError("color_mode: preset koch2015 sees grayscale alone")
        if koch and stages != KOCH_STAGES:
            raise ValueError(f"widths: preset koch2015 has {KOCH_STAGES} stages, not {stages}")
        if self.generated_share and self.loss != "batch":
            raise ValueError("generated_share: must be 0 unless loss is batch")
        if self.calibration_folds == 1:
            raise ValueError("calibration_folds: must be 0, or 2 or more: one fold leaves no group")
        if self.backbone is not None:
            self._check_backbone(self.backbone)
        elif self.image_size < smallest:
            raise ValueError(
                f"image_size: {stages} stages need {smallest} pixels or more, not {self.image_size}"
            )
        return self

    def _check_backbone(self, backbone: str) -> None:
        if self.network == "koch2015":
            raise ValueError("backbone: must be null with preset koch2015, a network of its own")
        if is_path(backbone):
            return
        if backbone not in APPLICATIONS:
            raise ValueError(
                f"backbone: there is no {backbone}, but {', '.join(APPLICATIONS)}, and paths of "
                "Keras files (NAME.keras) and of folders of pushed models (with a /)"
            )
        if min(self.preprocessing.shape[:2]) < SMALLEST_SIDE:
            raise ValueError(
                f"image_size: {backbone} needs {SMALLEST_SIDE} pixels or more on each side"
            )

    @property
    def images_per_batch(self) -> int:
        return self.classes_per_batch * self.images_per_class

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(
            self.image_size,
            self.polarity,
            self.framing,
            aspect=self.aspect,
            color_mode=self.color_mode,
            contrast=self.contrast,
        )

    def stages(self) -> tuple["Recipe", "Recipe | None"]:
        """Two recipes: of the training that held-out images judge, and of that on all images.

        The second starts from where the first ends, at `REFIT_RATE` of its learning rate, decays
        like it and validates nothing; None where all steps are of the first.
        """
        last = min(round(self.refit_share * self.steps), self.steps - 1)
        if not last:
            return self, None
        second = self.lasting(last, learning_rate=REFIT_RATE * self.learning_rate)
        return self.lasting(self.steps - last), second

    def lasting(self, steps: int, **changes: float) -> "Recipe":
        """The recipe with that many steps, at most a fifth of them warm-up, and with `changes`."""
        warmup_steps = min(self.warmup_steps, steps // 5)
        return self.model_copy(update={"steps": steps, "warmup_steps": warmup_steps, **changes})

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


_LONGER: Final = {
    "embedding_size": 256,
    "views": True,
    "steps": 12_000,
    "refit_share": 0.3,
    "restyling": 1.0,
    "ema": 0.998,
    "validate_every": 500,
    "validation_trials": 2000,
    "calibration_folds": 3,
}
_KOCH2015: Final = {
    "network": "koch2015",
    "widths": (64, 128, 128, 256),
    "embedding_size": 4096,
    "image_size": 105,
    "framing": "whole",
    "loss": "pair",
    "steps": 47_000,
    "classes_per_batch": 64,
    "quarter_turns": False,
    # At 0.1 the features saturate within two epochs, and nothing is learnt any more.
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "weight_decay": 1e-4,
    "ema": 0.0,
    "validate_every": 0,
    "validation_trials": 320,
    "patience": 20,
    "gpu_batch": 1,
}
_PHOTO: Final = {
    "network": "photo",
    "image_size": 96,
    "color_mode": "rgb",
    # What a photograph in grayscale is seen as.
    "polarity": "light_on_dark",
    "framing": "whole",
    "widths": (32, 64, 128, 192, 256),
    "embedding_size": 256,
    "quarter_turns": False,
    "mirroring": True,
    "views": True,
    "steps": 1400,
    "ema": 0.99,
}
_SIGNATURE: Final = {
    "network": "photo",
    "image_size": 96,
    "aspect": 1.42,
    "framing": "box",
    "contrast": "paper",
    "widths": (32, 64, 128, 192, 256),
    "embedding_size": 256,
    "quarter_turns": False,
    "restyling": 2.0,
    "augmentation": 0.65,
    "steps": 600,
    "ema": 0.98,
}
PRESETS: Final[Mapping[Kind, Mapping[Preset, Mapping[str, Any]]]] = {
    "drawing": {"fast": {}, "accurate": _LONGER, "koch2015": _KOCH2015},
    "photo": {
        "fast": _PHOTO,
        "accurate": {
            **_PHOTO,
            "steps": 6000,
            "restyling": 1.0,
            "ema": 0.998,
            "refit_share": 0.3,
        },
        "koch2015": {**_KOCH2015, "polarity": "light_on_dark"},
    },
    "signature": {
        "fast": _SIGNATURE,
        "accurate": {**_SIGNATURE, "steps": 2000, "views": True, "refit_share": 0.3},
        "koch2015": {**_KOCH2015, "contrast": "paper"},
    },
}
"""What the presets have instead of the defaults of `Recipe`, by kind of images."""
FEW_PHOTOGRAPHED: Final = 100
"""Classes below which photographs are trained on by `_OF_FEW`."""
_OF_FEW: Final = {"restyling": 2.0, "mirroring": False}
"""Distortions of whole classes, mirror images among them, make classes of what is not enough."""

S = TypeVar("S", bound=Settings)


def _with_overrides(settings: type[S]) -> type[S]:
    """`settings` with the options of a recipe as further fields.

    Types, bounds and descriptions are those of `Recipe`; null, the default of all but `ALIKE`, is
    the preset's value.
    """
    fields: dict[str, Any] = {"__module__": settings.__module__, "__doc__": settings.__doc__}
    for name, field in Recipe.model_fields.items():
        kind: Any = field.annotation
        if name in ALIKE:
            fields[name] = (kind, field)
        elif name not in PRESET_ONLY:
            kind |= None
            for bound in field.metadata:
                kind = Annotated[kind, bound]
            fields[name] = (kind, Field(None, description=field.description))
    made: type[S] = create_model(settings.__name__, __base__=settings, **fields)
    return made


@_with_overrides
class TrainSettings(Settings):
    """How the model is trained: a preset, overrides of its recipe, and how to run it."""

    preset: Preset = Field(
        "fast",
        description="fast: minutes on two CPU cores; accurate: larger and longer; "
        "koch2015: the paper's network, for a GPU",
    )
    checkpoint_every: int = Field(100, ge=1, le=10_000_000, description="steps between checkpoints")
    warm_start: bool = Field(
        False, description="start from the weights of the latest blessed model"
    )
    mixed_precision: Switch = Field(
        "auto", description="bfloat16 arithmetic; auto: where GPUs, or else CPUs, are fast at it"
    )
    xla: Switch = Field("auto", description="XLA compilation; auto: on a GPU")

    @model_validator(mode="after")
    def _recipe_is_possible(self) -> "TrainSettings":
        # Of what kind the images are shows when they are looked at.
        problems = []
        for kind in KINDS:
            try:
                self.recipe(kind)
            except ValueError as error:
                problems.append(error)
            else:
                return self
        raise problems[0]

    def recipe(
        self, kind: Kind = "drawing", *, classes: int | None = None, gpus: int = 0
    ) -> Recipe:
        """The preset's values for images of a kind, with this object's overrides.

        Args:
          kind: of the images.
          classes: how many there are to train on; None: not few. How images are seen does not
            depend on it.
          gpus: how many there are to train on. They get the preset's larger batches, unless the
            length of training, a batch or its learning rate is set: those then hold as they are.
        """
        own = {name: getattr(self, name, None) for name in Recipe.model_fields}
        own = {name: value for name, value in own.items() if value is not None}
        given = dict(PRESETS[kind][self.preset])
        few = classes is not None and classes < FEW_PHOTOGRAPHED
        frozen = "backbone" in own and own["backbone_trainable"] == "frozen"
        if few and given.get("network") == "photo" and kind == "photo" and not frozen:
            given |= _OF_FEW
        if kind == "photo" and not own.get("mirroring", given.get("mirroring")):
            # They are the image and its mirror image.
            given["views"] = False
        recipe = Recipe(**{**given, **own})
        recipe = recipe.lasting(recipe.steps)
        return recipe if own.keys() & set(BATCH_FIELDS) else recipe.on_gpus(gpus)
