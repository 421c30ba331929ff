"""Typed settings: the common base, and where the images come from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator

from data_ingest.sources.kinds import MAX_SIDE, Crop, Kind
from data_ingest.sources.writers import checked_pattern


def _named(path: object) -> object:
    # Path("") is the working folder.
    if path == "" or "\0" in str(path):
        raise ValueError("give a path")
    return path


PosixPath = Annotated[Path, BeforeValidator(_named), PlainSerializer(str, return_type=str)]


class Settings(BaseModel):
    """Base of every settings class: immutable, and an unknown key is an error.

    Settings travel through TFX as JSON; `model_validate_json(s.model_dump_json()) == s` holds.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


class DatasetSettings(Settings):
    """Where the images come from, and how many of them may be unusable."""

    source: Literal["auto", "omniglot", "folder", "synthetic"] = Field(
        default="auto",
        description="auto: `data`, OMNIGLOT_DIR, cache, download, else generated glyphs; "
        "omniglot, folder or synthetic: that one or an error",
    )
    background: Literal["full", "small1", "small2", "small1+small2"] = Field(
        default="full",
        description="which of Omniglot's background sets to train on",
    )
    data: PosixPath | None = Field(
        default=None,
        description="folder or zip of images; {SPAN} and {VERSION} in it pick the latest",
    )
    kind: Literal["auto", Kind] = Field(
        default="auto",
        description="drawing, photo or signature: what images are seen, varied and recognised as; "
        "auto: as a sample of them looks, Omniglot's and generated ones as drawings",
    )
    max_side: int | None = Field(
        default=None,
        ge=32,
        le=MAX_SIDE,
        description="largest height or width of stored images, to which larger ones are reduced, "
        "pixels; null: 512 of drawings, 256 of photos, 640 of signatures",
    )
    crop: Crop | None = Field(
        default=None,
        description="face: of each image its one face, aligned by eyes, nose and mouth, before it "
        "is reduced (extra `faces`); null: whole images",
    )
    writer_pattern: str | None = Field(
        default=None,
        description="regular expression, searched for in file names, whose one group is who drew "
        "the image; null: known of Omniglot's and generated ones only",
    )
    cache_dir: PosixPath = Field(
        default=Path("~/.cache/oneshot"),
        description="where downloaded archives are kept",
    )
    download_url: str = Field(
        default="https://github.com/brendenlake/omniglot/raw/master/python/",
        pattern=r"^https?://[^\s@]+$",
        description="where the official archives are, without user or password, as logs show it; "
        "a mirror must hold the same files",
    )
    connect_timeout_seconds: float = Field(
        default=5.0,
        gt=0,
        le=8,
        description="no answer from the download server within this time: there is no network",
    )
    download_timeout_seconds: float = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="a download that stands still this long is tried again",
    )
    synthetic_alphabets: int = Field(
        default=20, ge=2, le=500, description="generated alphabets to train on"
    )
    synthetic_evaluation_alphabets: int = Field(
        default=6, ge=1, le=500, description="generated alphabets to evaluate on"
    )
    synthetic_characters: int = Field(
        default=25, ge=2, le=500, description="characters in a generated alphabet"
    )
    synthetic_seed: int = Field(
        default=1, ge=0, lt=2**31, description="seed of the generated alphabets"
    )
    max_rejected_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of unreadable or absurd images above which the run fails",
    )

    @field_validator("writer_pattern")
    @classmethod
    def _names_a_writer(cls, pattern: str | None) -> str | None:
        return None if pattern is None else checked_pattern(pattern)


Way = Annotated[int, Field(ge=2, le=1000)]
PairCount = Annotated[int, Field(ge=2, le=100_000_000)]
TrialCount = Annotated[int, Field(ge=0, le=1_000_000)]
HeldOutShare = Annotated[float, Field(gt=0, lt=1)]


class PairSettings(Settings):
    """How many pairs and one-shot trials are sampled, and how."""

    seed: int = Field(default=1, ge=0, lt=2**63, description="seed of all sampling")
    train_pairs: PairCount = Field(
        default=30_000,
        description="training pairs, half of them of one class (Koch: 30000, 90000, 150000)",
    )
    eval_pairs: PairCount = Field(
        default=4_000, description="pairs of held-out background alphabets, used to choose"
    )
    verification_pairs: PairCount = Field(
        default=4_000,
        description="pairs of evaluation alphabets, used to report verification accuracy",
    )
    different_within_group: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the different-class pairs that are of one alphabet, or of a "
        "writer's signatures and forgeries of them",
    )
    holdout_share: HeldOutShare = Field(
        default=0.1,
        description="share of the background alphabets (at least one) kept for `eval`; where that "
        "is fewer than ten classes, up to a fifth",
    )
    evaluation_share: HeldOutShare = Field(
        default=0.3, description="share of the groups of one's own images kept for `one_shot`"
    )
    ways: tuple[Way, ...] = Field(
        default=(20, 5),
        min_length=1,
        max_length=10,
        description="candidates in a one-shot trial; a size the data lacks becomes the largest it "
        "has",
    )
    within_trials: TrialCount = Field(
        default=400, description="one-shot trials a way with all candidates of one alphabet"
    )
    between_trials: TrialCount = Field(
        default=400, description="one-shot trials a way with candidates of several alphabets"
    )
