import errno
import logging
import os
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from data_ingest.errors import InputError
from data_ingest.settings import DatasetSettings
from data_ingest.sources.dataset import Dataset
from data_ingest.sources.glyphs import write_glyphs
from data_ingest.sources.resolve import find, resolve

OFFLINE = {"download_url": "http://127.0.0.1:1/", "connect_timeout_seconds": 1.0}
SMALL = {
    "synthetic_alphabets": 2,
    "synthetic_evaluation_alphabets": 1,
    "synthetic_characters": 3,
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small stand-ins for all of Omniglot's archives."""
    folder = tmp_path_factory.mktemp("archives")
    for number, name in enumerate(
        ("background", "background_small1", "background_small2", "evaluation"), start=1
    ):
        write_glyphs(
            folder / f"images_{name}.zip",
            alphabets=2,
            characters=2,
            writers=2,
            seed=1,
            first_alphabet=number * 10,
        )
    with zipfile.ZipFile(folder / "all_runs.zip", "w") as runs:
        runs.writestr("run01/class_labels.txt", "")
        runs.writestr("run01/training/class01.png", b"")
        runs.writestr("run01/test/item01.png", b"")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> DatasetSettings:
    return DatasetSettings(cache_dir=tmp_path / "cache", **OFFLINE, **SMALL)


def where(
    settings: DatasetSettings,
    tmp_path: Path,
    *,
    data: Path | None = None,
    environ: dict[str, str] | None = None,
    **changes: object,
) -> Dataset:
    changed = DatasetSettings.model_validate({**settings.model_dump(), **changes})
    return resolve(changed, data=data, environ=environ or {}, synthetic_dir=tmp_path / "synthetic")


def own_images(root: Path, archives: Path) -> Path:
    with zipfile.ZipFile(archives / "images_background.zip") as archive:
        for member in archive.namelist():
            path = root / member.removeprefix("images_background/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(member))
    return root


def test_a_folder_with_omniglots_archives_is_read_in_place(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    dataset = where(settings, tmp_path, data=archives)
    assert (dataset.source, dataset.base) == ("omniglot", archives)
    assert dataset.inputs == {
        "background": "images_background.zip",
        "evaluation": "images_evaluation.zip",
        "runs": "all_runs.zip",
    }


@pytest.mark.parametrize(
    ("background", "files"),
    [
        ("small1", ["images_background_small1.zip"]),
        ("small2", ["images_background_small2.zip"]),
        ("small1+small2", ["images_background_small1.zip", "images_background_small2.zip"]),
    ],
)
def test_the_small_background_sets_can_be_chosen(
    settings: DatasetSettings, tmp_path: Path, archives: Path, background: str, files: list[str]
) -> None:
    dataset = where(settings, tmp_path, data=archives, background=background)
    assert [path.name for path in dataset.containers()["background"]] == files


def test_unpacked_archives_are_found_too_and_the_runs_are_optional(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    for name in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(archives / f"{name}.zip") as archive:
            archive.extractall(tmp_path / "unpacked" / "python")
    dataset = where(settings, tmp_path, data=tmp_path / "unpacked")
    assert dataset.base == tmp_path / "unpacked" / "python"
    assert dataset.inputs == {"background": "images_background", "evaluation": "images_evaluation"}


def test_an_incomplete_omniglot_is_refused_by_the_name_of_what_is_missing(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    shutil.copy(archives / "images_background_small1.zip", folder)
    with pytest.raises(InputError, match=r"images_background\.zip and images_evaluation\.zip"):
        where(settings, tmp_path, data=folder)


def test_the_argument_goes_before_the_setting_and_the_setting_before_the_environment(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    places = [own_images(tmp_path / name, archives) for name in ("argument", "setting", "environ")]
    argument, setting, environment = places
    environ = {"OMNIGLOT_DIR": str(environment)}
    assert where(settings, tmp_path, environ=environ).inputs == {"images": "environ"}
    named = settings.model_copy(update={"data": setting})
    assert where(named, tmp_path, environ=environ).inputs == {"images": "setting"}
    assert where(named, tmp_path, data=argument, environ=environ).inputs == {"images": "argument"}


@pytest.mark.parametrize("source", ["auto", "folder"])
def test_ones_own_images_are_taken_from_a_folder_or_a_zip(
    settings: DatasetSettings, tmp_path: Path, archives: Path, source: str
) -> None:
    folder = own_images(tmp_path / "own", archives)
    from_folder = where(settings, tmp_path, data=folder, source=source)
    assert (from_folder.source, from_folder.base) == ("folder", tmp_path)
    zipped = archives / "images_evaluation.zip"
    from_zip = where(settings, tmp_path, data=zipped, source=source)
    assert (from_zip.source, from_zip.inputs) == ("folder", {"images": "images_evaluation.zip"})


def photos(root: Path) -> Path:
    for number in range(12):
        folder = root / f"person{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((60, 80), 90).save(folder / f"{number}.png")
    return root


def test_the_kind_of_ones_own_images_is_told_by_their_looks(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    dataset = where(settings, tmp_path, data=photos(tmp_path / "people"))
    assert dataset.kind == "photo"
    told = (
        f"images in {tmp_path / 'people'} (--data); photographs (mid-tones up to the border in 12 "
        "of 12 images looked at; dataset.kind overrules it)"
    )
    assert dataset.description == find(settings, data=tmp_path / "people", environ={}) == told
    own = where(settings, tmp_path, data=own_images(tmp_path / "own", archives))
    assert own.kind == "drawing"
    assert "; drawings (ink on plain paper in 8 of 8 images looked at" in own.description


def test_a_kind_that_is_asked_for_overrules_how_images_look(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    people = photos(tmp_path / "people")
    for place, kind in ((people, "signature"), (people, "drawing"), (archives, "photo")):
        dataset = where(settings, tmp_path, data=place, kind=kind)
        assert dataset.kind == kind
        assert dataset.description.endswith("s (dataset.kind)")


def test_omniglot_and_generated_glyphs_are_drawings_without_a_look(
    settings: DatasetSettings, tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_ingest.sources.resolve.kind_of", None)
    for data, source in ((archives, "auto"), (None, "synthetic")):
        dataset = where(settings, tmp_path, data=data, source=source)
        assert dataset.kind == "drawing"
        assert "dataset.kind" not in dataset.description


@pytest.mark.parametrize("source", ["auto", "omniglot", "folder"])
def test_a_named_place_that_is_missing_is_an_error_and_never_a_fallback(
    settings: DatasetSettings, tmp_path: Path, source: str
) -> None:
    with pytest.raises(InputError, match=r"--data: .*/nowhere does not exist"):
        where(settings, tmp_path, data=tmp_path / "nowhere", source=source)
    assert not (tmp_path / "synthetic").exists()


def test_a_missing_omniglot_dir_is_an_error(settings: DatasetSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"OMNIGLOT_DIR: .*/nowhere does not exist"):
        where(settings, tmp_path, environ={"OMNIGLOT_DIR": str(tmp_path / "nowhere")})


def test_a_named_place_that_is_unusable_is_an_error(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is empty"):
        where(settings, tmp_path, data=tmp_path / "empty")
    broken = tmp_path / "broken"
    shutil.copytree(archives, broken)
    (broken / "images_evaluation.zip").write_bytes(b"PK, but no more")
    with pytest.raises(InputError, match=r"images_evaluation\.zip cannot be read"):
        where(settings, tmp_path, data=broken)


def test_wildcards_in_a_path_are_refused_because_tfx_would_expand_them(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    folder = own_images(tmp_path / "scans [2020]", archives)
    with pytest.raises(InputError, match="rename it"):
        where(settings, tmp_path, data=folder)
    with pytest.raises(InputError, match=r"scans\\udcff' is not UTF-8.*rename it"):
        where(settings, tmp_path, data=tmp_path / os.fsdecode(b"scans\xff"))


def test_contradicting_or_incomplete_choices_are_refused(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    with pytest.raises(InputError, match="contradict"):
        where(settings, tmp_path, data=archives, source="synthetic")
    with pytest.raises(InputError, match="name it with --data"):
        where(settings, tmp_path, source="folder", environ={"OMNIGLOT_DIR": str(archives)})
    with pytest.raises(InputError, match="does not hold Omniglot"):
        where(settings, tmp_path, data=own_images(tmp_path / "own", archives), source="omniglot")


@pytest.fixture
def mirror(archives: Path, tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "mirror"
    shutil.copytree(archives, root)
    (root / "one-shot-classification").mkdir()
    (root / "all_runs.zip").rename(root / "one-shot-classification" / "all_runs.zip")
    handler = partial(SimpleHTTPRequestHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_download_whose_md5_is_wrong_is_not_used(
    settings: DatasetSettings, tmp_path: Path, mirror: str
) -> None:
    with pytest.raises(InputError, match="md5"):
        where(settings, tmp_path, source="omniglot", download_url=mirror)


def test_downloads_are_cached_and_then_need_no_network(
    settings: DatasetSettings, tmp_path: Path, mirror: str, archives: Path
) -> None:
    cache = tmp_path / "cache" / "omniglot"
    cache.mkdir(parents=True)
    shutil.copy(archives / "images_evaluation.zip", cache)
    first = where(settings, tmp_path, download_url=mirror, background="small1")
    second = where(settings, tmp_path, background="small1")
    assert first == second
    assert (first.source, first.base) == ("omniglot", cache)
    assert set(first.inputs) == {"background", "evaluation", "runs"}


def test_a_cache_that_cannot_be_written_is_named_with_what_to_do(
    settings: DatasetSettings, tmp_path: Path, mirror: str
) -> None:
    (tmp_path / "cache").write_text("in the way of a folder")
    with pytest.raises(InputError, match=r"dataset\.cache_dir: .*tmp.*: set it to a folder"):
        where(settings, tmp_path, download_url=mirror, background="small1")


def test_a_read_only_cache_without_the_runs_is_used_as_it_is(
    settings: DatasetSettings,
    tmp_path: Path,
    mirror: str,
    archives: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "cache")

    shutil.copytree(archives, tmp_path / "cache" / "omniglot")
    (tmp_path / "cache/omniglot/all_runs.zip").unlink()
    monkeypatch.setattr("data_ingest.sources.resolve.download", refuse)
    dataset = where(settings, tmp_path, download_url=mirror)
    assert set(dataset.inputs) == {"background", "evaluation"}


def test_a_home_that_nobody_knows_is_told(
    settings: DatasetSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    with pytest.raises(InputError, match=r"~/images: .*: set HOME"):
        where(settings, tmp_path, data=Path("~/images"))


def test_a_cache_without_the_runs_is_enough_when_there_is_no_network(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    shutil.copytree(archives, tmp_path / "cache" / "omniglot")
    (tmp_path / "cache/omniglot/all_runs.zip").unlink()
    dataset = where(settings, tmp_path)
    assert (dataset.source, set(dataset.inputs)) == ("omniglot", {"background", "evaluation"})


def test_without_images_or_network_glyphs_are_generated_with_a_loud_warning(
    settings: DatasetSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        dataset = where(settings, tmp_path, environ={"OMNIGLOT_DIR": ""})
    assert dataset.source == "synthetic"
    assert set(dataset.inputs) == {"background", "evaluation"}
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "GENERATED" in warning.getMessage()
    assert len(warning.getMessage().splitlines()) > 5


def test_a_network_that_never_answers_is_given_up_within_ten_seconds(
    settings: DatasetSettings, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        dataset = where(settings, tmp_path, download_url=url)
        assert time.monotonic() - started < 10
    assert dataset.source == "synthetic"


def test_omniglot_asked_for_but_not_to_be_had_is_an_error(
    settings: DatasetSettings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"nowhere to be had.*--data DIR"):
        where(settings, tmp_path, source="omniglot")
    assert not (tmp_path / "synthetic").exists()


def test_generated_glyphs_are_kept_and_made_again_only_for_other_settings(
    settings: DatasetSettings, tmp_path: Path
) -> None:
    first = where(settings, tmp_path, source="synthetic")
    times = {path: path.stat().st_mtime_ns for path in first.base.iterdir()}
    again = where(settings, tmp_path, source="synthetic")
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in again.base.iterdir()} == times
    other = where(settings, tmp_path, source="synthetic", synthetic_seed=2)
    assert other.base != first.base
    assert other.fingerprint() != first.fingerprint()


def test_no_generated_alphabet_is_in_both_sets(settings: DatasetSettings, tmp_path: Path) -> None:
    dataset = where(settings, tmp_path, source="synthetic")
    groups = []
    for name in dataset.inputs.values():
        with zipfile.ZipFile(dataset.base / name) as archive:
            groups.append({member.split("/")[1] for member in archive.namelist()})
    assert groups[0].isdisjoint(groups[1])


def test_the_fingerprint_follows_the_contents_and_not_the_place(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    shutil.copytree(archives, tmp_path / "moved")
    here = where(settings, tmp_path, data=archives)
    there = where(settings, tmp_path, data=tmp_path / "moved")
    assert here.fingerprint() == there.fingerprint()
    with zipfile.ZipFile(tmp_path / "moved" / "images_evaluation.zip", "a") as archive:
        archive.writestr("images_evaluation/New/character01/0001_01.png", b"")
    assert here.fingerprint() != there.fingerprint()


def test_the_fingerprint_of_a_folder_notices_a_changed_image_deep_inside(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    dataset = where(settings, tmp_path, data=own_images(tmp_path / "own", archives))
    before = dataset.fingerprint()
    assert dataset.fingerprint() == before
    image = next((tmp_path / "own").rglob("*.png"))
    os.utime(image, ns=(1, 1))
    assert dataset.fingerprint() != before


def test_a_pattern_with_spans_stays_a_pattern_and_means_the_latest(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    for span in ("2", "10", "9"):
        own_images(tmp_path / "arrivals" / f"span-{span}" / "images", archives)
    pattern = tmp_path / "arrivals" / "span-{SPAN}" / "images"
    dataset = where(settings, tmp_path, data=pattern)
    assert dataset.base == tmp_path / "arrivals"
    assert dataset.inputs == {"images": "span-{SPAN}/images"}
    assert dataset.containers() == {"images": [tmp_path / "arrivals" / "span-10" / "images"]}
    before = dataset.fingerprint()
    own_images(tmp_path / "arrivals" / "span-11" / "images", archives)
    (next((tmp_path / "arrivals/span-11").rglob("*.png"))).unlink()
    assert dataset.fingerprint() != before


def test_find_says_where_images_would_come_from_and_makes_nothing(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    assert str(archives) in find(settings, data=archives, environ={})
    said = find(settings, data=None, environ={})
    assert "to be downloaded from http://127.0.0.1:1/" in said
    assert "generated glyphs" in said
    synthetic = settings.model_copy(update={"source": "synthetic"})
    assert find(synthetic, data=None, environ={}) == "generated glyphs"
    with pytest.raises(InputError, match="OMNIGLOT_DIR"):
        find(settings, data=None, environ={"OMNIGLOT_DIR": str(tmp_path / "nowhere")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [{"sorce": "auto"}, {"source": "web"}, {"max_rejected_share": 2}, {"synthetic_alphabets": 0}],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DatasetSettings.model_validate(wrong)


def test_settings_survive_the_way_through_json(tmp_path: Path) -> None:
    settings = DatasetSettings(data=tmp_path / "span-{SPAN}", background="small1+small2")
    assert DatasetSettings.model_validate_json(settings.model_dump_json()) == settings


def test_a_link_stands_in_for_a_folder_whose_name_has_wildcards(
    settings: DatasetSettings, tmp_path: Path, archives: Path
) -> None:
    (tmp_path / "link").symlink_to(own_images(tmp_path / "scans [2020]", archives))
    assert where(settings, tmp_path, data=tmp_path / "link").inputs == {"images": "link"}
