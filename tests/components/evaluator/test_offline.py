"""`oneshot evaluate` on drawings, with a model of pixels in the place of a trained one."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from components.evaluator import offline, recognisers
from components.evaluator.recognisers import ModelRecogniser
from components.evaluator.statistics import wilson_interval
from components.evaluator.trials import sound_images
from data_ingest.sampling.official_runs import read_official_runs
from data_ingest.sampling.protocols import PROTOCOL_WITHIN
from data_ingest.sampling.trials import draw_trials
from data_ingest.sources.glyphs import draw_alphabet, encode_png
from data_ingest.sources.layout import ImageReader, list_images
from pipeline.cli.main import main
from serving.saved_model.contract import EXTRA, MODEL_CARD

WRITERS = 4
CHARACTERS = {"Round": 7, "Square": 5}
TWINS = ("Round/character01", "Round/character02")
"""Drawn by the same strokes: nothing can tell them apart."""


class PixelModel:
    """Embeds an image as its coarse pixels; answers like an exported model."""

    embedded: list[int] = []

    def __init__(self, directory: Path) -> None: ...

    def __enter__(self) -> "PixelModel":
        return self

    def __exit__(self, *error: object) -> None: ...

    def run(self, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        if signature == "embed":
            self.embedded.append(len(inputs["image"]))
            return {"embedding": np.stack([coarse(image) for image in inputs["image"]])}
        assert signature == "match"
        apart = np.abs(inputs["embedding_a"] - inputs["embedding_b"]).sum(axis=1)
        return {"logit": 3 - apart, "score": 1 / (1 + np.exp(apart - 3))}


class ConstantModel(PixelModel):
    def run(self, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = super().run(signature, inputs)
        return {name: np.ones_like(values) for name, values in outputs.items()}


def coarse(image: bytes) -> npt.NDArray[np.float32]:
    with Image.open(io.BytesIO(image)) as picture:
        return np.asarray(picture.convert("L").resize((8, 8)), np.float32).ravel() / 255


@pytest.fixture(autouse=True)
def pixel_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[PixelModel]]:
    monkeypatch.setattr(offline, "LoadedModel", PixelModel)
    yield PixelModel
    PixelModel.embedded.clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that passes for that of a version."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "saved_model.pb").touch()
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two alphabets of glyphs; two characters of the first are the same but for their hands."""
    path = tmp_path_factory.mktemp("images") / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, (alphabet, characters) in enumerate(CHARACTERS.items()):
            glyphs = list(draw_alphabet(number, characters=characters, writers=2 * WRITERS, seed=1))
            for character, drawings in enumerate(glyphs):
                hands = drawings[:WRITERS]
                if f"{alphabet}/character{character:02d}" == TWINS[1]:
                    hands = glyphs[1][WRITERS:]
                for writer, pixels in enumerate(hands, start=1):
                    name = f"{alphabet}/character{character:02d}/{character:04d}_{writer:02d}.png"
                    archive.writestr(name, encode_png(pixels))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, omniglot: Path | None) -> Path:
    """The published runs; where they are not, three like them, of glyphs."""
    if omniglot is not None:
        return omniglot / "all_runs.zip"
    path = tmp_path_factory.mktemp("runs") / "all_runs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for run in range(1, 4):
            glyphs = list(draw_alphabet(10 + run, characters=8, writers=2, seed=1))
            lines = []
            for number, (first, second) in enumerate(glyphs, start=1):
                test = f"run{run:02d}/test/item{len(glyphs) + 1 - number:02d}.png"
                training = f"run{run:02d}/training/class{number:02d}.png"
                archive.writestr(test, encode_png(first))
                archive.writestr(training, encode_png(second))
                lines.append(f"{test} {training}\n")
            archive.writestr(f"run{run:02d}/class_labels.txt", "".join(sorted(lines)))
    return path


def run(capfd: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any], str]:
    capfd.readouterr()
    try:
        code = main(["evaluate", "--json", *map(str, argv)])
    except SystemExit as usage:
        code = int(usage.code or 0)
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else {}, err


def test_each_way_is_a_row_and_the_first_stands_at_the_top(
    model: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", model, "--images", images, "--trials", 30]
    code, result, _ = run(capfd, *argv, "--way", "5", "3", "6..7")
    assert code == 0
    assert [row["way"] for row in result["results"]] == [5, 3, 6, 7]
    for row in result["results"]:
        assert row["accuracy_n"] == 30
        assert row["chance"] == 1 / row["way"]
        right = row["accuracy"] * 30
        assert row["accuracy_ci95"] == pytest.approx(list(wilson_interval(right, 30)))
        assert list(row["baselines"]) == ["pixel_1nn", "hog", "lbp"]
    assert result["results"][2]["groups_without_trials"] == ["Square"]
    assert {key: result[key] for key in result["results"][0]} == result["results"][0]
    for key, value in (("trials", 30), ("seed", 1), ("shots", 1), ("protocol", "within")):
        assert result[key] == value
    # The rows do not depend on one another.
    assert run(capfd, *argv, "--way", "3")[1]["results"] == result["results"][1:2]


def test_an_image_is_embedded_once_however_many_trials_and_ways_it_is_in(
    model: Path,
    images: Path,
    capfd: pytest.CaptureFixture[str],
    pixel_model: type[PixelModel],
) -> None:
    argv = ["--model", model, "--images", images, "--way", "2..7"]
    assert run(capfd, *argv, "--trials", "500")[0] == 0
    assert sum(pixel_model.embedded) == sum(CHARACTERS.values()) * WRITERS


def test_large_images_are_embedded_a_few_at_a_time(
    model: Path,
    images: Path,
    capfd: pytest.CaptureFixture[str],
    pixel_model: type[PixelModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with zipfile.ZipFile(images) as archive:
        largest = max(entry.file_size for entry in archive.infolist())
    monkeypatch.setattr(recognisers, "_BATCH_BYTES", 3 * largest)
    argv = ["--model", model, "--images", images, "--way", "7", "--trials", "100"]
    assert run(capfd, *argv)[0] == 0
    assert sum(pixel_model.embedded) == CHARACTERS["Round"] * WRITERS
    assert 3 <= min(pixel_model.embedded[:-1]) <= max(pixel_model.embedded) < 9


def test_a_constant_model_earns_chance(
    model: Path, images: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "LoadedModel", ConstantModel)
    argv = ["--model", model, "--images", images, "--trials", 20]
    for row in run(capfd, *argv, "--way", "2", "5", "--shots", "2")[1]["results"]:
        assert row["accuracy"] == pytest.approx(row["chance"])


def test_several_references_are_combined_by_their_mean(model: Path, images: Path) -> None:
    with ImageReader() as reader:
        sound = sound_images(list_images(images), reader)
        trials = list(draw_trials(sound.index, PROTOCOL_WITHIN, way=5, trials=40, seed=1, shots=3))
        recogniser = ModelRecogniser(PixelModel(model), sound.encoded, trials)  # type: ignore[arg-type]
        for trial, logits in zip(trials, recogniser(trials), strict=True):
            query = coarse(sound.encoded(trial.query))
            means = [
                np.mean([coarse(sound.encoded(row)) for row in shots], axis=0)
                for shots in trial.support
            ]
            expected = [3 - np.abs(query - mean).sum() for mean in means]
            np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_more_shots_help_and_a_class_with_too_few_drawings_is_named(
    model: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(images) as archive:
        names = [name for name in archive.namelist() if "character03/0003_02" not in name]
        for name in names:
            archive.extract(name, tmp_path)
    argv = ["--model", model, "--images", tmp_path, "--way", "4", "--trials", "200"]
    _, one, _ = run(capfd, *argv)
    code, three, _ = run(capfd, *argv, "--shots", "3")
    assert code == 0
    assert one["classes_left_out"] == []
    assert three["classes_left_out"] == ["Round/character03", "Square/character03"]
    assert three["shots"] == 3
    assert three["accuracy"] > one["accuracy"]
    code, _, err = run(capfd, *argv, "--shots", "4")
    assert code == 2
    assert "4-way within trials of 4 shots need 4 classes with 5 images each" in err


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("^(0)", "0 are the most that any one group has"),
        ("^(form)", "none of 48 images"),
        ("0", "exactly one group"),
    ],
)
def test_a_pattern_says_who_drew_the_images(
    model: Path, images: Path, capfd: pytest.CaptureFixture[str], pattern: str, said: str
) -> None:
    argv = ["--model", model, "--images", images, "--way", "5", "--trials", "20"]
    assert run(capfd, *argv, "--writer-pattern", r"_(\d+)\.")[0] == 0
    code, _, err = run(capfd, *argv, "--writer-pattern", pattern)
    assert code == 2
    assert said in err


def test_the_classes_that_are_taken_for_each_other_are_named_and_drawn(
    model: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "confusions.png"
    argv = ["--model", model, "--images", images, "--way", "7", "--trials", "210"]
    _, result, _ = run(capfd, *argv, "--confusions", file)
    worst = result["confusions"][0]
    assert tuple(worst["classes"]) == TWINS
    # Each is asked for in each of thirty sets, and the other is always a candidate.
    assert worst["trials"] == 60
    assert 15 < worst["mistakes"] <= 60
    assert {Path(worst[key]).parent.name for key in ("query", "right")} != {
        Path(worst["chosen"]).parent.name
    }
    mistakes = sum(one["mistakes"] for one in result["confusions"])
    assert mistakes == pytest.approx(210 * (1 - result["accuracy"]), abs=5)
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 10


def errors_as_in_the_demonstration(runs: Path, most: int) -> tuple[int, int]:
    """Mistakes and trials of the first runs by Modified Hausdorff distance, the plain way.

    Follows `demo_classification.py`, which comes with Omniglot.
    """
    official = read_official_runs(runs)
    trials = [trial for trial in official.trials if int(trial.trial_id[12:14]) <= most]
    rows = {row for trial in trials for row in trial.images}
    points = {}
    with ImageReader() as reader:
        for row in rows:
            with Image.open(io.BytesIO(reader.read(official.images[row]))) as image:
                inked = np.argwhere(~np.asarray(image.convert("1")))
            points[row] = inked - inked.mean(axis=0)

    def distance(a: int, b: int) -> float:
        apart = np.hypot(*(points[a][:, None] - points[b][None]).transpose(2, 0, 1))
        return max(float(apart.min(axis=0).mean()), float(apart.min(axis=1).mean()))

    nearest = [np.argmin([distance(t.query, row) for (row,) in t.support]) for t in trials]
    wrong = sum(int(at) != t.answer for at, t in zip(nearest, trials, strict=True))
    return wrong, len(trials)


def test_the_published_runs_give_the_published_error_of_the_hausdorff_distance(
    model: Path,
    runs: Path,
    omniglot: Path | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, result, _ = run(capfd, "--model", model, "--official", runs, "--baselines")
    assert code == 0
    assert (result["protocol"], result["seed"], result["shots"]) == ("official", None, 1)
    (row,) = result["results"]
    hausdorff, pixels = row["baselines"]["modified_hausdorff"], row["baselines"]["pixel_1nn"]
    if omniglot is not None:
        assert (row["way"], hausdorff["accuracy_n"], pixels["accuracy_n"]) == (20, 400, 400)
        # 38.8 % in brendenlake/omniglot; pixels as counted for these files.
        assert 1 - hausdorff["accuracy"] == pytest.approx(0.3875)
        assert 1 - pixels["accuracy"] == pytest.approx(0.81)
    else:
        wrong, trials = errors_as_in_the_demonstration(runs, 3)
        assert (row["way"], hausdorff["accuracy_n"]) == (8, trials)
        assert 1 - hausdorff["accuracy"] == pytest.approx(wrong / trials)
        assert hausdorff["accuracy"] > row["chance"]


def test_of_a_folder_of_versions_the_newest_is_taken_and_ink_is_a_drawings(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for version in ("2", "10"):
        (tmp_path / version / EXTRA).mkdir(parents=True)
        (tmp_path / version / "saved_model.pb").touch()
    (tmp_path / "10" / EXTRA / MODEL_CARD).write_text('{"kind": "photo"}')
    few = ["--way", "3", "--trials", "5", "--baselines"]
    code, result, _ = run(capfd, "--model", tmp_path, "--images", images, *few)
    assert (code, result["model"]) == (0, str(tmp_path / "10"))
    assert "modified_hausdorff" not in result["baselines"]
    _, result, _ = run(capfd, "--model", tmp_path / "2", "--images", images, *few)
    assert "modified_hausdorff" in result["baselines"]


def test_the_table_has_a_row_for_each_recogniser_and_way(
    model: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", model, "--images", images, "--way", "3", "6", "--trials", "12"]
    assert main(["evaluate", *map(str, argv), "--baselines"]) == 0
    table = capfd.readouterr().out
    for words, times in (("model  ", 2), ("pixel 1-NN", 2), ("Modified Hausdorff", 2)):
        assert table.count(words) == times
    assert table.count("of 12") == 10
    assert "3-way" in table
    assert "No 6-way trials, for want of classes or of --trials: Square" in table


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--official", "all_runs.zip", "--way", "5"], "--way: the trials of --official"),
        (["--official", "all_runs.zip", "--images", "x"], "not allowed with argument"),
        ([], "one of the arguments --images --official is required"),
        (["--images", "x", "--way", "1"], "expected a number from 2 to 1000"),
        (["--images", "x", "--way", "9..5"], "or a range such as 5..40"),
        (["--images", "x", "--confusions", "x.gif"], "ends in .png"),
        (["--images", "images.zip", "--shots", "0"], "--shots and --trials at least 1"),
        (["--images", "images.zip", "--way", "8"], "7 are the most that any one group has"),
        (["--official", "images.zip"], "holds no one-shot runs"),
        (["--images", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(
    model: Path,
    images: Path,
    argv: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(images.parent)
    code, _, err = run(capfd, "--model", model, *argv)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_folder_without_a_model_is_refused_by_name(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capfd, "--model", tmp_path, "--images", images)
    assert code == 2
    assert "no SavedModel here" in err


@pytest.fixture(scope="module")
def signatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A glyph is a writer's signature; forgeries of it are slanted."""
    path = tmp_path_factory.mktemp("signatures") / "signatures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        glyphs = draw_alphabet(3, characters=6, writers=10, seed=1)
        for writer, drawings in enumerate(glyphs, start=1):
            for number, pixels in enumerate(drawings):
                kind = "genuine" if number < 7 else "forged"
                if kind == "forged":
                    rows = [np.roll(row, (at - 52) // 6) for at, row in enumerate(pixels)]
                    pixels = np.stack(rows)
                archive.writestr(f"w{writer}/{kind}/{number}.png", encode_png(pixels))
    return path


def test_signatures_are_verified_by_several_references_with_either_kind_of_forgery(
    model: Path, signatures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", model, "--images", signatures, "--way", 6, "--trials", 12]
    code, result, err = run(capfd, *argv, "--roc", tmp_path / "roc.png")
    assert code == 0, err
    assert sum(PixelModel.embedded) == 60
    assert result["protocol"] == "between"
    assert result["classes_left_out"] == []
    assert result["results"][0]["groups_without_trials"] == []
    kinds = [(one["references"], one["forgeries"]) for one in result["verification"]]
    assert kinds == [(1, "random"), (1, "skilled"), (5, "random"), (5, "skilled")]
    for at in (0, 2):
        random, skilled = result["verification"][at : at + 2]
        assert random["eer"] < skilled["eer"]
        assert random["eer_ci95"][0] <= random["eer"] <= random["eer_ci95"][1]
        assert (random["writers"], skilled["forged_n"]) == (6, 6 * 3 * 10)
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", *map(str, argv)]) == 0
    shown = capfd.readouterr().out
    assert "between groups" in shown
    assert "Signatures of 6 writers" in shown
    assert "skilled" in shown
    assert "…" not in shown


def test_roc_curves_take_forgeries(
    model: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", model, "--images", images, "--way", 3, "--trials", 3]
    code, _, err = run(capfd, *argv, "--roc", tmp_path / "roc.png")
    assert (code, "has no forgeries" in err) == (2, True)
    assert run(capfd, *argv, "--roc", tmp_path / "roc.pdf")[0] == 2
    assert run(capfd, *argv)[1]["verification"] == []
