"""Images that arrive in portions: numbered spans, each landed whole and never changed.

<root>/span-<N>/background.zip    images to train on
                evaluation.zip    images that no model is ever trained on
                span.json         what came, what was refused, which groups are new
<root>/windows/<first>-<last>/    links to the zips that one training uses
"""

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from pydantic import Field

from data_ingest.catalog import BACKGROUND, EVALUATION
from data_ingest.dataset import Dataset
from data_ingest.errors import InputError, naming
from data_ingest.pair_settings import PairSettings
from data_ingest.settings import Settings
from data_ingest.span_landing import NewImages, fingerprint, read_images, table_of_contents
from data_ingest.span_sides import SIDES, Side, Unit, new_sides, side_rows, unit_of
from data_ingest.spans import refuse_wildcards
from data_ingest.splits import split_index

_NAME: Final = re.compile(r"span-[1-9]\d*")
_RECORD: Final = "span.json"
_STAGED: Final = ".landing-"
_KEPT_WINDOWS: Final = 20
_log = logging.getLogger(__name__)


class Refused(Settings):
    """An image that was left out, and why."""

    file: str
    reason: str


class Span(Settings):
    """A landed span: the content of its `span.json`, and where it lies."""

    path: Path = Field(exclude=True)
    number: int
    previous: int | None
    """The span before it; None of the first."""
    landed: str
    """UTC, ISO 8601."""
    sources: tuple[str, ...]
    """Folders and zips that it was made of."""
    fingerprint: str
    """Digest of names, sizes and checksums of all its images."""
    unit: Unit
    """What keeps its side: a group, or, where the first span had fewer than three, a class."""
    new: dict[str, Side]
    """Sides of the groups (or classes) that first appeared in this span."""
    images: dict[Side, int]
    classes: dict[Side, int]
    groups: int
    duplicates: int
    """Copies of an image in one class that were left out."""
    refused: tuple[Refused, ...]

    def container(self, side: Side) -> Path | None:
        """The zip of the images of that side; None where the span has none."""
        return self.path / f"{side}.zip" if self.images[side] else None

    @property
    def containers(self) -> tuple[Path, ...]:
        found = (self.container(side) for side in SIDES)
        return tuple(path for path in found if path is not None)

    def check(self) -> None:
        """Looks over tables of contents; damaged bytes are found when an image is read.

        Raises:
          InputError: the zips are not what landed.
        """
        found = [entry for path in self.containers for entry in table_of_contents(path)]
        if fingerprint(found) != self.fingerprint:
            raise InputError(
                f"{self.path} has changed since it landed, and spans never do: restore it from "
                "a copy"
            )


class SpanStore:
    """The spans under one folder. Safe to use from several processes at once."""

    def __init__(self, root: Path) -> None:
        """`root` is `<output>/spans`; it is made when the first span lands."""
        self.root = root.absolute()

    def spans(self) -> list[Span]:
        """All landed spans, in the order of their numbers, which is that of their arrival.

        Raises:
          InputError: one is damaged, or has been taken away.
        """
        paths = self.root.iterdir() if self.root.is_dir() else ()
        found = [_read(path) for path in paths if _NAME.fullmatch(path.name)]
        found.sort(key=lambda span: span.number)
        before: int | None = None
        for span in found:
            if span.previous != before:
                raise InputError(
                    f"{self.root}: span-{span.previous} is gone, which landed before "
                    f"span-{span.number}: put it back; it says which groups may be trained on"
                )
            before = span.number
        return found

    def span(self, number: int) -> Span:
        """One span.

        Raises:
          InputError: it has not landed; the message says which have.
        """
        spans = self.spans()
        for span in spans:
            if span.number == number:
                return span
        there = f"{spans[0].number} to {spans[-1].number}" if spans else "none"
        raise InputError(
            f"there is no span {number} in {self.root} (spans here: {there}): "
            f"`oneshot ingest --span {number} DIR` lands it"
        )

    def land(
        self,
        number: int,
        sources: Sequence[Path],
        *,
        pairs: PairSettings,
        max_rejected_share: float,
    ) -> Span:
        """Lands new images as a span, whole or not at all, and for ever.

        A group keeps the side on which it first appears (see `span_sides`). The same number with
        the same images again changes nothing.

        Args:
          number: greater than those of all spans that are there, so that no window of earlier
            spans changes.
          sources: folders and zips of `<group>/<class>/<image>` or `<class>/<image>`.
          pairs: `evaluation_share`, `seed` and `ways` decide on the sides of new groups.
          max_rejected_share: share of unusable images above which none lands.

        Raises:
          InputError: the images cannot be used, or the number is taken or too small.
          OSError: the folder cannot be written, or its disk is full.
        """
        if number < 1:
            raise InputError(f"--span {number}: spans are numbered from 1")
        refuse_wildcards(self.root, named_by="--output")
        with self._alone():
            spans = self.spans()
            earlier = [span for span in spans if span.number < number]
            images = read_images(
                [source.expanduser().absolute() for source in sources],
                earlier=[path for span in earlier for path in span.containers],
                max_rejected_share=max_rejected_share,
            )
            for span in spans[len(earlier) :]:
                _require_same(span, number, images)
                return span
            return self._write(number, sources, images, earlier, pairs)

    def window(self, last: int, length: int) -> Dataset:
        """What a training on the spans up to `last` uses: links that ExampleGen reads through.

        Background images are those of the last `length` spans; evaluation images those of all
        spans up to `last`. The same arguments give the same images, whatever lands later.

        Args:
          last: number of the last span.
          length: how many spans, at least 0; 0 is all.

        Raises:
          InputError: the span is not there, a span was changed, or one side has no images.
        """
        self.span(last)
        spans = [span for span in self.spans() if span.number <= last]
        chosen = spans[-length:] if length else spans
        links: dict[str, Path] = {}
        for side, of_side in zip(SIDES, (chosen, spans), strict=True):
            for span in of_side:
                container = span.container(side)
                if container is not None:
                    links[f"{side}/{span.path.name}.zip"] = container
        for span in spans:
            span.check()
        name = f"{chosen[0].number}-{last}"
        if not any(link.startswith(BACKGROUND) for link in links):
            raise InputError(
                f"spans {name} have no images to train on, only ones of groups that are kept for "
                "evaluation: choose a longer window"
            )
        inputs = {str(side): f"{side}/*" for side in SIDES}
        count = sum(span.images[BACKGROUND] for span in chosen)
        return Dataset(
            "folder",
            self._linked(name, links),
            inputs,
            f"{count} images of span{'s' if len(chosen) > 1 else ''} {name}, in {self.root}",
        ).check()

    def _write(
        self,
        number: int,
        sources: Sequence[Path],
        images: NewImages,
        earlier: Sequence[Span],
        pairs: PairSettings,
    ) -> Span:
        index = images.located.index
        known = {name: side for span in earlier for name, side in span.new.items()}
        unit = earlier[0].unit if earlier else unit_of(index)
        _require_like_others(index.groups, known, unit)
        new = new_sides(index, known, pairs, unit=unit)
        rows = side_rows(index, {**known, **new}, unit)
        if not earlier:
            split_index(index.take(rows[BACKGROUND]), index.take(rows[EVALUATION]), pairs)
        staged = self.root / f"{_STAGED}{number}"
        final = self.root / f"span-{number}"
        span = Span(
            path=final,
            number=number,
            previous=earlier[-1].number if earlier else None,
            landed=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            sources=tuple(str(source) for source in sources),
            fingerprint=fingerprint(images.entries(range(len(index)))),
            unit=unit,
            new=new,
            images={side: len(own) for side, own in rows.items()},
            classes={side: len(index.take(own).classes) for side, own in rows.items()},
            groups=len(index.groups),
            duplicates=images.duplicates,
            refused=tuple(Refused(file=bad.file, reason=bad.reason) for bad in images.rejected),
        )
        staged.mkdir()
        try:
            for side, own in rows.items():
                if len(own):
                    images.write(staged / f"{side}.zip", own)
            _write_durably(staged / _RECORD, span.model_dump_json(indent=2) + "\n")
            for path in staged.iterdir():
                # Not the folder: its owner could then not delete the output folder any more.
                path.chmod(0o444)
            _sync(staged)
            staged.rename(final)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        _sync(self.root)
        return span

    def _linked(self, name: str, links: dict[str, Path]) -> Path:
        """A folder of relative links; made anew where it is not there or was tampered with."""
        windows = self.root / "windows"
        folder = windows / name
        wanted = {link: os.path.relpath(to, (folder / link).parent) for link, to in links.items()}
        with self._alone():
            if _links_in(folder) != wanted:
                staged = windows / f"{_STAGED}{name}"
                for side in SIDES:
                    (staged / side).mkdir(parents=True)
                for link, target in wanted.items():
                    (staged / link).symlink_to(target)
                shutil.rmtree(folder, ignore_errors=True)
                staged.rename(folder)
            os.utime(folder)
            # Links to a year's evaluation images add up. What goes is made again when asked for.
            by_age = sorted(windows.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            for old in by_age[:-_KEPT_WINDOWS]:
                shutil.rmtree(old)
        return folder

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time; what a killed one had staged is swept away."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for folder in (self.root, self.root / "windows"):
                for staged in folder.glob(f"{_STAGED}*"):
                    shutil.rmtree(staged)
            yield


def _read(path: Path) -> Span:
    try:
        record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
        span = Span.model_validate({**record, "path": path})
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path / _RECORD} cannot be read ({error}): restore it") from error
    if path.name != f"span-{span.number}":
        raise InputError(f"{path} is span {span.number}: give the folder its name back")
    return span


def _require_same(span: Span, number: int, images: NewImages) -> None:
    if span.number != number:
        raise InputError(
            f"--span {number}: span {span.number} has landed already, and spans land in the "
            "order of their numbers: give a greater one"
        )
    if span.fingerprint != fingerprint(images.entries(range(len(images.located.index)))):
        raise InputError(
            f"--span {number}: {span.path} has landed already with other images, and spans are "
            "immutable: land these as a new span"
        )


def _require_like_others(groups: Sequence[str], known: dict[str, Side], unit: Unit) -> None:
    """Raises InputError where groups are mixed with none."""
    if not known:
        return
    had_groups = unit == "group" or any("/" in name for name in known)
    if had_groups != ("" not in groups):
        raise InputError(
            f"the images are laid out as {'<class>/<image>' if had_groups else '<group>/<class>'}"
            f", those of earlier spans as "
            f"{'<group>/<class>/<image>' if had_groups else '<class>/<image>'}: lay them out alike"
        )


def _links_in(folder: Path) -> dict[str, str]:
    return {
        f"{link.parent.name}/{link.name}": str(link.readlink())
        for link in folder.glob("*/*")
        if link.is_symlink()
    }


def _write_durably(path: Path, text: str) -> None:
    with naming(path), path.open("x", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
