"""Finds the images of a run: in a place that the user names, the cache, a download, or glyphs."""

import logging
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from data_ingest.errors import InputError
from data_ingest.paths import absolute
from data_ingest.settings import DatasetSettings
from data_ingest.sources.dataset import (
    Dataset,
    has_span,
    latest,
    refuse_wildcards,
    split_at_span,
)
from data_ingest.sources.download import OFFICIAL_ARCHIVES, DownloadError, download
from data_ingest.sources.glyphs import REVISION, write_glyphs
from data_ingest.sources.kind_of_images import kind_of
from data_ingest.sources.kinds import NAMES, Kind

DATA_VARIABLE: Final = "OMNIGLOT_DIR"
_RUN_PLACES: Final = ("all_runs.zip", "all_runs", "one-shot-classification/all_runs.zip")
_log = logging.getLogger(__name__)


def resolve(
    settings: DatasetSettings,
    *,
    data: Path | None,
    environ: Mapping[str, str],
    synthetic_dir: Path,
) -> Dataset:
    """Finds, downloads or generates the images that the settings ask for.

    Without a network this takes at most ten seconds, generating aside.

    Args:
      settings: what is asked for.
      data: a folder or zip named on the command line; goes before `settings.data`.
      environ: environment variables; `OMNIGLOT_DIR` is looked at where nothing else is named.
      synthetic_dir: where generated glyphs are kept for later runs.

    Raises:
      InputError: what the user named, or asked for by `dataset.source`, cannot be had. Only
        `source: auto` with nothing named falls back on generated glyphs.
      OSError: a folder to be written cannot be, or its disk is full.
    """
    dataset = _local(settings, data=data, environ=environ)
    if dataset is None:
        dataset = _made_here(settings, synthetic_dir)
    return _of_kind(dataset, settings.kind)


def _of_kind(dataset: Dataset, asked: Literal["auto", Kind]) -> Dataset:
    """The dataset with its kind, of which the description tells where it is not a matter of course.

    Omniglot's images and generated ones are drawings.
    """
    if asked != "auto":
        told = f"{dataset.description}; {NAMES[asked]} (dataset.kind)"
        return replace(dataset, kind=asked, description=told)
    if dataset.source != "folder":
        return dataset
    found = kind_of(dataset.images())
    return replace(dataset, kind=found.kind, description=f"{dataset.description}; {found}")


def _made_here(settings: DatasetSettings, synthetic_dir: Path) -> Dataset:
    if settings.source == "synthetic":
        return _generate(settings, synthetic_dir)
    try:
        return _download(settings)
    except DownloadError as error:
        if settings.source == "omniglot":
            raise InputError(
                f"dataset.source is omniglot, but it is nowhere to be had: {error}. "
                f"Name a folder with its archives: --data DIR, or {DATA_VARIABLE}=DIR"
            ) from error
        _warn_of_glyphs(str(error))
        return _generate(settings, synthetic_dir)


def find(settings: DatasetSettings, *, data: Path | None, environ: Mapping[str, str]) -> str:
    """Says in one line where `resolve` would take the images from; changes nothing, asks no server.

    Raises:
      InputError: what the user named cannot be used.
    """
    found = on_disk(settings, data=data, environ=environ)
    if found is not None:
        return found.description
    if settings.source == "synthetic":
        return "generated glyphs"
    otherwise = "" if settings.source == "omniglot" else "; without a network, generated glyphs"
    return f"not here yet: Omniglot, to be downloaded from {settings.download_url}{otherwise}"


def on_disk(
    settings: DatasetSettings, *, data: Path | None, environ: Mapping[str, str]
) -> Dataset | None:
    """What `resolve` would find without a download or glyphs; None where it needs these.

    Raises:
      InputError: what the user named cannot be used.
    """
    found = _local(settings, data=data, environ=environ)
    return None if found is None else _of_kind(found, settings.kind)


def _local(
    settings: DatasetSettings, *, data: Path | None, environ: Mapping[str, str]
) -> Dataset | None:
    """What is already on disk, looked over; None where it must be downloaded or generated."""
    if settings.source == "synthetic":
        if data is not None:
            raise InputError(
                "--data and dataset.source=synthetic contradict: leave one of them out"
            )
        return None
    place, named_by = data, "--data"
    if place is None:
        place, named_by = settings.data, "dataset.data"
    if place is None and settings.source != "folder" and environ.get(DATA_VARIABLE):
        place, named_by = Path(environ[DATA_VARIABLE]), DATA_VARIABLE
    if place is not None:
        try:
            return _named(settings, absolute(place), named_by=named_by)
        except PermissionError as error:
            raise InputError(f"{named_by}: {place} may not be read: {error}") from error
    if settings.source == "folder":
        raise InputError("dataset.source is folder: name it with --data DIR or dataset.data")
    return None if _missing(settings) else _in_cache(settings)


def _named(settings: DatasetSettings, place: Path, *, named_by: str) -> Dataset:
    if has_span(place):
        if settings.source == "omniglot":
            raise InputError(f"{named_by}: {place}: spans are for dataset.source=folder")
        base, pattern = split_at_span(place)
        refuse_wildcards(base, named_by=named_by)
        found = latest(base, pattern)
        description = f"images in {found} (latest span)"
        return Dataset("folder", base, {"images": pattern}, description).check()
    refuse_wildcards(place, named_by=named_by)
    if not place.exists():
        raise InputError(f"{named_by}: {place} does not exist: give a folder or a zip of images")
    if settings.source != "folder" and place.is_dir():
        for base in (place, place / "python"):
            dataset = _omniglot_in(settings, base, where=f"{place} ({named_by})")
            if dataset is not None:
                return dataset
    if settings.source == "omniglot":
        raise InputError(
            f"{named_by}: {place} does not hold Omniglot: expected a folder with "
            "images_background.zip and images_evaluation.zip (or the folders unpacked from them)"
        )
    description = f"images in {place} ({named_by})"
    return Dataset("folder", place.parent, {"images": place.name}, description).check()


def _omniglot_in(settings: DatasetSettings, base: Path, *, where: str) -> Dataset | None:
    """Omniglot's archives, zipped or unpacked, in a folder; None where there is none of them.

    Raises:
      InputError: only some of those needed are there, or one is unusable.
    """
    needed = _needed(settings)
    there = {
        name: found
        for name in OFFICIAL_ARCHIVES
        for found in (name, f"{name}.zip")
        if name.startswith("images_") and (base / found).exists()
    }
    if not there:
        return None
    missing = [name for name in needed if name not in there]
    if missing:
        raise InputError(
            f"{where} lacks {' and '.join(f'{name}.zip' for name in missing)} "
            f"(it has {', '.join(sorted(there.values()))}): put it there, or choose another "
            f"dataset.background than {settings.background}"
        )
    backgrounds = [there[name] for name in needed[:-1]]
    pattern = backgrounds[0]
    if len(backgrounds) > 1:
        if pattern != backgrounds[1].replace("small2", "small1"):
            raise InputError(f"{where}: unpack both of {' and '.join(backgrounds)}, or neither")
        pattern = pattern.replace("small1", "small[12]")
    inputs = {"background": pattern, "evaluation": there["images_evaluation"]}
    runs = next((place for place in _RUN_PLACES if (base / place).exists()), None)
    if runs is not None:
        inputs["runs"] = runs
    else:
        _log.info("No all_runs.zip in %s: this run is not measured on the official trials", where)
    description = f"Omniglot, {settings.background} background set, in {where}"
    return Dataset("omniglot", base, inputs, description).check()


def _needed(settings: DatasetSettings) -> list[str]:
    if settings.background == "full":
        return ["images_background", "images_evaluation"]
    parts = settings.background.split("+")
    return [*(f"images_background_{part}" for part in parts), "images_evaluation"]


def _download(settings: DatasetSettings) -> Dataset:
    refuse_wildcards(_cache(settings), named_by="dataset.cache_dir")
    missing = _missing(settings)
    _log.info("Omniglot is not here yet: downloading from %s", settings.download_url)
    try:
        download(
            [OFFICIAL_ARCHIVES[name] for name in missing],
            _cache(settings),
            base_url=settings.download_url,
            connect_timeout=settings.connect_timeout_seconds,
            read_timeout=settings.download_timeout_seconds,
        )
    except (DownloadError, OSError) as error:
        if missing != ["all_runs"]:
            if isinstance(error, DownloadError):
                raise
            raise InputError(
                f"dataset.cache_dir: {error}: set it to a folder for downloads that can be "
                "written, or name a folder with Omniglot's archives by --data"
            ) from error
        _log.warning("Going on without the official trials: %s", error)
    dataset = _in_cache(settings)
    if dataset is None:
        raise DownloadError(f"{_cache(settings)}: the downloaded archives are gone")
    return dataset


def _in_cache(settings: DatasetSettings) -> Dataset | None:
    return _omniglot_in(settings, _cache(settings), where=f"{_cache(settings)} (downloaded)")


def _missing(settings: DatasetSettings) -> list[str]:
    """Which of the archives are still to be downloaded."""
    names = [*_needed(settings), "all_runs"]
    return [name for name in names if not zipfile.is_zipfile(_cache(settings) / f"{name}.zip")]


def _cache(settings: DatasetSettings) -> Path:
    return absolute(settings.cache_dir) / "omniglot"


def _generate(settings: DatasetSettings, synthetic_dir: Path) -> Dataset:
    background = settings.synthetic_alphabets
    evaluation = settings.synthetic_evaluation_alphabets
    characters = settings.synthetic_characters
    base = absolute(synthetic_dir) / (
        f"glyphs-r{REVISION}-{background}-{evaluation}-{characters}-seed{settings.synthetic_seed}"
    )
    refuse_wildcards(base, named_by="the folder for generated glyphs")
    base.mkdir(parents=True, exist_ok=True)
    plan = {"background": (1, background), "evaluation": (1 + background, evaluation)}
    for split, (first, alphabets) in plan.items():
        path = base / f"images_{split}.zip"
        if not zipfile.is_zipfile(path):
            _log.info("Generating %d x %d glyphs: %s", alphabets, characters, path)
            write_glyphs(
                path,
                alphabets=alphabets,
                characters=characters,
                seed=settings.synthetic_seed,
                first_alphabet=first,
            )
    inputs = {split: f"images_{split}.zip" for split in plan}
    description = (
        f"GENERATED glyphs, not real handwriting: {background} + {evaluation} alphabets of "
        f"{characters} characters, in {base}"
    )
    return Dataset("synthetic", base, inputs, description).check()


def _warn_of_glyphs(reason: str) -> None:
    line = "=" * 78
    _log.warning(
        "\n%s\n  NO REAL IMAGES: this run uses GENERATED, handwriting-like glyphs.\n"
        "  Its accuracy says nothing about Omniglot. Everything it makes is marked\n"
        "  'synthetic'.\n\n  Why: %s\n\n"
        "  For real images name a folder: --data DIR, or %s=DIR\n%s",
        line,
        reason,
        DATA_VARIABLE,
        line,
    )
