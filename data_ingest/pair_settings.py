"""Typed settings of pair and trial sampling."""

from typing import Annotated

from pydantic import Field

from data_ingest.settings import Settings

Way = Annotated[int, Field(ge=2, le=1000)]


class PairSettings(Settings):
    """How many pairs and one-shot trials are sampled, and how."""

    seed: int = Field(default=1, ge=0, lt=2**63, description="seed of all sampling")
    train_pairs: int = Field(
        default=30_000,
        ge=2,
        le=100_000_000,
        description="training pairs, half of them of one class (Koch: 30000, 90000, 150000)",
    )
    eval_pairs: int = Field(
        default=4_000,
        ge=2,
        le=100_000_000,
        description="pairs of held-out background alphabets, used to choose",
    )
    verification_pairs: int = Field(
        default=4_000,
        ge=2,
        le=100_000_000,
        description="pairs of evaluation alphabets, used to report verification accuracy",
    )
    different_within_group: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the different-class pairs whose classes are of one alphabet",
    )
    holdout_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the background alphabets (at least one) kept for `eval`",
    )
    evaluation_share: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="share of the groups of one's own images kept for `one_shot`",
    )
    ways: tuple[Way, ...] = Field(
        default=(20, 5),
        min_length=1,
        max_length=10,
        description="candidates in a one-shot trial; more than the data has become all it has",
    )
    within_trials: int = Field(
        default=400,
        ge=0,
        le=1_000_000,
        description="one-shot trials a way with all candidates of one alphabet",
    )
    between_trials: int = Field(
        default=400,
        ge=0,
        le=1_000_000,
        description="one-shot trials a way with candidates of several alphabets",
    )
