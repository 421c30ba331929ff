"""Which folders are versions, which of them are complete or rolled back, and the newest."""

import json
from pathlib import Path

import pytest

from serving.saved_model.contract import (
    EXTRA,
    MODEL_CARD,
    PREPROCESSING_NEWS,
    PREPROCESSING_VERSION,
)
from serving.saved_model.versions import (
    newest_complete,
    numbered,
    outdated,
    rolled_back_versions,
    version_folders,
    versions,
)


def test_only_folders_with_numeric_names_are_versions(tmp_path: Path) -> None:
    for name in ("1", "20", "003", ".4-x", "5a", "-6", "latest", "٧", "99999999999999999999"):
        (tmp_path / name).mkdir()
    (tmp_path / "8").write_text("a file")
    assert version_folders(tmp_path) == {
        1: tmp_path / "1",
        20: tmp_path / "20",
        3: tmp_path / "003",
    }


def test_a_missing_base_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        version_folders(tmp_path / "nowhere")


def test_where_no_model_was_pushed_yet_there_are_no_versions(tmp_path: Path) -> None:
    assert versions(tmp_path / "nowhere") == []
    assert rolled_back_versions(tmp_path / "nowhere") == {}
    assert newest_complete(tmp_path / "nowhere") is None


def test_of_names_with_one_number_the_first_counts() -> None:
    assert numbered(["7", "12", "007", "rolled-back-9"]) == {7: "007", 12: "12"}


def test_versions_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("9", "10", "1", "rolled-back-11", "rolled-back-12b", ".tmp-13"):
        (tmp_path / name).mkdir()
    assert versions(tmp_path) == [1, 9, 10]
    assert rolled_back_versions(tmp_path) == {11: tmp_path / "rolled-back-11"}


def test_the_newest_complete_version_holds_a_saved_model(tmp_path: Path) -> None:
    for name in ("9", "10", "rolled-back-11"):
        (tmp_path / name).mkdir()
    assert newest_complete(tmp_path) is None
    for name in ("9", "rolled-back-11"):
        (tmp_path / name / "saved_model.pb").touch()
    assert newest_complete(tmp_path) == tmp_path / "9"


@pytest.mark.parametrize(
    ("card", "lacking"),
    [
        (json.dumps({"dataset": "omniglot"}), PREPROCESSING_NEWS),
        (json.dumps({"preprocessing_version": PREPROCESSING_VERSION - 1}), PREPROCESSING_NEWS),
        (json.dumps({"preprocessing_version": PREPROCESSING_VERSION}), ""),
        (json.dumps({"preprocessing_version": PREPROCESSING_VERSION + 1}), ""),
        ("[1]", ""),
        ("no JSON", ""),
        (None, ""),
    ],
)
def test_exports_of_earlier_releases_are_told_by_their_cards(
    tmp_path: Path, card: str | None, lacking: str
) -> None:
    if card is not None:
        (tmp_path / EXTRA).mkdir()
        (tmp_path / EXTRA / MODEL_CARD).write_text(card)
    assert outdated(tmp_path) == lacking
