"""Kinds of images."""

from typing import Final, Literal, get_args

Kind = Literal["drawing", "photo", "signature"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
