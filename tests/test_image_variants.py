"""The image variants themselves: what they are said to look like is what Pillow shows."""

import re

import numpy as np
import pytest

from tests.image_variants import Variant, pillow_view, variants

# Pillow compares tRNS with samples that it has stretched or cut to 8 bits already.
OTHERWISE_IN_PILLOW = re.compile(r"png (gray (1|2|4|16)|RGB 16) bits tRNS|png with broken eXIf")


@pytest.mark.parametrize(
    "variant",
    [v for v in variants() if v.looks is not None and not OTHERWISE_IN_PILLOW.match(v.name)],
    ids=lambda variant: variant.name,
)
def test_a_variant_looks_in_pillow_as_it_is_said_to(variant: Variant) -> None:
    shown = pillow_view(variant.data)
    assert shown.shape == variant.looks.shape
    np.testing.assert_allclose(shown, variant.looks, atol=1)


def test_there_are_variants_of_every_kind() -> None:
    assert len(variants()) > 180
    kinds = {variant.kind for variant in variants()}
    assert {"png", "jpeg", "webp", "bmp", "tiff", "gif", "ppm", "pgm"} <= kinds
    assert sum(variant.blank for variant in variants()) > 20
    assert sum(variant.broken for variant in variants()) > 20
