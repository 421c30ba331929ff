"""Finds the latest of the paths with `{SPAN}`, `{VERSION}` or `{YYYY}{MM}{DD}`.

The same rules as TFX's ExampleGen, so that what is checked before a run is what TFX then takes.
"""

import re
from pathlib import Path

from data_ingest.errors import InputError

_TOKEN = re.compile(r"\{(SPAN|VERSION)(?::(\d+))?\}|\{(YYYY|MM|DD)\}")
_DATE_DIGITS = {"YYYY": r"\d{4}", "MM": r"\d{2}", "DD": r"\d{2}"}


def has_span(path: Path) -> bool:
    """Whether a path holds at least one span, version or date token."""
    return _TOKEN.search(str(path)) is not None


def split_at_span(path: Path) -> tuple[Path, str]:
    """Splits a path with tokens into the fixed folders before them, and the pattern after.

    >>> split_at_span(Path("/data/span-{SPAN}/images"))
    (PosixPath('/data'), 'span-{SPAN}/images')
    """
    parts = path.parts
    first = next(i for i, part in enumerate(parts) if _TOKEN.search(part))
    return Path(*parts[:first]), "/".join(parts[first:])


def refuse_wildcards(path: Path, *, named_by: str) -> None:
    """Raises InputError where a fixed path would be taken for a pattern."""
    found = sorted(set("*?[]{}\\") & set(str(path)))
    if found:
        raise InputError(
            f"{named_by}: {path} has {' '.join(found)} in its name, which would be taken for "
            "wildcards: rename it, or give a link to it"
        )


def latest(base: Path, pattern: str) -> Path:
    """Finds what the pattern's latest span (and of that, the latest version) names.

    Raises:
      InputError: the tokens do not go together, or nothing matches.
    """
    tokens = [match[1] or match[3] for match in _TOKEN.finditer(pattern)]
    _check_tokens(pattern, tokens)
    regex = re.compile(_to_regex(pattern))
    order = [token for token in ("SPAN", "YYYY", "MM", "DD", "VERSION") if token in tokens]
    found = [
        ([int(match[token]) for token in order], entry)
        for entry in _entries(base, pattern.count("/"))
        if (match := regex.fullmatch(entry.relative_to(base).as_posix()))
    ]
    if not found:
        raise InputError(f"dataset.data: nothing matches {pattern} in {base}")
    return max(found)[1]


def _check_tokens(pattern: str, tokens: list[str]) -> None:
    dates = [token for token in tokens if token in _DATE_DIGITS]
    problem = None
    if len(set(tokens)) != len(tokens):
        problem = "names a token twice"
    elif dates and ("SPAN" in tokens or len(dates) != 3):
        problem = "needs either {SPAN} or all of {YYYY}, {MM} and {DD}"
    elif "VERSION" in tokens and len(tokens) == 1:
        problem = "needs a {SPAN} with its {VERSION}"
    if problem:
        raise InputError(f"dataset.data: {pattern} {problem}")


def _to_regex(pattern: str) -> str:
    pieces, position = [], 0
    for match in _TOKEN.finditer(pattern):
        pieces.append(re.escape(pattern[position : match.start()]))
        if match[1]:
            digits = rf"\d{{{match[2]}}}" if match[2] else r"\d+"
        else:
            digits = _DATE_DIGITS[match[3]]
        pieces.append(f"(?P<{match[1] or match[3]}>{digits})")
        position = match.end()
    return "".join(pieces) + re.escape(pattern[position:])


def _entries(base: Path, depth: int) -> list[Path]:
    """What lies so deep below a folder."""
    folders = [base] if base.is_dir() else []
    for _ in range(depth):
        folders = [entry for folder in folders for entry in folder.iterdir() if entry.is_dir()]
    return [entry for folder in folders for entry in folder.iterdir()]
