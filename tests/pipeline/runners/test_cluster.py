"""Paths here, and as the containers of a cluster see them."""

from pathlib import Path

import pytest

from data_ingest.errors import InputError
from data_ingest.sources.dataset import Dataset
from pipeline.runners.cluster import PathMap


def dataset(base: str, **inputs: str) -> Dataset:
    return Dataset("folder", Path(base), inputs, "")


def test_a_path_map_moves_what_is_below_it_and_back() -> None:
    paths = PathMap.parse("/home/me/data=/mnt/oneshot")
    moved = paths.to_cluster(dataset("/home/me/data/omniglot", background="images_background.zip"))
    assert moved.base == Path("/mnt/oneshot/omniglot")
    assert moved.inputs == {"background": "images_background.zip"}
    assert paths.from_cluster(Path("/mnt/oneshot/output")) == Path("/home/me/data/output")


def test_a_folder_of_ones_own_images_may_be_named_itself() -> None:
    moved = PathMap.parse("/home/me/faces=/mnt/all").to_cluster(dataset("/home/me", images="faces"))
    assert (moved.base, moved.inputs) == (Path("/mnt"), {"images": "all"})


def test_a_relative_folder_here_is_one_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moved = PathMap.parse("./omniglot=/mnt/x").to_cluster(dataset(f"{tmp_path}/omniglot", a="b"))
    assert moved.base == Path("/mnt/x")


def test_without_a_map_paths_are_the_same() -> None:
    assert PathMap.parse(None).to_cluster(dataset("/mnt/a", images="b")).base == Path("/mnt/a")


@pytest.mark.parametrize("text", ["/here", "=/there", "/here=there", "/here="])
def test_a_map_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="HERE=THERE"):
        PathMap.parse(text)


def test_images_outside_of_the_map_are_refused() -> None:
    paths = PathMap.parse("/home/me/data=/mnt")
    with pytest.raises(InputError, match="/elsewhere"):
        paths.to_cluster(dataset("/elsewhere", images="x"))
    with pytest.raises(InputError, match="/other"):
        paths.from_cluster(Path("/other/output"))
