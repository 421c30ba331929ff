"""Exporting the model and serving it."""

from typing import Literal

Polarity = Literal["auto", "dark_on_light", "light_on_dark"]
"""Which of an image is ink; `auto` decides by the brightness of its border."""

Framing = Literal["whole", "ink"]
"""What of an image is looked at: all of it, or a window about the middle of its ink."""
