import errno
import os
import zipfile
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


def test_a_zip_that_python_cannot_unpack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b/1.png", png("one"))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 10] = 9
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"large\.zip.*9 is Deflate64.*unpack it"):
        list_members(path)


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
