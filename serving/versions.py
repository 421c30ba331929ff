"""Which versions of a model there are, and which of them should be served."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LARGEST: Final = 2**63 - 1


@dataclass(frozen=True)
class Latest:
    """The highest `count` versions (TF Serving's default, with 1)."""

    count: int = 1

    def choose(self, versions: Collection[int]) -> set[int]:
        """Those of `versions` that should be served."""
        return set(sorted(versions)[-self.count :])


@dataclass(frozen=True)
class All:
    """Every version there is."""

    def choose(self, versions: Collection[int]) -> set[int]:
        """All of `versions`."""
        return set(versions)


@dataclass(frozen=True)
class Specific:
    """These versions, as far as they are there."""

    wanted: frozenset[int]

    def choose(self, versions: Collection[int]) -> set[int]:
        """Those of `versions` that should be served."""
        return set(versions) & self.wanted


Policy = Latest | All | Specific


def version_folders(base_path: Path) -> dict[int, Path]:
    """Folders with numeric names, by version; anything else is passed over.

    Raises:
      OSError: `base_path` is missing or unreadable.
    """
    found: dict[int, Path] = {}
    for entry in sorted(base_path.iterdir()):
        if not (entry.name.isascii() and entry.name.isdecimal() and entry.is_dir()):
            continue
        if (version := int(entry.name)) <= _LARGEST:
            found.setdefault(version, entry)
    return found


Fingerprint = tuple[tuple[str, int, int], ...]


def fingerprint(folder: Path) -> Fingerprint:
    """Path, size and time of each file: changes while a version is still being copied.

    An unreadable or vanished folder has the fingerprint ().
    """
    try:
        return tuple(
            sorted(
                (str(path.relative_to(folder)), (stat := path.stat()).st_size, stat.st_mtime_ns)
                for path in folder.rglob("*")
                if path.is_file()
            )
        )
    except OSError:
        return ()
