"""`oneshot evaluate`: how good an exported model is on images that it never saw."""

import argparse
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from rich.table import Table

from data_ingest.errors import InputError
from data_ingest.progress import step
from data_ingest.sources.kinds import Crop
from data_ingest.sources.writers import checked_pattern
from pipeline.cli.shared import Context, add_command, named_path, table

if TYPE_CHECKING:
    from components.evaluator.offline import Accuracy, Evaluation, WayResult

_DEFAULTS: Final[dict[str, Any]] = {"way": [[20]], "shots": 1, "trials": 400, "seed": 1}
"""Of what the published trials leave no choice about."""
_LARGEST_WAY: Final = 1000
_RANGE: Final = re.compile(r"(\d{1,9})(?:\.\.(\d{1,9}))?")
_NAMED_CLASSES: Final = 5
_MOST_COLUMNS: Final = 8


def add_parsers(commands: Any) -> None:
    """Adds the command to those of `oneshot`."""
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        text="measure the one-shot accuracy of a model on any images",
    )
    parser.add_argument(
        "--model",
        type=named_path,
        required=True,
        help="folder of a version, or of several, of which the newest is taken",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images",
        type=named_path,
        help="folder or zip of images; trials are drawn from them at random",
    )
    source.add_argument(
        "--official",
        type=named_path,
        metavar="RUNS",
        help="Omniglot's published trials (all_runs.zip) instead: 20-way, one shot",
    )
    parser.add_argument(
        "--way",
        type=_ways,
        nargs="+",
        metavar="N",
        help="candidates of a trial; several numbers (5 10 20) or a range (5..40) give a row each "
        "(default: 20)",
    )
    parser.add_argument(
        "--shots", type=int, metavar="N", help="reference images of each candidate (default: 1)"
    )
    parser.add_argument(
        "--trials", type=int, metavar="N", help="how many trials for each --way (default: 400)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="seed of the random trials (default: 1)"
    )
    parser.add_argument(
        "--writer-pattern",
        type=_writer_pattern,
        metavar="REGEX",
        help="regular expression for file names whose one group is who drew the image (default: "
        "known of Omniglot and generated images alone)",
    )
    parser.add_argument(
        "--crop",
        choices=get_args(Crop),
        help="cut the one face out of each photo of --images (default: as the model was trained)",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="compare with Modified Hausdorff distance, too: slow, for drawings alone (pixels, HOG "
        "and LBP are always compared with)",
    )
    parser.add_argument(
        "--confusions",
        type=named_path,
        metavar="FILE.png",
        help="draw the classes that are most often taken for each other",
    )
    parser.add_argument(
        "--roc",
        type=named_path,
        metavar="FILE.png",
        help="draw the ROC curves of signatures, with random and with skilled forgeries",
    )


def _ways(text: str) -> list[int]:
    """`20` → [20]; `5..8` → [5, 6, 7, 8]."""
    found = _RANGE.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 2 <= first <= last <= _LARGEST_WAY:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number from 2 to {_LARGEST_WAY}, or a range such as 5..40"
        )
    return list(range(first, last + 1))


def _writer_pattern(text: str) -> str:
    try:
        return checked_pattern(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _evaluate(context: Context) -> None:
    """Asks a model which of --way classes of one group (alphabet) a query image belongs to, each
    class shown by --shots reference images. Where no group has two classes they are of several.

    Query and references are drawn by different writers where writers are known. Several references
    are combined by the mean of their embeddings, as in the gallery: on held-out background
    alphabets that is right more often than the nearest reference or the mean of the logits, and
    costs one comparison a class. Classes with too few images are left out, and named.

    Signatures in <writer>/genuine and <writer>/forged are verified besides, by 1, 5 and 10
    references, with random forgeries (of other writers) and skilled ones apart.
    """
    options = context.options
    chosen = {name: getattr(options, name) for name in _DEFAULTS}
    pattern = options.writer_pattern
    given = [f"--{name}" for name, value in chosen.items() if value is not None]
    given += ["--crop"] if options.crop is not None else []
    given += ["--writer-pattern"] if pattern is not None else []
    if options.official is not None and given:
        raise InputError(f"{' and '.join(given)}: the trials of --official leave no choice of that")
    picture, roc = options.confusions, options.roc
    for option, path in (("--confusions", picture), ("--roc", roc)):
        if path is not None and path.suffix.lower() != ".png":
            raise InputError(f"{option} {path}: name a file that ends in .png")
    chosen = {name: _DEFAULTS[name] if value is None else value for name, value in chosen.items()}
    with context.quiet_libraries():
        with step("Loading TensorFlow"):
            from components.evaluator.forgeries import draw_roc
            from components.evaluator.mistakes import draw_confusions
            from components.evaluator.offline import evaluate_model, find_model
            from components.evaluator.trials import drawn_trials, official_trials
            from data_ingest.sources.layout import (
                ImageReader,
                look_over,
                refuse_useless_pattern,
            )
            from serving.saved_model.versions import read_crop, stored_as

        model = find_model(options.model)
        crop = None
        if options.official is None:
            crop = options.crop or read_crop(model)
        with ImageReader(stored_as(model)._replace(crop=crop)) as reader:
            if options.official is not None:
                trials = official_trials(options.official, reader)
            else:
                ways = list(dict.fromkeys(way for part in chosen.pop("way") for way in part))
                files = look_over([options.images], pattern)
                if pattern is not None:
                    refuse_useless_pattern(files, pattern)
                trials = drawn_trials(files, reader, ways=ways, **chosen)
            if roc is not None and not trials.images.index.has_forgeries:
                raise InputError(
                    f"--roc: {trials.source} has no forgeries: it needs images in <writer>/genuine "
                    "and in <writer>/forged"
                )
            result = evaluate_model(model, trials, slow_baselines=options.baselines)
            if roc is not None:
                draw_roc(result.verification, roc)
            if picture is not None:
                draw_confusions(result.confusions, trials.images, picture)
        accuracies = _accuracies(result)
        verification = _verification(result)
    groups = () if result.trials.protocol == "between" else _groups(result.results)
    notes = _notes(result, picture, roc)
    context.show(result.document(), accuracies, *groups, *verification, *notes)


def _notes(result: "Evaluation", picture: Path | None, roc: Path | None) -> Iterator[str]:
    trials = result.trials
    writers = [one.writers for one in result.verification]
    for one in result.verification:
        if one.writers < max(writers) and one.forgeries == "random":
            left_out = max(writers) - one.writers
            yield f"{left_out} writers have no signature besides {one.references} references"
    for left, rows in groupby(result.results, key=lambda one: one.groups_without_trials):
        first, *_, last = [f"{one.way}-" for one in rows] * 2
        ways = first if first == last else f"{first} to {last}"
        if left:
            yield f"No {ways}way trials, for want of classes or of --trials: {', '.join(left)}"
    if trials.classes_left_out:
        named = ", ".join(trials.classes_left_out[:_NAMED_CLASSES])
        more = len(trials.classes_left_out) - _NAMED_CLASSES
        yield (
            f"Left out, with fewer than {trials.shots + 1} images by different writers: {named}"
            + (f" and {more} more classes" if more > 0 else "")
        )
    if trials.images.rejected:
        yield f"{trials.images.rejected} unusable images were left out"
    if trials.protocol == "official" and "modified_hausdorff" in result.results[0].baselines:
        published = "Published for Omniglot's own runs (Lake et al. 2015)"
        yield f"{published}: Modified Hausdorff 38.8 % wrong"
    if picture is not None:
        yield f"Confusions {picture}"
    if roc is not None:
        yield f"ROC        {roc}"


def _accuracies(result: "Evaluation") -> Table:
    from components.evaluator.baselines import BASELINES

    rows = []
    for one in result.results:
        chance = f"{100 * one.chance:.1f} %"
        rows.append((f"{one.way}-way", "model", *_figures(one), chance))
        for baseline in BASELINES:
            if baseline.name in one.baselines:
                rows.append(("", baseline.title, *_figures(one.baselines[baseline.name]), chance))
    trials = result.trials
    title = "One-shot accuracy" if trials.shots == 1 else f"{trials.shots}-shot accuracy"
    place = "published runs" if trials.protocol == "official" else f"{trials.protocol} groups"
    figures = ("accuracy", "95 % interval", "wrong", "chance")
    return table(
        ("trials", "recogniser", *figures),
        rows,
        title=f"{title}, {place}",
        right=figures,
        folded=("recogniser",),
    )


def _verification(result: "Evaluation") -> Iterator[Table]:
    """Figures of signatures; none where there are no forgeries."""
    if not result.verification:
        return
    figures = ("EER, 95 %", "accuracy, 95 %", "TAR 1 %", "n")
    rows = []
    before = 0
    for one in result.verification:
        row = (
            str(one.references) if one.references != before else "",
            one.forgeries,
            _with_interval(one.eer, one.eer_ci95),
            _with_interval(one.accuracy, one.accuracy_ci95),
            f"{100 * one.tar_at_1_percent_far:.1f} %",
            f"{one.genuine_n + one.forged_n:,}",
        )
        rows.append(row)
        before = one.references
    yield table(
        ("refs", "forgeries", *figures),
        rows,
        title=f"Signatures of {result.verification[0].writers} writers, genuine or forged",
        right=figures,
    )


def _with_interval(share: float, bounds: tuple[float, float]) -> str:
    low, high = (f"{100 * bound:.1f}" for bound in bounds)
    return f"{100 * share:.1f} % ({low} to {high})"


def _figures(one: "Accuracy | WayResult") -> tuple[str, str, str]:
    """Accuracy, its interval, and how many trials were answered wrongly (ties in part)."""
    low, high = one.accuracy_ci95
    wrong = round(one.accuracy_n * (1 - one.accuracy), 1)
    return (
        f"{100 * one.accuracy:.2f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{wrong:,.{0 if wrong.is_integer() else 1}f} of {one.accuracy_n:,}",
    )


def _groups(results: "Sequence[WayResult]") -> Iterator[Table]:
    """Accuracy of the model by group; none where that says nothing or is too wide to read."""
    names = sorted({group for one in results for group in one.by_group})
    if len(names) < 2 or len(results) > _MOST_COLUMNS:
        return
    shares = {name: [one.by_group.get(name) for one in results] for name in names}
    ways = [f"{one.way}-way" for one in results]
    yield table(
        ("group", *ways),
        (
            (name, *("" if share is None else f"{100 * share:.1f} %" for share in row))
            for name, row in shares.items()
        ),
        title="The model, by group",
        right=ways,
        folded=("group",),
    )
