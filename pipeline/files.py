"""Files that appear whole or not at all."""

import os
from pathlib import Path


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
