"""Settings that hold for all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

OMNIGLOT = pytest.StashKey[str | None]()


def pytest_configure(config: pytest.Config) -> None:
    # Before any test module imports TensorFlow. Inherited by the processes that tests start.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # A run must not depend on data that happens to lie on the machine of whoever tests.
    config.stash[OMNIGLOT] = os.environ.pop("OMNIGLOT_DIR", None)
    # How long an example takes says more about the machine's other work than about the code.
    settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")


@pytest.fixture(scope="session")
def omniglot(pytestconfig: pytest.Config) -> Path | None:
    """Where Omniglot is, for tests that take generated glyphs where it is not."""
    folder = pytestconfig.stash[OMNIGLOT]
    return Path(folder) if folder else None
