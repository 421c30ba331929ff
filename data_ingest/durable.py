"""Files that appear whole or not at all."""

import os
import shutil
import socket
import uuid
from pathlib import Path

from data_ingest.errors import naming

TEMPORARY_PREFIX = ".tmp-"


def write_text_atomically(path: Path, text: str) -> None:
    """`write_bytes_atomically` of a text, as UTF-8."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and renames it into place; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staged.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def temporary_name() -> str:
    """A name that tells who is writing: host, process, and when that process started."""
    pid = os.getpid()
    writer = f"{socket.gethostname()}-{pid}-{process_started(pid)}"
    return f"{TEMPORARY_PREFIX}{writer}-{uuid.uuid4().hex[:8]}"


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


def write_durably(path: Path, text: str) -> None:
    """Writes a new file that is on the disk, not in a cache, when this returns."""
    with naming(path), path.open("x", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a server may read it at any moment."""
    unfinished = path.with_name(f".{path.name}.new")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
