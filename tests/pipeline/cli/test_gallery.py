"""`oneshot gallery` and the files that people have: which one cannot be used, and why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_ingest.sources.images import stored_form
from pipeline.cli import gallery_session
from pipeline.cli.main import main
from tests.drawn_face import drawn_face
from tests.image_variants import variants
from tests.serving.gallery.fakes import FakeModels, photo, written

LOOKS = {variant.name: variant.data for variant in variants()}
Command = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def oneshot(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs `oneshot gallery ... --json`; gives exit code, answer and stderr."""
    monkeypatch.setattr(gallery_session, "embedder_of", lambda model: FakeModels())
    monkeypatch.chdir(tmp_path)

    def run(*argv: str | Path) -> tuple[int, Any, str]:
        capfd.readouterr()
        where = ["--gallery", "a [1] #?%20b/gallery.db", "--json"]
        try:
            code: Any = main(["gallery", *map(str, argv), *where])
        except SystemExit as error:  # of argparse
            code = error.code
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


def people(folder: str, *names: str, shots: int = 2) -> Path:
    for name in names:
        for shot in range(shots):
            file(f"{folder}/{name}/{shot}.png", photo(name, shot))
    return Path(folder)


def test_a_folder_of_names_is_enrolled_at_once_and_again_changes_nothing(oneshot: Command) -> None:
    names = [f"person {number:02d}" for number in range(40)]
    folder = people("people", *names)
    file("people/person 07/blank.png", LOOKS["png white (blank)"])
    code, answer, note = oneshot("enroll", "--images", folder)
    assert (code, answer["names"], answer["added"], answer["known"]) == (0, 40, 80, 0)
    assert answer["left_out"] == [
        {"image": "people/person 07/blank.png", "reason": "nothing is drawn on it"}
    ]
    assert "note: images left out: 1 nothing is drawn on it" in note
    assert {one["name"]: len(one["images"]) for one in oneshot("list")[1]} == dict.fromkeys(
        names, 2
    )
    people("people", "person 07", "somebody new", shots=3)
    # Neither a zip nor the folder that it was made of is part of a name.
    shutil.make_archive("all", "zip", ".", "people")
    assert oneshot("enroll", "--images", "all.zip")[1] | {"left_out": []} == {
        **{"names": 41, "added": 4, "known": 80, "left_out": []},
    }
    assert oneshot("identify", file("new.png", photo("somebody new", 9)))[1]["name"] == (
        "somebody new"
    )


def test_forgeries_are_not_enrolled_under_the_name_that_they_forge(oneshot: Command) -> None:
    for writer in ("Ada", "Bob"):
        for shot in range(2):
            file(f"signatures/{writer}/genuine/{shot}.png", photo(writer, shot))
        file(f"signatures/{writer}/forged/0.png", photo(f"forger of {writer}"))
    code, answer, note = oneshot("enroll", "--images", "signatures")
    assert (code, answer["names"], answer["added"]) == (0, 2, 4)
    assert "images left out: 2 a forgery" in note
    assert [one["name"] for one in oneshot("list")[1]] == ["Ada", "Bob"]


def test_of_a_folder_the_image_that_has_another_name_is_named(oneshot: Command) -> None:
    oneshot("enroll", "Ada", file("ada.png", photo("Ada", 1)))
    code, answer, error = oneshot("enroll", "--images", people("people", "Ada", "Bob", "Adela"))
    assert (code, answer["known"]) == (0, 1)
    file("people/Eve/9.png", photo("Bob", 1))
    code, answer, error = oneshot("enroll", "--images", "people")
    assert (code, answer) == (2, None)
    assert error.startswith("oneshot: people/Eve/9.png: image 0 ")
    assert "already enrolled as 'Bob'" in error


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("enroll", "Ada", "ada.png", "--images", "people"), "not both"),
        (("enroll", "Ada"), "required: IMAGE"),
        (("enroll",), "required: NAME, IMAGE"),
        (("enroll", "--images", "nowhere"), "nowhere does not exist"),
        (("identify", "nowhere"), "nowhere: No such file"),
        (("identify", "nowhere", "else"), "nowhere is not there"),
        (("identify", "."), "holds no images"),
        (("identify", "people", "--limit", "101"), "at most 100"),
    ],
)
def test_what_is_asked_for_without_sense_is_refused(
    oneshot: Command, argv: tuple[str, ...], reason: str
) -> None:
    code, _, error = oneshot(*argv)
    assert (code, reason in error) == (2, True), error
    assert not Path("a [1] #?%20b").exists()


def test_arguments_and_options_may_come_in_any_order(oneshot: Command) -> None:
    file("ada.png", photo("Ada"))
    assert oneshot("enroll", "Ada", "--false-accept-rate", "0.1", "ada.png")[1]["added"] == 1


def test_each_image_of_a_folder_is_answered_by_a_line(
    oneshot: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    embedder_of = gallery_session.embedder_of
    monkeypatch.setattr(
        gallery_session, "embedder_of", lambda model: loaded.append(model) or embedder_of(model)
    )
    names = [f"person {number:02d}" for number in range(12)]
    oneshot("enroll", "--images", people("people", *names, shots=1))
    for number, name in enumerate([*names, *(f"stranger {number}" for number in range(70))]):
        file(f"inbox/{number % 3}/{number:02d}.png", photo(name, 9))
    file("inbox/blank.png", LOOKS["png white (blank)"])
    file("inbox/refused.png", written(b"refused"))
    file("inbox/notes.txt", b"not an image")
    capfd.readouterr()
    where = ["--gallery", "a [1] #?%20b/gallery.db"]
    loaded.clear()
    assert main(["gallery", "identify", "inbox", *where, "--json"]) == 0
    answers = {
        answer["image"]: answer for answer in map(json.loads, capfd.readouterr().out.splitlines())
    }
    assert len(loaded) == 1
    assert len(answers) == 84
    for number, name in enumerate(names):
        answer = answers[f"inbox/{number % 3}/{number:02d}.png"]
        assert (answer["name"], answer["candidates"][0]["name"]) == (name, name)
    assert answers["inbox/blank.png"] == {
        "image": "inbox/blank.png",
        "error": "nothing is drawn on it",
    }
    assert "not an image that the model" in answers["inbox/refused.png"]["error"]
    assert main(["gallery", "identify", "inbox", "people/person 03/0.png", *where]) == 0
    lines = capfd.readouterr().out.splitlines()
    found = next(line for line in lines if "03/0.png" in line).split()
    assert found[:6] == ["people/person", "03/0.png", "person", "03", "person", "03"]
    assert lines[-1] == "85 images: 70 unknown, 13 given a name, 2 not usable"


def test_what_verify_says_is_one_thing(oneshot: Command, capfd: pytest.CaptureFixture[str]) -> None:
    """A high probability beside a refusal told people two things."""
    oneshot("enroll", "Ada", file("ada.png", photo("Ada")))
    told = {}
    for person in ("Ada", "Eve"):
        picture = file(f"{person} 1.png", photo(person, 1))
        code, answer, _ = oneshot("verify", "Ada", picture, "--false-accept-rate", "0.05")
        assert (code == 0) is answer["same"] is (person == "Ada")
        assert "score" not in answer
        assert answer["false_accept_rate"] == 0.05
        capfd.readouterr()
        where = ["--gallery", "a [1] #?%20b/gallery.db", "--false-accept-rate", "0.05"]
        main(["gallery", "verify", "Ada", str(picture), *where])
        told[person] = capfd.readouterr().out
    assert told["Ada"].startswith("accepted as Ada at a false-accept rate of 5 % (down to ")
    assert told["Eve"].startswith("refused as Ada at a false-accept rate of 5 % (")
    assert "below the threshold" in told["Eve"]
    assert "score" not in told["Ada"] + told["Eve"]


def test_status_says_how_those_enrolled_would_fare(
    oneshot: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"person {number:02d}" for number in range(12)]
    oneshot("enroll", "--images", people("people", *names[:9], shots=3))
    outlook = oneshot("status")[1]["outlook"]
    assert (outlook["fared"], outlook["identities"]) == ([], 9)
    assert outlook["note"] == (
        "how many of those enrolled would be unknown cannot be said: 9 of them have two images or "
        "more, and 10 are needed"
    )
    oneshot("enroll", "--images", people("people", *names, shots=3))
    outlook = oneshot("status")[1]["outlook"]
    assert (outlook["identities"], outlook["left_out_as_trained_on"], outlook["note"]) == (
        12,
        0,
        None,
    )
    first = outlook["fared"][0]
    assert (first["references"], first["false_accept_rate"]) == (1, 0.01)
    assert (first["identities"], first["images"]) == (12, 36)
    assert first["unknown"]["value"] == 0
    assert 0.1 < first["unknown"]["high"] < 0.3
    capfd.readouterr()
    assert main(["gallery", "status", "--gallery", "a [1] #?%20b/gallery.db"]) == 0
    out = capfd.readouterr().out
    assert "Other images of those enrolled, by how many references each has" in out
    row = next(line for line in out.splitlines() if line.split()[:3] == ["2", "5", "%"])
    assert row.split()[3:] == ["0", "(0-24)", "100", "(76-100)", "0", "(0-24)", "12", "36"]


def test_status_stands_where_the_model_is_gone(
    oneshot: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"person {number:02d}" for number in range(10)]
    oneshot("enroll", "--images", people("people", *names))
    gone = FakeModels()
    gone.available = set()
    monkeypatch.setattr(gallery_session, "embedder_of", lambda model: gone)
    code, answer, _ = oneshot("status")
    assert (code, answer["names"], answer["outlook"]["fared"]) == (0, 10, [])
    assert "cannot be said: the gallery's vectors are of version 1" in answer["outlook"]["note"]


def test_calibrating_on_images_that_the_model_was_trained_on_is_refused_or_told(
    oneshot: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    oneshot("enroll", "Ada", file("ada.png", photo("Ada")))
    known, new = [f"known {n}" for n in range(20)], [f"new {n}" for n in range(45)]
    models = FakeModels(trained_on=[photo(person, shot) for person in known for shot in range(2)])
    monkeypatch.setattr(gallery_session, "embedder_of", lambda model: models)
    code, _, error = oneshot("calibrate", "--images", people("training", *known))
    assert (code, "was trained on images of all of these outsiders" in error) == (2, True), error
    assert oneshot("status")[1]["calibration"]["source"] == "model"
    code, answer, note = oneshot("calibrate", "--images", people("training", *new))
    assert (code, answer["people"], answer["left_out_as_trained_on"]) == (0, 45, 20)
    told = "note: 20 identities are left out of the calibration: the model was trained on images"
    assert told in note
    assert told in oneshot("status")[2]
    models.seen = None
    _, answer, note = oneshot("calibrate", "--images", "training")
    assert (answer["people"], answer["left_out_as_trained_on"]) == (65, None)
    assert "whether the model was trained on the images" in note


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


def test_a_gallery_of_faces_remembers_its_crop_and_says_which_photo_has_none(
    oneshot: Command,
) -> None:
    for name, radius in (("Ada", 60.0), ("Bob", 80.0)):
        for shot in range(2):
            path = file(f"people/{name}/{shot}.png", b"")
            drawn_face(radius=radius, at=(150 + 9 * shot, 150)).save(path)
    wall = file("people/Bob/wall.png", photo("a wall"))
    code, answer, _note = oneshot("enroll", "--images", "people", "--crop", "face")
    assert (code, answer["names"], answer["added"]) == (0, 2, 4)
    assert answer["left_out"] == [{"image": str(wall), "reason": "no face found"}]
    # Nothing is said of a crop any more.
    assert oneshot("identify", "people/Ada/1.png")[1]["candidates"][0]["name"] == "Ada"
    code, answer, error = oneshot("identify", wall)
    assert (code, answer) == (2, None)
    assert error.startswith(f"oneshot: {wall}: no face found; give a photo in which the face is")
    oneshot("enroll", "Eve", file("eve.png", photo("Eve")), "--crop", "face")
    assert [one["name"] for one in oneshot("list")[1]] == ["Ada", "Bob"]
