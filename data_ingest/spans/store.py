"""Keeps images that arrive in portions: numbered spans, each landed whole and never changed.

<root>/span-<N>/background.zip    images to train on
                evaluation.zip    images that no model is ever trained on
                span.json         what came, what was rejected, which groups are new
<root>/decisions/span-<N>.json    whether trainings use that span, and if not, why
<root>/windows/<first>-<last>/    links to the zips that one training reads
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal

from data_ingest.durable import locked, rename_durably, synchronize, write_atomically
from data_ingest.errors import InputError
from data_ingest.paths import absolute
from data_ingest.progress import counted
from data_ingest.records.catalog import BACKGROUND, EVALUATION
from data_ingest.sampling.splits import split_index, unit_of
from data_ingest.settings import PairSettings
from data_ingest.sources.dataset import Dataset, refuse_wildcards
from data_ingest.sources.kind_of_images import kind_of
from data_ingest.sources.kinds import NAMES, Kind, form_of
from data_ingest.sources.layout import ImageFile, look_over, normal_form
from data_ingest.spans.landing import NewImages, read_images, settle
from data_ingest.spans.sides import SIDES, Side, new_sides, require_like_layout, side_rows
from data_ingest.spans.span import RECORD, RejectedImage, Span, read_span, sha256_of

_log = logging.getLogger(__name__)
_SPAN: Final = re.compile(r"span-[1-9]\d*")
_STAGED: Final = ".landing-"
_STAGED_WINDOW: Final = ".making"
_KEPT_WINDOWS: Final = 20
_LONGEST_NAME: Final = 40


class SpanStore:
    """The spans under one folder. Safe to use from several processes at once."""

    def __init__(self, root: Path) -> None:
        """`root` is `<output>/spans`; it is made when the first span lands."""
        self.root = absolute(root)

    def spans(self) -> list[Span]:
        """All landed spans, excluded ones too, by number, which is the order of their arrival.

        Raises:
          InputError: one is damaged, or has been taken away.
        """
        paths = [path for path in self.root.glob("span-*") if _SPAN.fullmatch(path.name)]
        found = [read_span(path, decision=self._decision(path.name)) for path in paths]
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
        found = next((span for span in spans if span.number == number), None)
        if found is not None:
            return found
        there = f"{spans[0].number} to {spans[-1].number}" if spans else "none"
        raise InputError(
            f"there is no span {number} in {self.root} (spans here: {there}): "
            f"`oneshot ingest --span {number} DIR` lands it"
        )

    def land(
        self,
        number: int | None,
        sources: Sequence[Path],
        *,
        pairs: PairSettings,
        max_rejected_share: float,
        kind: Literal["auto", Kind] = "auto",
        max_side: int | None = None,
    ) -> Span:
        """Lands new images as a span, whole or not at all, and for ever.

        A group keeps the side on which it first appears (see `data_ingest.spans.sides`). The same
        number with the same images again changes nothing.

        Args:
          number: greater than those of all spans that are there, so that no window of earlier
            spans changes; None takes the next one, and none where these are the images of the
            newest span.
          sources: folders and zips of `<group>/<class>/<image>` or `<class>/<image>`.
          pairs: `evaluation_share`, `seed` and `ways` decide on the sides of new groups.
          max_rejected_share: share of unusable images above which none lands.
          kind: of the images; `auto`: that of the span before, of the first span as it looks.
          max_side: `DatasetSettings.max_side`; images land in the form of their kind.

        Raises:
          InputError: the images cannot be used, or the number is taken or too small.
          OSError: the folder cannot be written, or its disk is full.
        """
        if number is not None and not 1 <= number < 2**63:
            raise InputError(f"--span {number}: spans are numbered from 1, below 2**63")
        refuse_wildcards(self.root, named_by="--output")
        with self._alone():
            spans = self.spans()
            sources = [absolute(source) for source in sources]
            files = look_over(sources)
            if kind == "auto":
                kind = spans[-1].kind if spans else _kind_of(files)
            reading = read_images(files, form_of(kind, max_side))

            def after(earlier: Sequence[Span]) -> NewImages:
                return settle(
                    reading,
                    earlier=[path for span in earlier for path in span.containers],
                    max_rejected_share=max_rejected_share,
                )

            newest = spans[-1].number if spans else 0
            if number is None:
                if spans and spans[-1].fingerprint == after(spans[:-1]).fingerprint:
                    return spans[-1]
                number = newest + 1
            if number <= newest:
                earlier = [span for span in spans if span.number < number]
                span = spans[len(earlier)]
                if span.number != number:
                    raise InputError(
                        f"--span {number}: span {span.number} has landed already, and spans land "
                        "in the order of their numbers: give a greater one"
                    )
                if span.fingerprint != after(earlier).fingerprint:
                    raise InputError(
                        f"--span {number}: {span.path} has landed already with other images, and "
                        "spans are immutable: land these as a new span"
                    )
                return span
            return self._write(number, sources, after(spans), spans, pairs, kind)

    def exclude(self, number: int, reason: str) -> None:
        """Keeps a span out of trainings and evaluations, until `readmit`.

        Its groups keep their sides.

        Raises:
          InputError: it has not landed.
        """
        self._decide(number, excluded=reason, readmitted=False)

    def readmit(self, number: int) -> None:
        """Takes `exclude` back, and remembers that this was decided.

        Raises:
          InputError: it has not landed.
        """
        self._decide(number, excluded=None, readmitted=True)

    def window(self, last: int, length: int, kind: Literal["auto", Kind] = "auto") -> Dataset:
        """What a training on the spans up to `last` uses: links that ExampleGen reads through.

        Background images are those of the last `length` spans; evaluation images those of all
        spans up to `last`; excluded spans do not count. The same arguments give the same images
        whatever lands later, as long as the same spans are excluded.

        Args:
          last: number of the last span.
          length: how many spans, at least 0; 0 is all.
          kind: of the images; `auto`: as which the last span landed.

        Raises:
          InputError: the span is not there or excluded, a span was changed, or there are no images
            to train on.
          ReadError: a zip cannot be read.
        """
        newest = self.span(last)
        if newest.excluded is not None:
            raise InputError(
                f"span {last} is excluded from training ({newest.excluded}): "
                f"`oneshot spans readmit {last}` takes that back"
            )
        before = [span for span in self.spans() if span.number <= last]
        spans = [span for span in before if span.excluded is None]
        chosen = spans[-length:] if length else spans
        without = [span.number for span in before if span.excluded is not None]
        name = window_name(chosen[0].number, last, without=without)
        count = sum(span.images[BACKGROUND] for span in chosen)
        if not count:
            raise InputError(
                f"spans {name} have no images to train on, only ones of groups that are kept for "
                "evaluation: choose a longer window"
            )
        used: Mapping[Side, Sequence[Span]] = {BACKGROUND: chosen, EVALUATION: spans}
        _check(spans, used)
        links = {
            f"{side}/{span.path.name}.zip": container
            for side in SIDES
            for span in used[side]
            if (container := span.container(side)) is not None
        }
        with self._alone():
            folder = _link_window(self.root / "windows", name, links)
        kind = newest.kind if kind == "auto" else kind
        description = f"{count} images to train on, of spans {name}, in {self.root}; {NAMES[kind]}"
        inputs = {str(side): f"{side}/*" for side in SIDES}
        return Dataset("folder", folder, inputs, description, kind).check()

    def _write(
        self,
        number: int,
        sources: Sequence[Path],
        images: NewImages,
        earlier: Sequence[Span],
        pairs: PairSettings,
        kind: Kind,
    ) -> Span:
        index = images.index
        known = {normal_form(name): side for span in earlier for name, side in span.new.items()}
        unit = earlier[0].unit if earlier else unit_of(index)
        require_like_layout(index.groups, known, unit)
        new = new_sides(index, known, pairs, unit=unit)
        rows = side_rows(index, {**known, **new}, unit)
        if not earlier:
            split_index(index.take(rows[BACKGROUND]), index.take(rows[EVALUATION]), pairs)
        final = self.root / f"span-{number}"
        span = Span(
            path=final,
            number=number,
            previous=earlier[-1].number if earlier else None,
            landed=_now(),
            sources=tuple(str(source) for source in sources),
            fingerprint=images.fingerprint,
            kind=kind,
            unit=unit,
            new=new,
            images={side: len(own) for side, own in rows.items()},
            classes={side: len(index.take(own).classes) for side, own in rows.items()},
            groups=len(index.groups),
            duplicates=images.duplicates,
            rejected=tuple(
                RejectedImage(file=bad.file, reason=bad.reason) for bad in images.rejected
            ),
        )
        staged = self.root / f"{_STAGED}{number}"
        staged.mkdir()
        try:
            digests = {}
            for side, own in rows.items():
                if len(own):
                    images.write(staged / f"{side}.zip", own)
                    digests[side] = sha256_of(staged / f"{side}.zip")
            span = span.model_copy(update={"sha256": digests})
            write_atomically(staged / RECORD, span.model_dump_json(indent=2, by_alias=True) + "\n")
            for path in staged.iterdir():
                # Not the folder: its owner could then not delete the output folder any more.
                path.chmod(path.stat().st_mode & ~0o222)
                synchronize(path)
            synchronize(staged)
            rename_durably(staged, final)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return span

    def _decision(self, name: str) -> dict[str, Any]:
        path = self.root / "decisions" / f"{name}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return {"excluded": record["excluded"], "readmitted": record["readmitted"]}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}): delete or repair it") from error

    def _decide(self, number: int, *, excluded: str | None, readmitted: bool) -> None:
        self.span(number)
        record = {"excluded": excluded, "readmitted": readmitted, "at": _now()}
        with self._alone():
            path = self.root / "decisions" / f"span-{number}.json"
            write_atomically(path, json.dumps(record, indent=2) + "\n")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time; what a killed one had staged is swept away."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / ".lock"):
            for staged in self.root.glob(f"{_STAGED}*"):
                shutil.rmtree(staged)
            yield


def window_name(first: int, last: int, *, without: Sequence[int]) -> str:
    """`3-7`, or `3-7-without-5`; a name that a file system takes, however many are left out."""
    if not without:
        return f"{first}-{last}"
    left_out = "-".join(map(str, without))
    if len(left_out) > _LONGEST_NAME:
        left_out = hashlib.sha256(left_out.encode()).hexdigest()[:16]
    return f"{first}-{last}-without-{left_out}"


def _check(spans: Sequence[Span], used: Mapping[Side, Sequence[Span]]) -> None:
    """Raises InputError where a zip, or one that is used by its bytes, is not what landed."""
    for span in spans:
        span.check()
    zips = [(span, side) for side in SIDES for span in used[side] if span.container(side)]
    for span, side in counted(zips, "Checking the bytes of spans", len(zips)):
        span.check_bytes(side)


def _link_window(windows: Path, name: str, links: Mapping[str, Path]) -> Path:
    """Makes `windows/<name>` hold these links, relative ones, so that all of it can be moved.

    Only the newest folders stay: links to a year's evaluation images add up, and what went is made
    again when asked for.
    """
    folder = windows / name
    wanted = {link: os.path.relpath(to, (folder / link).parent) for link, to in links.items()}
    there = {
        f"{link.parent.name}/{link.name}": str(link.readlink())
        for link in folder.glob("*/*")
        if link.is_symlink()
    }
    if there != wanted:
        staged = windows / f"{_STAGED_WINDOW}-{name}"
        shutil.rmtree(staged, ignore_errors=True)
        for side in SIDES:
            (staged / side).mkdir(parents=True)
        for link, target in wanted.items():
            (staged / link).symlink_to(target)
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    os.utime(folder)
    by_age = sorted(windows.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for old in by_age[:-_KEPT_WINDOWS]:
        shutil.rmtree(old)
    return folder


def _kind_of(files: Sequence[ImageFile]) -> Kind:
    found = kind_of(files)
    _log.info("Images: %s", found)
    return found.kind


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
