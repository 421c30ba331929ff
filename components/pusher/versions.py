"""Puts a model into TF Serving's base path as a numbered version: whole, or not at all."""

import errno
import filecmp
import logging
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from data_ingest.durable import (
    TEMPORARY_PREFIX,
    copy_durably,
    process_started,
    rename_durably,
    temporary_name,
)
from serving.saved_model.versions import ROLLED_BACK_PREFIX, is_complete, numbered

_log = logging.getLogger(__name__)


def push_version(source: Path, base: Path, *, now: Callable[[], float] = time.time) -> Path:
    """Copies a SavedModel with everything beside it to `base/<version>`.

    The version is the time in seconds, or one more than the newest version if that is not older;
    the number of a version that was rolled back is not used again.
    The copy is made, and brought to the disk, under a name that is no number, which TF Serving
    does not look at, and then renamed: a server sees the whole version or none. Where another
    push was quicker with the same number, the next one is taken. A push that dies leaves only its
    temporary folder, which a later push removes.

    Args:
      source: a SavedModel folder.
      base: the model base path; made if missing.
      now: the clock, seconds since 1970.

    Raises:
      FileNotFoundError: `source` holds no `saved_model.pb`.
      OSError: the copy failed, for instance for want of space; nothing of it is left.
    """
    if not is_complete(source):
        raise FileNotFoundError(errno.ENOENT, "there is no SavedModel", str(source))
    base.mkdir(parents=True, exist_ok=True)
    remove_stale(base)
    temporary = base / temporary_name()
    try:
        copy_durably(source, temporary)
        while True:
            target = base / str(next_version((entry.name for entry in base.iterdir()), now))
            try:
                rename_durably(temporary, target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                continue
            return target
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def withdraw_version(base: Path, version: int) -> None:
    """Takes a version out of service: its folder gets a name that no server looks at.

    In one step; without effect where that has been done already.
    """
    folder = base / str(version)
    if folder.is_dir():
        rename_durably(folder, base / f"{ROLLED_BACK_PREFIX}{version}")


def remove_version(base: Path, version: int) -> None:
    """Deletes a version; a server sees the whole of it or none."""
    doomed = (base / str(version)).rename(base / temporary_name())
    shutil.rmtree(doomed)


def has_same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same content."""
    files, others = (
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (one, other)
    )
    return files == others and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in files
    )


def remove_stale(base: Path) -> None:
    """Removes temporary folders of pushes from this host whose process is gone.

    Those of other hosts, which may share the file system, cannot be told dead and stay.
    """
    ours = f"{TEMPORARY_PREFIX}{socket.gethostname()}-"
    for entry in base.iterdir():
        if not entry.name.startswith(ours):
            continue
        pid, started, _ = entry.name.removeprefix(ours).split("-")
        if process_started(int(pid)) != started:
            _log.warning("Removing what an interrupted push left: %s", entry)
            shutil.rmtree(entry, ignore_errors=True)


def next_version(names: Iterable[str], now: Callable[[], float]) -> int:
    """The time in seconds, or a number above all that are or were used in a base path."""
    names = list(names)
    taken = [*numbered(names), *numbered(names, prefix=ROLLED_BACK_PREFIX)]
    return max([int(now()), *(number + 1 for number in taken)])
