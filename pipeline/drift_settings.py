"""When a span counts as different from those before it, and what then happens."""

from typing import Literal

from pydantic import Field

from data_ingest.settings import Settings


class DriftSettings(Settings):
    """Limits that were chosen on Omniglot's background alphabets; see docs/retraining.md."""

    action: Literal["warn", "block"] = Field(
        "warn",
        description="warn: say so and go on; block: no training uses a span that drifted until "
        "`oneshot spans readmit`",
    )
    reference_spans: int = Field(
        7, ge=1, le=10_000, description="spans before it that a span is compared with"
    )
    max_images: int = Field(
        5_000, ge=100, le=10_000_000, description="images that are measured on either side"
    )
    divergence: float = Field(
        0.15,
        gt=0,
        le=1,
        description="Jensen-Shannon divergence of a figure (width, ink, ...) that is tolerated",
    )
    divergence_factor: float = Field(
        2.0,
        ge=0,
        le=100,
        description="or so many times what groups of the reference differ among themselves",
    )
    unexpected_share: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of images stored or inked unlike any before that is tolerated",
    )
    label_shift: float = Field(
        0.2,
        gt=0,
        le=1,
        description="change of a known group's share of the images that is tolerated",
    )
    accuracy_drop: float = Field(
        0.1,
        gt=0,
        le=1,
        description="drop in one-shot accuracy of the served model that is tolerated",
    )
    trials: int = Field(
        400, ge=20, le=1_000_000, description="one-shot trials on either side; 20-way, or fewer"
    )
