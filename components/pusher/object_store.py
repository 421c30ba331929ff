"""Pushes to, and looks for versions in, base paths that may be in an object store (`gs://…`).

A module apart from `versions`, because TFX's file systems import TensorFlow, which promotion and
clean-up do not wait for.
"""

import posixpath
import time
from collections.abc import Callable

from tfx.dsl.io import fileio

from components.pusher.versions import next_version
from serving.saved_model.versions import SAVED_MODEL, numbered


def is_remote(path: str) -> bool:
    """Whether a path is a URI such as `gs://bucket/models`, and not one of this file system."""
    return "://" in path


def newest_version(base: str) -> str | None:
    """Folder of the newest complete version in a model base path, local or remote; None: none.

    A name that is no number is none, as for TF Serving: neither what a push is still writing nor
    what was withdrawn counts.
    """
    for name in reversed(numbered(names_in(base)).values()):
        folder = posixpath.join(base, name)
        if fileio.exists(posixpath.join(folder, SAVED_MODEL)):
            return folder
    return None


def names_in(base: str) -> list[str]:
    """Names of the entries of a folder, local or remote; empty if it does not exist."""
    # Object stores list folders with a slash at the end.
    return [str(name).rstrip("/") for name in fileio.listdir(base)] if fileio.isdir(base) else []


def push_to_object_store(
    source: str, base: str, *, now: Callable[[], float] = time.time
) -> tuple[str, int]:
    """Copies a SavedModel with everything beside it to `base/<version>`.

    An object appears whole, several do not appear at once: `saved_model.pb` is copied last, so
    that a server finds either nothing to load or all of it. A copy that fails is taken away.

    Args:
      source: a SavedModel folder, local or remote.
      base: the model base path, a URI.
      now: the clock, seconds since 1970.

    Returns:
      The version's URI and its number: the time, or one more than the newest if that is not
      older; the number of a version that was rolled back is not used again.

    Raises:
      FileNotFoundError: `source` holds no `saved_model.pb`.
    """
    files = _files(source)
    if SAVED_MODEL not in files:
        raise FileNotFoundError(f"there is no SavedModel in {source}")
    version = next_version(names_in(base), now)
    target = posixpath.join(base, str(version))
    try:
        for name in sorted(files, key=lambda name: (name == SAVED_MODEL, name)):
            copy = posixpath.join(target, name)
            fileio.makedirs(posixpath.dirname(copy))
            fileio.copy(posixpath.join(source, name), copy)
    except BaseException:
        if fileio.exists(target):
            fileio.rmtree(target)
        raise
    return target, version


def _files(folder: str) -> list[str]:
    """All files below a folder, relative to it."""
    return [
        posixpath.relpath(posixpath.join(str(parent), str(name)), folder)
        for parent, _, names in fileio.walk(folder)
        for name in names
    ]
