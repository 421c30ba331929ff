"""Settings of `oneshot retrain`."""

from typing import Literal

from pydantic import Field

from data_ingest.settings import Settings


class RetrainSettings(Settings):
    """What is trained on when spans arrive, and how a failure is met."""

    window: int = Field(
        default=12, ge=0, le=100_000, description="newest spans to train on; 0: all of them"
    )
    trigger: Literal["every_span", "drift"] = Field(
        default="every_span",
        description="every_span, or drift: only spans in which drift was found",
    )
    label: Literal["stable", "canary"] | None = Field(
        default="stable",
        description="what a blessed model is promoted to: stable, canary, or null: nothing",
    )
    attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="how often a retraining that fails is tried; what had finished is not repeated",
    )
    backoff_seconds: float = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="pause before the second attempt, twice as long before each further one",
    )
    lease_seconds: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="how long after its last sign of life another host may take over from one "
        "that died",
    )
