"""`oneshot gallery` and the files that people have: which one cannot be used, and why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_ingest.sources.images import stored_form
from pipeline.cli import gallery as gallery_cli
from pipeline.cli.main import main
from tests.image_variants import variants
from tests.serving.gallery.fakes import FakeModels, photo

LOOKS = {variant.name: variant.data for variant in variants()}
Command = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def oneshot(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs `oneshot gallery ... --json`; gives exit code, answer and stderr."""
    monkeypatch.setattr(gallery_cli, "_embedder", lambda model: FakeModels())
    monkeypatch.chdir(tmp_path)

    def run(*argv: str | Path) -> tuple[int, Any, str]:
        capfd.readouterr()
        where = ["--gallery", "a [1] #?%20b/gallery.db", "--json"]
        code = main(["gallery", *map(str, argv), *where])
        out, err = capfd.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def file(name: str, data: bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_of_several_files_the_one_that_cannot_be_used_is_named_and_none_is_enrolled(
    oneshot: Command,
) -> None:
    ada = file("ada.png", photo("Ada"))
    blank = file("blank [2].png", LOOKS["png white (blank)"])
    reason = "oneshot: blank [2].png: nothing is drawn on it; "
    assert oneshot("enroll", "Ada", ada)[1] == {"name": "Ada", "added": 1, "known": 0}
    for command in (("enroll", "Eve", file("eve.png", photo("Eve"))), ("identify",)):
        code, answer, error = oneshot(*command, blank)
        assert (code, answer, error.startswith(reason)) == (2, None, True), error
    code, answer, error = oneshot("verify", "Ada", blank)
    assert (code, answer, error.startswith(reason)) == (2, None, True), error
    code, answer, error = oneshot("enroll", "Eve", "eve.png", ada)
    assert (code, answer) == (2, None)
    assert error.startswith("oneshot: ada.png: image 1 ")
    assert "already enrolled as 'Ada'" in error
    assert [one["name"] for one in oneshot("list")[1]] == ["Ada"]


def test_photos_are_recognised_as_they_look_whatever_their_format(oneshot: Command) -> None:
    oneshot("enroll", "Ada", file("ada.webp", LOOKS["webp lossless"]))
    assert oneshot("enroll", "Ada", file("ada.bmp", LOOKS["bmp 24 bits"]))[1]["known"] == 1
    oneshot("enroll", "Eve", file("phone.jpg", LOOKS["jpeg orientation 6 big-endian"]))
    shown = file("shown.png", stored_form(LOOKS["jpeg orientation 6 big-endian"]))
    assert oneshot("identify", shown)[1]["candidates"][0]["name"] == "Eve"
    assert oneshot("verify", "Eve", shown)[0] == 0


def test_a_name_in_another_case_is_another_identity_and_one_is_told(oneshot: Command) -> None:
    oneshot("enroll", "Ада", file("1.png", photo("1")))
    code, answer, note = oneshot("enroll", "ада", file("2.png", photo("2")))
    assert (code, answer["added"]) == (0, 1)
    assert "are two identities; enrolled too: 'Ада'" in note


def test_outsiders_that_cannot_be_used_are_counted(oneshot: Command) -> None:
    for number in range(40):
        file(f"others/{number}/1.png", photo(f"other {number}"))
    file("others/3/2.png", LOOKS["png white (blank)"])
    _, answer, note = oneshot("calibrate", "--images", "others")
    assert (answer["source"], answer["people"]) == ("cohort", 40)
    assert "note: images left out: 1 nothing is drawn on it" in note
    file("blank/3/2.png", LOOKS["png white (blank)"])
    code, _, error = oneshot("calibrate", "--images", "blank")
    assert (code, "can be used: 1 nothing is drawn on it" in error) == (2, True), error
