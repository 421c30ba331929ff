"""Puts a model into TF Serving's base path as a numbered version: whole, or not at all."""

import errno
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"
ROLLED_BACK_PREFIX = "rolled-back-"


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
    if not (source / "saved_model.pb").is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no SavedModel", str(source))
    base.mkdir(parents=True, exist_ok=True)
    remove_stale(base)
    temporary = base / temporary_name()
    try:
        copy_durably(source, temporary)
        while True:
            taken = [*versions(base), *rolled_back_versions(base)]
            version = max([int(now()), *(number + 1 for number in taken)])
            target = base / str(version)
            try:
                temporary.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                continue
            synchronize_folder(base)
            return target
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def versions(base: Path) -> list[int]:
    """Numbers of the versions in a base path, ascending; empty if it does not exist."""
    if not base.is_dir():
        return []
    return sorted(
        int(entry.name) for entry in base.iterdir() if entry.name.isascii() and entry.name.isdigit()
    )


def rolled_back_versions(base: Path) -> dict[int, Path]:
    """Folders of the versions that `withdraw_version` took out of service, by number."""
    found = {}
    for entry in base.glob(f"{ROLLED_BACK_PREFIX}*"):
        number = entry.name.removeprefix(ROLLED_BACK_PREFIX)
        if number.isascii() and number.isdigit():
            found[int(number)] = entry
    return found


def withdraw_version(base: Path, version: int) -> None:
    """Takes a version out of service: its folder gets a name that no server looks at.

    In one step; without effect where that has been done already.
    """
    folder = base / str(version)
    if folder.is_dir():
        folder.rename(base / f"{ROLLED_BACK_PREFIX}{version}")
        synchronize_folder(base)


def remove_version(base: Path, version: int) -> None:
    """Deletes a version; a server sees the whole of it or none."""
    doomed = (base / str(version)).rename(base / temporary_name())
    shutil.rmtree(doomed)


def has_same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same content."""
    files = _sizes(one)
    return files == _sizes(other) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files
    )


def temporary_name() -> str:
    """A name that tells who is writing: host, process, and when that process started."""
    pid = os.getpid()
    writer = f"{socket.gethostname()}-{pid}-{process_started(pid)}"
    return f"{TEMPORARY_PREFIX}{writer}-{uuid.uuid4().hex[:8]}"


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
            logger.warning("Removing what an interrupted push left: %s", entry)
            shutil.rmtree(entry, ignore_errors=True)


def copy_durably(source: Path, target: Path) -> None:
    """Copies a tree and waits until files and folders are on the disk.

    Unlike `shutil.copytree`, which goes on and gathers the errors, it stops at the first.

    Raises:
      OSError: with its `errno`, for instance ENOSPC.
    """
    target.mkdir()
    for entry in sorted(source.iterdir()):
        copy = target / entry.name
        if entry.is_dir():
            copy_durably(entry, copy)
            continue
        shutil.copyfile(entry, copy)
        descriptor = os.open(copy, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    synchronize_folder(target)


def synchronize_folder(folder: Path) -> None:
    """Waits until a folder's own entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


def process_started(pid: int) -> str:
    """When a process started, in clock ticks since boot; "0" if it does not run.

    With it a process that was given a dead one's number is told from it. One that has ended and
    whose parent has not asked yet (a zombie) does not run.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "0"
    # The second field is the program's name in brackets and may hold anything; starttime is
    # field 22 (proc(5)), the 20th behind it.
    fields = stat.rpartition(")")[2].split()
    return "0" if fields[0] in "ZX" else fields[19]
