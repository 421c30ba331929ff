"""Untrained networks, pushed, and the browser."""

from pathlib import Path

import pytest

from tests.browser import browser, open_page
from tests.serving.demo.untrained import NEW, OLD, push

__all__ = ["browser", "open_page"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a model where `oneshot run` pushes it."""
    base = tmp_path_factory.mktemp("output") / "serving_model" / "siamese"
    for seed, version in enumerate((OLD, NEW)):
        push(base / version, seed=seed)
    return base
