"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` (UTF-8) beside `path` and renames it into place; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staged.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
