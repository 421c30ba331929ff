"""What tests of the clients share."""

from collections.abc import Iterator

import pytest

from data_ingest.sources import images


@pytest.fixture(scope="module")
def raw_bytes() -> Iterator[None]:
    """Clients send bytes as they are, image or not."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(images, "stored_form", lambda data, _form: data)
        yield
