"""`oneshot ingest` and `oneshot spans` as a person or a script meets them."""

import errno
import json
import os
import zipfile
from pathlib import Path

import pytest

from data_ingest.sources import layout
from pipeline.cli.main import main
from tests.data_ingest.tiny_images import omniglot_tree, png, write_folder


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "output"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", omniglot_tree("a", groups=4, classes=3, writers=2))


def oneshot(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_images_land_once_and_a_script_is_told_so(
    output: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest = ("ingest", "--span", 3, images, "--json", "--set", "pairs.evaluation_share=0.5")
    assert oneshot(*ingest) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["span"], document["changed"]) == (3, True)
    assert sorted(document["new"].values()) == ["background"] * 2 + ["evaluation"] * 2
    assert (Path(document["path"]) / "evaluation.zip").is_file()
    assert oneshot(*ingest) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == {**document, "changed": False}


def test_a_person_is_told_what_landed_and_what_was_left_out(
    output: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a0" / "character01" / "empty.png").touch()
    (images / "a0" / "character01" / "drawing.xcf").write_bytes(b"gimp xcf")
    noise = images / "a0" / "character01" / "noise.png", images / "a1" / "character01" / "noise.png"
    for path in noise:
        path.write_bytes(png("noise"))
    assert oneshot("ingest", "--next", images, "--set", "dataset.max_rejected_share=0.2") == 0
    told = capsys.readouterr().out
    assert "span 1: 24 images" in told
    assert f"Label noise: {noise[0]} is the same image as {noise[1]}" in told
    assert "4 new groups" in told
    assert "4 unusable images left out (2 same image in two classes, 1 not an" in told
    assert "character01/empty.png, " in told
    assert "; listed in" in told
    assert oneshot("ingest", "--next", images, "--set", "dataset.max_rejected_share=0.2") == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--span", "0"), "numbered from 1"),
        (("--next", "elsewhere"), "elsewhere does not exist"),
        (("--next", "--set", "pairs.evaluation_share=2"), "pairs.evaluation_share"),
    ],
)
def test_bad_input_is_told_and_nothing_lands(
    output: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert oneshot("ingest", *arguments, images) == 2
    assert message in capsys.readouterr().err
    assert list(output.glob("spans/span-*")) == []


def test_spans_are_listed_excluded_and_readmitted(
    output: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oneshot("ingest", "--next", images)
    assert oneshot("spans", "exclude", 1, "--reason", "scanner [2] broke") == 0
    capsys.readouterr()
    assert oneshot("spans", "list") == 0
    assert "scanner [2]" in capsys.readouterr().out
    oneshot("spans", "readmit", 1)
    capsys.readouterr()
    assert oneshot("spans", "list", "--json") == 0
    assert [span["excluded"] for span in json.loads(capsys.readouterr().out)] == [None]


def test_images_that_can_no_longer_be_used_are_named(
    output: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (images / "a0" / "character01" / "scan.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with monkeypatch.context() as earlier:
        earlier.setattr(layout, "stored_form", lambda data, form: data)
        oneshot("ingest", "--next", images)
    capsys.readouterr()
    assert oneshot("spans", "check") == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "span 1: 1 of 25 images cannot be used" in told
    assert oneshot("spans", "check", 1, "--json") == 0
    ((bad,),) = [span["unusable"] for span in json.loads(capsys.readouterr().out)]
    assert bad["file"].endswith(".zip/a0/character01/scan.png")
    assert bad["reason"] == "truncated"


def test_files_that_changed_are_named_with_what_to_do(
    output: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oneshot("ingest", "--next", images)
    victim = output / "spans" / "span-1" / "background.zip"
    with zipfile.ZipFile(victim) as archive:
        at = archive.infolist()[0].header_offset + 60
    content = bytearray(victim.read_bytes())
    content[at] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(content)
    capsys.readouterr()
    assert oneshot("spans", "check") == 2
    told = f"span 1: the bytes of {victim} are not those that landed: restore the file from a copy"
    assert told in capsys.readouterr().out
    assert oneshot("spans", "check", "--json") == 2
    (span,) = json.loads(capsys.readouterr().out)
    assert span["damaged"][0].startswith(told)
    assert oneshot("retrain", "--if-new", "--json") == 2
    refused = json.loads(capsys.readouterr().out)
    assert (refused["status"], refused["error"][: len(told)]) == ("refused", told)


@pytest.mark.parametrize(
    "command", [("ingest", "--next", "images"), ("retrain", "--if-new"), ("run",)]
)
def test_an_output_folder_without_locks_is_named_with_what_to_do(
    output: Path,
    images: Path,
    command: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_locks(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert oneshot(*command) == 2
    told = capsys.readouterr().err
    assert f"oneshot: {output}" in told
    assert "has no locks" in told
    assert "NFS 4" in told


def test_a_span_that_is_not_there_cannot_be_excluded(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert oneshot("spans", "exclude", 7, "--reason", "bad") == 2
    assert "there is no span 7" in capsys.readouterr().err
    assert not output.exists()


def test_without_spans_the_list_says_so(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert oneshot("spans", "list") == 0
    assert capsys.readouterr().out == "no spans yet\n"
