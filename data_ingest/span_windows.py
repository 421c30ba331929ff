"""Folders of links to the zips that one training reads."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from data_ingest.span_sides import SIDES

_KEPT: Final = 20
_LONGEST: Final = 40
_STAGED: Final = ".making"


def link_window(windows: Path, name: str, links: Mapping[str, Path]) -> Path:
    """Makes `windows/<name>` hold these links, relative ones, so that all of it can be moved.

    Only the newest folders stay: links to a year's evaluation images add up, and what went is made
    again when asked for. The caller lets nobody else do the same meanwhile.

    Args:
      links: `background/span-3.zip` and so on, to where it lies.
    """
    folder = windows / name
    wanted = {link: os.path.relpath(to, (folder / link).parent) for link, to in links.items()}
    if _links_in(folder) != wanted:
        staged = windows / f"{_STAGED}-{name}"
        shutil.rmtree(staged, ignore_errors=True)
        for side in SIDES:
            (staged / side).mkdir(parents=True)
        for link, target in wanted.items():
            (staged / link).symlink_to(target)
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    os.utime(folder)
    by_age = sorted(windows.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for old in by_age[:-_KEPT]:
        shutil.rmtree(old)
    return folder


def window_name(first: int, last: int, *, without: Sequence[int]) -> str:
    """`3-7`, or `3-7-without-5`; a name that a file system takes, however many are left out."""
    if not without:
        return f"{first}-{last}"
    left_out = "-".join(map(str, without))
    if len(left_out) > _LONGEST:
        left_out = hashlib.sha256(left_out.encode()).hexdigest()[:16]
    return f"{first}-{last}-without-{left_out}"


def _links_in(folder: Path) -> dict[str, str]:
    return {
        f"{link.parent.name}/{link.name}": str(link.readlink())
        for link in folder.glob("*/*")
        if link.is_symlink()
    }
