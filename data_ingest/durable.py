"""Writes files and copies folders so that each appears whole or not at all, and stays.

What is written here is on the disk, not in a cache, when the call returns.
"""

import errno
import fcntl
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final

from data_ingest.errors import InputError, naming

TEMPORARY_PREFIX: Final = ".tmp-"
_log = logging.getLogger(__name__)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Makes or replaces a file; a text is written as UTF-8. Missing folders are made.

    Raises:
      OSError: it cannot be written; a file that was there before is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream to a file beside `path`, which takes its place when the block ends without error."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with naming(path), staged.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        rename_durably(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def rename_durably(source: Path, target: Path) -> None:
    """Renames a file, or a folder, whose content is on the disk already; replaces a file."""
    source.rename(target)
    synchronize(target.parent)


def copy_durably(source: Path, target: Path) -> None:
    """Copies a folder with everything in it.

    Unlike `shutil.copytree`, which goes on and gathers the errors, it stops at the first.

    Raises:
      OSError: with its `errno`, for instance ENOSPC.
    """
    target.mkdir()
    for entry in sorted(source.iterdir()):
        copy = target / entry.name
        if entry.is_dir():
            copy_durably(entry, copy)
        else:
            shutil.copyfile(entry, copy)
            synchronize(copy)
    synchronize(target)


def synchronize(path: Path) -> None:
    """Waits until the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time holds a lock file; the others wait, and say so.

    Raises:
      InputError: as `take_lock`.
    """
    with path.open("w") as lock:
        try:
            take_lock(lock, path, wait=False)
        except BlockingIOError:
            _log.info("Waiting for another process that uses %s", path.parent)
            take_lock(lock, path, wait=True)
        yield


def take_lock(lock: IO[str], path: Path, *, wait: bool) -> None:
    """Locks a file that was opened under that path, against every process that locks it.

    Raises:
      BlockingIOError: another process has it, and `wait` is False.
      InputError: its file system has no locks.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise InputError(
            f"{path.parent}: the file system that this folder is on has no locks (flock: "
            f"{error.strerror}), without which two commands could write there at once. Local disks "
            "have them, and so have NFS 4, CephFS, and Lustre mounted with -o flock; NFS 3 needs "
            "its lock service, and object stores that are mounted as folders have none"
        ) from error


def temporary_name() -> str:
    """A name that tells who is writing: host, process, and when that process started."""
    pid = os.getpid()
    writer = f"{socket.gethostname()}-{pid}-{process_started(pid)}"
    return f"{TEMPORARY_PREFIX}{writer}-{uuid.uuid4().hex[:8]}"


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
