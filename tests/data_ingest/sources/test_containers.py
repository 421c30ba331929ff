import bz2
import errno
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_ingest.errors import InputError, ReadError
from data_ingest.sources.containers import list_members, open_zip
from data_ingest.sources.layout import ImageReader, list_images
from tests.data_ingest.tiny_images import png, write_folder

UTF8_FLAG = 0x800


def foreign_zip(path: Path, files: dict[bytes, bytes], *, system: int) -> Path:
    """A zip whose names are these bytes and not said to be UTF-8."""
    plain = {name: "".join(chr(byte) if byte < 128 else "?" for byte in name) for name in files}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(plain[name])
            entry.create_system = system
            archive.writestr(entry, data)
    content = path.read_bytes()
    for name in files:
        assert content.count(plain[name].encode()) == 2
        content = content.replace(plain[name].encode(), name)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("system", "name", "seen"),
    [
        (0, rb"Greek\alpha\1.png", "Greek/alpha/1.png"),
        (0, "Буквы/аз/1.png".encode(), "Буквы/аз/1.png"),
        (3, "Буквы/аз/1.png".encode(), "Буквы/аз/1.png"),
        (0, "Schrift\\groß\\1.png".encode("cp437"), "Schrift/groß/1.png"),
        (0, "Буквы/аз/1.png".encode("cp866"), "Буквы/аз/1.png".encode("cp866").decode("cp437")),
    ],
    ids=["backslashes", "UTF-8 of Windows", "UTF-8 of macOS", "CP437", "another code page"],
)
def test_names_are_read_as_their_systems_write_them(
    tmp_path: Path, system: int, name: bytes, seen: str
) -> None:
    data = png("one")
    path = foreign_zip(tmp_path / "a.zip", {name: data}, system=system)
    (image,) = list_images(path)
    assert image.member == seen
    assert image.class_name == seen.rpartition("/")[0]
    with ImageReader() as reader:
        assert reader.image(image) == data


def test_a_name_that_says_it_is_utf8_and_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ä/b/1.png", png("one"))
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xfe"))
    with pytest.raises(InputError, match=r"a\.zip cannot be read as a zip archive"):
        list_members(path)


def listed(path: Path, field: int, fmt: str, *values: int) -> Path:
    """Sets a field of the last entry in a zip's table of contents."""
    data = bytearray(path.read_bytes())
    struct.pack_into(fmt, data, data.rindex(b"PK\x01\x02") + field, *values)
    path.write_bytes(data)
    return path


def write_entry(path: Path, name: str = "a/b/2.png", data: bytes = b"", *, mode: int = 0) -> Path:
    """A zip of an image and of this entry."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b/1.png", png("one"))
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, data)
    return path


def with_method(number: int) -> Callable[[Path], Path]:
    return lambda path: listed(write_entry(path), 10, "<H", number)


def bzip2_of_much_more(path: Path) -> Path:
    """Sixteen million bytes in under a hundred; its headers claim ten."""
    packed = bz2.compress(bytes(2**24))
    assert len(packed) < 100
    write_entry(path, data=packed)
    return listed(listed(path, 10, "<H", zipfile.ZIP_BZIP2), 24, "<L", 10)


def overlapping(path: Path) -> Path:
    """Both entries are the same bytes, of which the second says that it has more."""
    write_entry(path, data=bytes(1000))
    return listed(path, 20, "<L", 2000)


def twice(path: Path) -> Path:
    with (
        zipfile.ZipFile(write_entry(path), "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("a/b/2.png", png("two"))
    return path


@pytest.mark.parametrize(
    ("craft", "message"),
    [
        (with_method(9), r"a/b/2\.png is packed by a method .*9; 9 is Deflate64.*unpack it"),
        (with_method(14), r"a/b/2\.png is packed by a method .*14; .*14 LZMA"),
        (bzip2_of_much_more, r"a/b/2\.png is packed by a method .*12; .*12 bzip2"),
        (lambda path: listed(write_entry(path), 8, "<H", 1), r"a/b/2\.png is protected by a pass"),
        (
            lambda path: write_entry(path, data=b"/etc/passwd", mode=stat.S_IFLNK | 0o777),
            r"a/b/2\.png is a link, which is not followed in a zip",
        ),
        (overlapping, r"has 1,\d\d\d bytes, and its files 2,\d\d\d: some share .* zip bomb"),
        (
            lambda path: listed(write_entry(path), 24, "<L", 2**32 - 2),
            r"unpack to 4,294,\d\d\d,\d\d\d, over 500 times .* zip bomb .*largest is a/b/2\.png",
        ),
        (twice, r"a/b/2\.png is in it 2 times"),
        (lambda path: write_entry(path, "../../a/b/2.png"), r"unsafe file name '\.\./\.\./a/b/2"),
        (lambda path: write_entry(path, "/a/b/2.png"), "unsafe file name '/a/b/2.png'"),
        (lambda path: write_entry(path, "C:/a/2.png"), "unsafe file name 'C:/a/2.png'"),
    ],
    ids=[
        *("Deflate64", "LZMA", "bzip2 bomb", "password", "link", "overlap", "ratio", "twice"),
        *("above", "absolute", "drive"),
    ],
)
def test_a_hostile_archive_is_refused_and_its_entry_named(
    tmp_path: Path, craft: Callable[[Path], Path], message: str
) -> None:
    path = craft(tmp_path / "hostile.zip")
    with pytest.raises(InputError, match=rf"hostile\.zip.*{message}"):
        list_images(path)


def test_more_files_than_an_archive_may_have_are_refused_before_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("an object for every entry")

    path = write_entry(tmp_path / "many.zip")
    data = path.read_bytes()
    start, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    entries = data[start:end] * 2_000_000
    size = len(data[:start]) - data.index(b"PK\x01\x02") + len(entries)
    # It says that it has two entries, as it had.
    path.write_bytes(
        data[:start] + entries + data[end : end + 12] + struct.pack("<L", size) + data[end + 16 :]
    )
    monkeypatch.setattr(zipfile, "ZipInfo", fail)
    with pytest.raises(InputError, match=r"many\.zip lists more than 2,000,000 files.*divide it"):
        list_images(path)


def test_a_table_of_contents_without_end_is_refused_unread(tmp_path: Path) -> None:
    path = write_entry(tmp_path / "long.zip")
    data = path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    with path.open("wb") as file:  # sparse: it takes no room on the disk
        file.write(data[:end])
        file.truncate(2**30)
        file.seek(2**30)
        file.write(data[end : end + 12] + struct.pack("<L", 2**30 - 100) + data[end + 16 :])
    with pytest.raises(InputError, match=r"long\.zip lists .*1,073,741,724 bytes of 536,870,912"):
        list_images(path)


def test_what_honest_archives_have_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "honest.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b/1.png", png("one"))
        archive.writestr("a/b/2.bmp", bytes(10_000_000))  # packed a thousandfold, and small
        archive.writestr("a/", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/", b"")
    assert [image.member for image in list_images(path)] == ["a/b/1.png", "a/b/2.bmp"]


def test_a_link_to_a_folder_around_it_is_named_and_not_followed_for_ever(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a/b/1.png": b"", "c/d/1.png": b""})
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    with pytest.raises(InputError, match="a/loop is a link to a folder that it lies in: remove it"):
        list_members(tmp_path)
    (tmp_path / "a" / "loop").unlink()
    (tmp_path / "a" / "to-c").symlink_to(tmp_path / "c")
    (tmp_path / "c" / "to-a").symlink_to("../a")
    with pytest.raises(InputError, match=r"(a/to-c/to-a|c/to-a/to-c) is a link to a folder"):
        list_members(tmp_path)


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", {"b/1.png": png("one"), "2.png": png("two")})
    write_folder(tmp_path / "here", {"a/c/3.png": png("three")})
    (tmp_path / "here/a/b").symlink_to(tmp_path / "elsewhere/b")
    (tmp_path / "here/a/c/2.png").symlink_to(tmp_path / "elsewhere/2.png")
    (tmp_path / "here/a/c/self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "here/a/c/pipe.png")
    (tmp_path / "here/a/c/to-pipe.png").symlink_to("pipe.png")
    listed = list_images(tmp_path / "here")
    with ImageReader() as reader:
        sound = list(reader.sound(listed, rejected := []))
    assert [file.uri for _, file, _ in sound] == ["a/b/1.png", "a/c/2.png", "a/c/3.png"]
    assert [(bad.uri, reason) for bad, reason in rejected] == [("a/c/self.png", "unreadable")]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE])
def test_trouble_of_the_machine_is_not_said_to_be_the_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "daily.zip"

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    path.touch()
    monkeypatch.setattr(zipfile, "ZipFile", fail)
    with pytest.raises(ReadError, match=rf"daily\.zip: {os.strerror(number)}: .*again$"):
        open_zip(path)


def test_a_folder_that_may_not_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(path: Path) -> object:
        if path.name == "c":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    listed = os.scandir
    write_folder(tmp_path, {"a/b/1.png": b"", "a/c/1.png": b""})
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="a/c may not be read"):
        list_members(tmp_path)
