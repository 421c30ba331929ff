from pathlib import Path

import pytest

from data_ingest.errors import InputError
from data_ingest.sampling.official_runs import read_official_runs
from tests.data_ingest.tiny_images import read_image, runs_tree, write_folder, write_zip


def test_a_zip_gives_every_trial_with_its_images(tmp_path: Path) -> None:
    files = runs_tree(runs=3, way=4)
    official = read_official_runs(write_zip(tmp_path / "all_runs.zip", files))
    assert len(official.trials) == 12
    assert {trial.way for trial in official.trials} == {4}
    trial = official.trials[5]
    assert trial.trial_id == "official/run02/item02"
    query = official.images[trial.query]
    assert (query.group, query.class_name, query.writer) == ("run02", "run02/class03", 0)
    assert official.images[trial.support[trial.answer][0]].class_name == "run02/class03"
    classes = [official.images[at].class_name for (at,) in trial.support]
    assert classes == [f"run02/class{number:02d}" for number in range(1, 5)]
    assert read_image(query) == files["run02/test/item02.png"]


def test_the_answers_of_a_run_are_at_different_positions(tmp_path: Path) -> None:
    official = read_official_runs(write_zip(tmp_path / "r.zip", runs_tree(runs=1, way=4)))
    assert [trial.answer for trial in official.trials] == [3, 2, 1, 0]


@pytest.mark.parametrize("root", ["", "all_runs/"])
def test_a_folder_and_a_zip_hold_the_same_trials(tmp_path: Path, root: str) -> None:
    files = runs_tree(runs=2, way=3, root=root)
    folder = read_official_runs(write_folder(tmp_path / "folder", files))
    archive = read_official_runs(write_zip(tmp_path / "runs.zip", files))
    assert folder.trials == archive.trials
    assert [image.member for image in folder.images] == [image.member for image in archive.images]


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    files = runs_tree(runs=1, way=3)
    files["run01/training/.DS_Store"] = b"x"
    files["__MACOSX/run01/training/class01.png"] = b"x"
    official = read_official_runs(write_zip(tmp_path / "runs.zip", files))
    assert len(official.images) == 6


LABELS = "run01/class_labels.txt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({LABELS: None}, r"runs\.zip holds no one-shot runs: expected run01/class_labels\.txt"),
        ({LABELS: b""}, "class_labels.txt is empty"),
        ({LABELS: b"run01/test/item01.png\n"}, "line 1: expected a test image and a training"),
        (
            {LABELS: b"run01/test/item09.png run01/training/class01.png"},
            "line 1: there is no test image run01/test/item09.png",
        ),
        (
            {LABELS: b"run01/test/item01.png run01/training/class09.png"},
            "line 1: there is no training image run01/training/class09.png",
        ),
        (
            {LABELS: b"run01/test/item01.png run01/training/class01.png\n" * 2},
            "line 2: run01/test/item01.png is listed twice",
        ),
        (
            {f"run01/training/class{number:02d}.png": None for number in (1, 2)},
            "run01/training holds 1 images, at least 2",
        ),
    ],
)
def test_a_malformed_run_is_refused_by_name(
    tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    files: dict[str, bytes | None] = {**runs_tree(runs=1, way=3), **change}
    kept = {name: data for name, data in files.items() if data is not None}
    with pytest.raises(InputError, match=message):
        read_official_runs(write_zip(tmp_path / "runs.zip", kept))


def test_an_unreadable_zip_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "all_runs.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match=r"all_runs\.zip cannot be read"):
        read_official_runs(path)
