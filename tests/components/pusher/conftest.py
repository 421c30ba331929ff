"""An export to push, and a disk too small for it."""

import errno
import os
from pathlib import Path

import pytest

from components.pusher import versions as pusher_versions
from tests.components.pusher.export_files import FILES


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the files of an export."""
    root = tmp_path / "model" / "Format-Serving"
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which no more than two files of a push fit."""
    copied: list[Path] = []

    def copyfile(source: Path, target: Path) -> None:
        copied.append(target)
        target.touch()
        if len(copied) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(pusher_versions.shutil, "copyfile", copyfile)
