import errno
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_ingest.errors import InputError, ReadError
from data_ingest.sources import layout
from data_ingest.sources.glyphs import encode_png
from data_ingest.sources.images import MAX_FILE_BYTES
from data_ingest.sources.kinds import Form
from data_ingest.sources.layout import (
    ImageFile,
    ImageReader,
    UnreadableImageError,
    list_images,
    look_over,
)
from tests.data_ingest.tiny_images import read_image


def png(side: int = 8) -> bytes:
    return encode_png(np.eye(side, dtype=np.bool_))


def picture(form: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(stream, form)
    return stream.getvalue()


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def make_folder(root: Path, members: dict[str, bytes]) -> Path:
    for name, data in members.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


OMNIGLOT_LIKE = {
    "images_background/Greek/character01/0394_07.png": png(),
    "images_background/Greek/character02/0395_20.png": png(),
    "images_background/Latin/character01/0683_01.png": png(),
}


def test_omniglots_layout_gives_group_class_and_drawer(tmp_path: Path) -> None:
    images = list_images(make_zip(tmp_path / "images_background.zip", OMNIGLOT_LIKE))
    assert [(i.group, i.class_name, i.writer) for i in images] == [
        ("Greek", "Greek/character01", 7),
        ("Greek", "Greek/character02", 20),
        ("Latin", "Latin/character01", 1),
    ]


def test_a_zip_and_the_folder_unpacked_from_it_list_the_same_images(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", OMNIGLOT_LIKE)
    folder = make_folder(tmp_path / "b", OMNIGLOT_LIKE)
    assert [i.uri for i in list_images(archive)] == [i.uri for i in list_images(folder)]
    for image in [*list_images(archive), *list_images(folder)]:
        assert read_image(image) == png()


def test_classes_without_groups_have_an_empty_group_and_no_known_writer(tmp_path: Path) -> None:
    images = list_images(
        make_folder(tmp_path, {"digit3/a.PNG": png(), "digit4/b.jpeg": png(), "notes.txt": b"x"})
    )
    assert [(i.group, i.class_name, i.writer, i.uri) for i in images] == [
        ("", "digit3", 0, "digit3/a.PNG"),
        ("", "digit4", 0, "digit4/b.jpeg"),
    ]


def test_hidden_files_and_macos_leftovers_are_ignored(tmp_path: Path) -> None:
    images = list_images(
        make_zip(
            tmp_path / "a.zip",
            {
                "a/b/1.png": png(),
                "__MACOSX/a/b/._1.png": b"",
                ".hidden/2.png": b"",
                "a/b/._1.png": b"",
            },
        )
    )
    assert [i.uri for i in images] == ["a/b/1.png"]


def test_an_image_shared_by_two_archives_has_the_same_uri_in_both(tmp_path: Path) -> None:
    first = make_zip(tmp_path / "small1.zip", {"small1/Greek/character01/0394_07.png": png()})
    second = make_zip(tmp_path / "small2.zip", {"small2/Greek/character01/0394_07.png": png()})
    assert list_images(first)[0].uri == list_images(second)[0].uri


names = st.text("abcdefgh", min_size=1, max_size=3)


@given(
    leading=st.lists(names, max_size=3),
    tails=st.sets(st.tuples(names, names, names), min_size=1, max_size=6),
)
def test_leading_folders_never_change_what_is_listed(
    tmp_path_factory: pytest.TempPathFactory,
    leading: list[str],
    tails: set[tuple[str, str, str]],
) -> None:
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    prefix = "".join(f"{name}/" for name in leading)
    images = list_images(make_zip(path, {f"{prefix}{a}/{b}/{c}.png": b"" for a, b, c in tails}))
    assert {(i.class_name, i.uri) for i in images} == {
        (f"{a}/{b}", f"{a}/{b}/{c}.png") for a, b, c in tails
    }
    assert len({i.uri for i in images}) == len(images)
    assert images == sorted(images) == pickle.loads(pickle.dumps(images))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "is empty"),
        ({"a/b/readme.txt": b"", "a/b/c.zip": b""}, r"no images.*\.txt.*zips inside it are not"),
        ({"readme": b"", "a/b/c.xcf": b""}, "different depths, such as readme"),
        ({"a/b/1.png": b"", "a/b/x\\y": b""}, "unsafe file name"),
        ({"a/1.png": b"", "a/b/2.png": b""}, "different depths, such as a/1.png and a/b/2.png"),
        ({"1.png": b""}, "outside any class folder, such as 1.png"),
        ({"x/a/b/1.png": b"", "y/a/b/2.png": b""}, "too deep, such as x/a/b/1.png"),
        ({"a/../../b/1.png": b""}, "unsafe file name"),
        ({"/etc/b/1.png": b""}, "unsafe file name"),
        ({"a\\b\\1.png": b""}, "unsafe file name"),
    ],
)
def test_an_unusable_layout_is_refused_with_the_file_and_the_reason(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    path = make_zip(tmp_path / "own.zip", members)
    with pytest.raises(InputError, match=f"own.zip.*{message}"):
        list_images(path)


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        list_images(tmp_path / "nowhere")


def test_a_zip_cut_short_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "cut.zip", OMNIGLOT_LIKE)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cut\.zip cannot be read as a zip archive"):
        list_images(path)


def test_a_password_protected_zip_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "locked.zip", {"a/b/1.png": png()})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="protected by a password"):
        list_images(path)


def test_undecodable_file_names_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a/b/" + os.fsdecode(b"\xff.png"): png()})
    with pytest.raises(InputError, match="unsafe file name"):
        list_images(tmp_path)


def test_a_damaged_or_missing_member_is_unreadable_and_the_others_are_not(tmp_path: Path) -> None:
    good, bad = encode_png(np.eye(9, dtype=np.bool_)), b"\x89PNG" + bytes(range(200))
    path = make_zip(tmp_path / "a.zip", {"a/b/1.png": good, "a/b/2.png": bad})
    path.write_bytes(path.read_bytes().replace(bytes(range(200)), bytes(200)))
    missing = ImageFile("a", "a/b", 0, str(path), "a/b/3.png")
    with ImageReader() as reader:
        sound = list(reader.sound([*list_images(path), missing], rejected := []))
        with pytest.raises(UnreadableImageError, match=r"a/b/3\.png"):
            reader.read(missing)
    assert sound == [(0, list_images(path)[0], good)]
    assert rejected == [(list_images(path)[1], "unreadable"), (missing, "unreadable")]


def test_a_dangling_link_counts_as_one_unreadable_image(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a/b/1.png": png()})
    (tmp_path / "a" / "b" / "2.png").symlink_to(tmp_path / "nowhere")
    with ImageReader() as reader:
        sound = list(reader.sound(list_images(tmp_path), rejected := []))
    assert [file.member for _, file, _ in sound] == ["a/b/1.png"]
    assert [(bad.member, reason) for bad, reason in rejected] == [("a/b/2.png", "unreadable")]


def test_no_more_of_a_huge_member_is_read_than_needed_to_reject_it(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b/1.png", png() + bytes(2 * MAX_FILE_BYTES))
    (image,) = list_images(path)
    with ImageReader() as reader:
        assert len(reader.read(image)) == MAX_FILE_BYTES + 1
        assert not list(reader.sound([image], rejected := []))
    assert rejected == [(image, "too large")]


def test_images_are_known_by_their_content_and_what_lies_among_them_counts(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path,
        {
            "README": b"",
            "data/Greek/labels.xcf": b"",
            "data/Greek/alpha/1.png": picture("WEBP"),
            "data/Greek/alpha/2": png(9),
            "data/Greek/alpha/3.dat": png(10),
            "data/Greek/alpha/4.xcf": b"gimp xcf v011",
            "data/Greek/alpha/5.bmp": picture("BMP"),
            "data/Greek/alpha/Thumbs.db": b"x",
            "data/Greek/alpha/desktop.ini": b"x",
            "data/Greek/alpha/1.JSON": b"{}",
            "data/Greek/alpha/Icon\r": b"",
            "data/Greek/alpha/._1.png": b"x",
        },
    )
    with ImageReader() as reader:
        sound = list(reader.sound(list_images(folder), rejected := []))
    names = [f"Greek/alpha/{name}" for name in ("1.png", "2", "3.dat", "5.bmp")]
    assert [file.uri for _, file, _ in sound] == names
    assert [(file.uri, reason) for file, reason in rejected] == [
        ("Greek/alpha/4.xcf", "not an image")
    ]


def test_a_folder_without_any_endings_is_listed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a/b/1": png(8), "a/c/2": png(9)})
    assert [file.uri for file in list_images(folder)] == ["a/b/1", "a/c/2"]


def test_people_are_told_what_is_ignored_or_odd_and_which_classes_are_spelt_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = make_folder(tmp_path / "1", {"A/x.png": b"", "A/y.txt": b"", "A/z.xcf": b""})
    second = make_folder(tmp_path / "2", {"a/x.png": b"", "readme.TXT": b"", "b/x.png": b""})
    with caplog.at_level("INFO"):
        assert len(look_over([first, second])) == 4
    assert caplog.messages == [
        "Ignored, because not named as images: 2 x .txt",
        "Not named as images, but looked at: 1 x .xcf",
        "Classes told apart though only case differs: A and a",
    ]


def test_two_spellings_of_one_name_in_unicode_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    tree = {f"{composed}/{composed}/1.png": png(8), f"{decomposed}/{decomposed}/2.png": png(9)}
    for place in (make_folder(tmp_path / "folder", tree), make_zip(tmp_path / "a.zip", tree)):
        images = list_images(place)
        assert {(file.group, file.class_name) for file in images} == {
            (composed, f"{composed}/{composed}")
        }
        with ImageReader() as reader:
            assert {data for _, _, data in reader.sound(images)} == {png(8), png(9)}


def test_brackets_newlines_and_other_odd_letters_in_names_are_taken_as_they_are(
    tmp_path: Path,
) -> None:
    tree = {f"[a-z]*/x?\n/{name}.png": png(8) for name in ("1", "[2]", "3\n", "\u202e4")}
    for place in (make_folder(tmp_path / "{x} [1]", tree), make_zip(tmp_path / "[1].zip", tree)):
        with ImageReader() as reader:
            assert len(list(reader.sound(list_images(place)))) == 4


def test_more_zips_than_files_may_be_open_are_all_read(tmp_path: Path) -> None:
    for day in range(150):
        make_zip(tmp_path / f"{day:03d}.zip", {"a/b/1.png": png()})
    program = """
import resource, sys
from pathlib import Path
from data_ingest.sources.layout import ImageReader, list_images
files = [file for path in sorted(Path(sys.argv[1]).iterdir()) for file in list_images(path)]
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
with ImageReader() as reader:
    print(len(list(reader.sound(files + files, rejected := []))), len(rejected))
"""
    for limit in (120, 40):
        command = [sys.executable, "-c", program, str(tmp_path), str(limit)]
        assert subprocess.check_output(command, text=True).split() == ["300", "0"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "its disk or network share"),
        (errno.ESTALE, "its disk or network share"),
        (errno.ENOMEM, "free some memory"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_what_is_wrong_with_the_machine_stops_and_is_not_held_against_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str, packed: bool
) -> None:
    tree = {"a/b/1.png": png()}
    place = (make_zip if packed else make_folder)(tmp_path / "place", tree)
    files = list_images(place)

    def fail(*args: object, **kwargs: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((zipfile.ZipExtFile, "read") if packed else (Path, "open")), fail)
    told = rf"place/a/b/1\.png: {os.strerror(number)}: .*{advice}.*, and run the command again$"
    with ImageReader() as reader, pytest.raises(ReadError, match=told) as error:
        list(reader.sound(files))
    assert error.value.errno == number


def test_too_little_memory_to_decode_an_image_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes, form: Form) -> bytes:
        raise MemoryError

    monkeypatch.setattr(layout, "stored_form", fail)
    folder = make_folder(tmp_path, {"a/b/1.png": png()})
    with ImageReader() as reader, pytest.raises(ReadError, match=r"1\.png: .*free some memory"):
        list(reader.sound(list_images(folder)))


def test_an_image_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    folder = make_folder(tmp_path, {"a/b/1.png": png()})
    files = list_images(folder)
    monkeypatch.setattr(Path, "open", fail)
    with ImageReader() as reader, pytest.raises(InputError, match=r"1\.png may not be read"):
        list(reader.sound(files))


def test_a_zip_that_vanishes_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", OMNIGLOT_LIKE)
    files = list_images(path)
    path.unlink()
    with ImageReader() as reader, pytest.raises(InputError, match=r"a\.zip does not exist"):
        list(reader.sound(files))
