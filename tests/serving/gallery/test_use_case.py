"""Ten employees, one picture each; one joins, one leaves; nobody retrains.

Characters that the model has never seen stand in for people, the employees each of another
alphabet, drawn by several hands: one drawing is enrolled, drawings by others are to be recognised.
With OMNIGLOT_DIR they are Omniglot's and the model is trained on its background alphabets, else
they are generated glyphs. What is asked of the answers follows from chance, from the false accepts
that are promised and from what pixels alone achieve; nothing was set after looking.
"""

import base64
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pipeline.cli import gallery_session
from pipeline.cli.main import main
from pipeline.runs.status import ExitCode
from serving.client import Client
from serving.errors import ServingError
from serving.gallery.embedder import FolderEmbedder, ServerEmbedder, probe_image
from serving.gallery.open import open_gallery
from serving.saved_model.loader import LoadedModel
from serving.server.models import ModelSetup
from serving.server.server import LocalServer, ServerOptions
from serving.server.versions import HostOptions
from tests.serving.gallery.small_model import glyphs, omniglot_drawings, train_and_export

EMPLOYEES = [f"Employee {number}" for number in range(1, 11)]
NEWCOMER = "Grace Hopper"
PEOPLE = [*EMPLOYEES, NEWCOMER]
LEAVER = EMPLOYEES[3]
STRANGERS = [f"Stranger {number}" for number in range(1, 61)]
RATE = 0.05
"""Strangers who may be taken for someone."""
SURE = 1e-3
"""Chance that a test fails although all is as it is claimed."""
Command = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def pictures(
    tmp_path_factory: pytest.TempPathFactory, omniglot: Path | None
) -> dict[str, list[Path]]:
    """Files of each person's pictures. Of ten alphabets, first one character each, then more."""
    drawings, first = glyphs, 40
    if omniglot is not None:
        drawings, first = omniglot_drawings(omniglot / "images_evaluation.zip"), 0
    folder = tmp_path_factory.mktemp("pictures")
    alphabets = [drawings(first + number, 8) for number in range(10)]
    characters = [alphabet[number] for number in range(8) for alphabet in alphabets]
    files: dict[str, list[Path]] = {}
    for person, images in zip([*PEOPLE, *STRANGERS], characters, strict=False):
        files[person] = []
        for shot, image in enumerate(images):
            path = folder / f"{person} {shot}.png"
            path.write_bytes(image)
            files[person].append(path)
    return files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, omniglot: Path | None) -> Path:
    base = tmp_path_factory.mktemp("models") / "siamese"
    drawings = glyphs
    if omniglot is not None:
        drawings = omniglot_drawings(omniglot / "images_background.zip")
    train_and_export(base / "1", drawings=drawings)
    return base


@pytest.fixture
def models(trained: Path, tmp_path: Path) -> Path:
    """A base path of one's own."""
    return Path(shutil.copytree(trained, tmp_path / "siamese"))


@pytest.fixture
def oneshot(
    models: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Command]:
    """Runs `oneshot gallery ... --json`; gives exit code and answer.

    Every command opens the database anew, and finds the model loaded by the ones before.
    """
    embedder = FolderEmbedder(models)
    close = embedder.close
    monkeypatch.setattr(embedder, "close", lambda: None)
    monkeypatch.setattr(gallery_session, "embedder_of", lambda model: embedder)

    def run(*argv: str | Path) -> tuple[int, Any]:
        where = ["--gallery", tmp_path / "gallery.db", "--model", models, "--json"]
        capfd.readouterr()
        code = main(["gallery", *map(str, argv), *map(str, where)])
        out, err = capfd.readouterr()
        return code, json.loads(out) if out else err

    yield run
    close()


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def answers(oneshot: Command, pictures: list[Path]) -> list[tuple[str | None, str]]:
    """For each picture the name that is given, or None, and the likeliest one."""
    found = [oneshot("identify", one, "--false-accept-rate", RATE)[1] for one in pictures]
    return [(one["name"], one["candidates"][0]["name"]) for one in found]


def nearest_by_pixels(picture: Path, people: list[str], pictures: dict[str, list[Path]]) -> str:
    """Who of them has the enrolled picture with the least squared difference."""

    def grey(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"), np.float32)

    query = grey(picture)
    return min(people, key=lambda one: float(np.square(grey(pictures[one][0]) - query).sum()))


def by_chance(trials: int, probability: float) -> int:
    """So many successes, or more, are had by chance with a probability below `SURE`."""
    shares = [
        math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k)
        for k in range(trials + 1)
    ]
    return next(least for least in range(trials + 2) if sum(shares[least:]) < SURE)


def check_recognition(oneshot: Command, people: list[str], pictures: dict[str, list[Path]]) -> None:
    """Asks about pictures that are not enrolled, of all people: those of one stand or fall together
    with his enrolled picture, and say little alone."""
    others = [(person, picture) for person in people for picture in pictures[person][1:]]
    found = answers(oneshot, [picture for _, picture in others])
    asked = [person for person, _ in others]
    likeliest = sum(who == person for person, (_, who) in zip(asked, found, strict=True))
    by_pixels = sum(nearest_by_pixels(one, people, pictures) == who for who, one in others)
    assert likeliest > by_pixels
    named = sum(name == person for person, (name, _) in zip(asked, found, strict=True))
    assert named >= by_chance(len(others), RATE)
    wrong = sum(name not in (None, person) for person, (name, _) in zip(asked, found, strict=True))
    assert wrong < by_chance(len(others), RATE)


def test_one_joins_and_one_leaves_and_nobody_retrains(
    oneshot: Command, models: Path, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    model = digest(models)
    for person in EMPLOYEES:
        assert oneshot("enroll", person, pictures[person][0])[1]["added"] == 1

    # Other pictures of the ten: more are recognised than by pixels, and more than by chance.
    check_recognition(oneshot, EMPLOYEES, pictures)

    # A picture each of people who do not work here: no more are let in than promised.
    strangers = answers(oneshot, [pictures[person][0] for person in STRANGERS])
    assert sum(name is not None for name, _ in strangers) < by_chance(len(STRANGERS), RATE)

    # One joins: unknown before, known after one command.
    arriving = pictures[NEWCOMER]
    taken = sum(name is not None for name, _ in answers(oneshot, arriving))
    assert taken < by_chance(len(arriving), RATE)
    oneshot("enroll", NEWCOMER, arriving[0])
    assert answers(oneshot, arriving[:1]) == [(NEWCOMER, NEWCOMER)]
    check_recognition(oneshot, PEOPLE, pictures)

    # One leaves: no longer known, named or kept.
    leaving = pictures[LEAVER]
    assert answers(oneshot, leaving[:1]) == [(LEAVER, LEAVER)]
    assert oneshot("remove", LEAVER)[1] == {"name": LEAVER, "images": 1, "erased": True}
    assert LEAVER not in {who for _, who in answers(oneshot, leaving)}
    assert [one["name"] for one in oneshot("list")[1]] == sorted({*PEOPLE} - {LEAVER})
    files = b"".join(file.read_bytes() for file in tmp_path.glob("gallery.db*"))
    assert leaving[0].read_bytes() not in files
    assert pictures[NEWCOMER][0].read_bytes()[-64:] in files

    assert digest(models) == model


def test_a_gallery_of_a_few_says_what_it_judges_by(
    oneshot: Command, pictures: dict[str, list[Path]]
) -> None:
    oneshot("enroll", EMPLOYEES[0], pictures[EMPLOYEES[0]][0])
    calibration = oneshot("status")[1]["calibration"]
    assert (calibration["source"], calibration["people"]) == ("model", 36)
    assert oneshot("calibrate")[1]["source"] == "model"


def test_the_same_picture_opens_the_door_and_anybody_elses_does_not(
    oneshot: Command, pictures: dict[str, list[Path]]
) -> None:
    for person in EMPLOYEES:
        oneshot("enroll", person, pictures[person][0])
    assert oneshot("verify", EMPLOYEES[0], pictures[EMPLOYEES[0]][0])[0] == ExitCode.DONE
    code, answer = oneshot(
        "verify", EMPLOYEES[0], pictures[EMPLOYEES[1]][0], "--false-accept-rate", "0.001"
    )
    assert (code, answer["same"]) == (ExitCode.DIFFERENT, False)


def test_what_cannot_be_done_is_a_usage_error_with_the_reason(
    oneshot: Command, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    picture = pictures[EMPLOYEES[0]][0]
    text = tmp_path / "notes.txt"
    text.write_text("not an image")

    def refused(reason: str, *argv: str | Path) -> None:
        code, error = oneshot(*argv)
        assert (code, reason in error) == (2, True), error
        assert "Traceback" not in error

    refused("nobody is enrolled yet", "identify", picture)
    refused("missing.png", "enroll", "A", tmp_path / "missing.png")
    refused("PNG", "enroll", "A", text)
    refused("control characters", "enroll", "A\tB", picture)
    refused("nobody is enrolled as 'B'", "remove", "B")
    oneshot("enroll", "A", picture)
    refused("nobody is enrolled as 'B'", "verify", "B", picture)
    refused("already enrolled as 'A'", "enroll", "B", picture)
    refused("false-accept rate", "identify", picture, "--false-accept-rate", "7")
    assert oneshot("status")[1]["names"] == 1


def test_a_newer_version_answers_after_a_rebuild(
    oneshot: Command, models: Path, pictures: dict[str, list[Path]]
) -> None:
    for person in EMPLOYEES[:5]:
        oneshot("enroll", person, pictures[person][0])
    shutil.copytree(models / "1", models / "2")
    assert oneshot("identify", pictures[EMPLOYEES[0]][1])[1]["model_version"] == "1"
    assert oneshot("rebuild")[1] == {"before": "1", "version": "2", "images": 5}
    shutil.rmtree(models / "1")
    assert oneshot("identify", pictures[EMPLOYEES[0]][1])[1]["model_version"] == "2"
    assert oneshot("erase")[1] == {"erased": True}


def test_a_cohort_is_a_folder_of_other_people(
    oneshot: Command, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    oneshot("enroll", EMPLOYEES[0], pictures[EMPLOYEES[0]][0])
    for person in PEOPLE[1:]:
        (tmp_path / "others" / person).mkdir(parents=True)
        for picture in pictures[person][:2]:
            shutil.copy(picture, tmp_path / "others" / person)
    _, found = oneshot("calibrate", "--images", tmp_path / "others")
    assert found["people"] > 0
    assert oneshot("verify", EMPLOYEES[0], pictures[EMPLOYEES[0]][0])[0] == ExitCode.DONE


def test_folder_and_servers_give_the_same_vectors(
    models: Path, pictures: dict[str, list[Path]]
) -> None:
    images = [pictures[person][0].read_bytes() for person in EMPLOYEES]
    setup = {"siamese": ModelSetup(models, HostOptions())}
    with LocalServer(ServerOptions(setup, grpc_port=None, rest_port=0)) as server:
        assert server.wait_available(120)
        remote = ServerEmbedder(Client(server.rest_url))
        local = FolderEmbedder(models)
        assert remote.latest() == local.latest() == "1"
        difference = remote.embed(images, version="1") - local.embed(images, version="1")
        assert abs(difference).max() < 1e-4
        a, b = remote.facts("1"), local.facts("1")
        assert a.bias == pytest.approx(b.bias, abs=1e-4)
        assert abs(a.probe - b.probe).max() < 1e-4
        remote.close()
        local.close()


def test_the_bias_is_the_logit_of_an_image_with_itself(models: Path) -> None:
    with LoadedModel(models / "1") as model:
        pair = {"image_a": [probe_image()], "image_b": [probe_image()]}
        logit = float(model.run("serving_default", pair)["logit"][0])
    embedder = FolderEmbedder(models / "1")
    assert embedder.latest() == "1"
    assert embedder.facts("1").bias == pytest.approx(logit, abs=1e-5)
    embedder.close()


def test_the_gallery_of_a_server_follows_its_model(
    models: Path, pictures: dict[str, list[Path]], tmp_path: Path
) -> None:
    """The server drops version 1 when it has loaded 2; the gallery answers all the while."""

    def body(person: str, shot: int) -> dict[str, Any]:
        image = pictures[person][shot].read_bytes()
        return {"image": {"b64": base64.b64encode(image).decode()}}

    options = ServerOptions(
        {"siamese": ModelSetup(models, HostOptions(poll_seconds=0.1))},
        grpc_port=None,
        rest_port=0,
        gallery=str(tmp_path / "gallery.db"),
    )
    with (
        LocalServer(options) as server,
        httpx.Client(base_url=f"{server.rest_url}/v1/gallery", timeout=60) as client,
    ):
        assert server.wait_available(120)
        for person in EMPLOYEES[:6]:
            enrolment = {"name": person, "images": [body(person, 0)["image"]]}
            assert client.post("/enroll", json=enrolment).json()["added"] == 1
        shutil.copytree(models / "1", tmp_path / "new")
        (tmp_path / "new").rename(models / "2")
        versions = set()
        deadline = time.monotonic() + 120
        while versions != {"1", "2"} and time.monotonic() < deadline:
            found = client.post("/identify", json=body(EMPLOYEES[0], 0))
            assert found.status_code == 200
            assert found.json()["candidates"][0]["name"] == EMPLOYEES[0]
            versions.add(found.json()["model_version"])
        assert versions == {"1", "2"}


def test_versions_are_folders_with_numbers_and_nothing_else(tmp_path: Path, models: Path) -> None:
    shutil.copytree(models / "1", models / "9")
    shutil.copytree(models / "1", models / ".10-unfinished")
    (models / "11").mkdir()
    embedder = FolderEmbedder(models)
    assert embedder.latest() == "9"
    for version in ("10", "11", "../siamese/1", "/", ".."):
        with pytest.raises(ServingError, match="is not in"):
            embedder.embed([probe_image()], version=version)
    embedder.close()
    with (
        open_gallery(tmp_path / "gallery.db", FolderEmbedder(tmp_path / "none")) as gallery,
        pytest.raises(ServingError, match="no model in"),
    ):
        gallery.enroll("A", [probe_image()])
