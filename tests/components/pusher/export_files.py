"""The files of an export that stands for a real one."""

from pathlib import Path

FILES = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"w" * 10_000,
    "assets.extra/model.keras": b"keras",
    "assets.extra/tf_serving_warmup_requests": b"warm-up",
    "assets.extra/model_card.json": b"{}",
}


def is_whole(version: Path) -> bool:
    return {
        str(path.relative_to(version)): path.read_bytes()
        for path in version.rglob("*")
        if path.is_file()
    } == FILES
