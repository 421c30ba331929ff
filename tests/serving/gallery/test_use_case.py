"""Ten employees, one picture each; one joins, one leaves; nobody retrains.

Characters that the model has never seen stand in for people, each of another alphabet, drawn by
several hands: one drawing is enrolled, drawings by others are to be recognised.
"""

import base64
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import gallery_cli
from pipeline.cli import main
from pipeline.gallery_cli import EXIT_DIFFERENT, EXIT_DONE
from serving.client import Client
from serving.errors import ServingError
from serving.gallery.embedder import FolderEmbedder, ServerEmbedder
from serving.gallery.location import open_gallery
from serving.gallery.probe import probe_image
from serving.loader import LoadedModel
from serving.registry import ModelSetup
from serving.servable import HostOptions
from serving.server import LocalServer, ServerOptions
from tests.serving.gallery.small_model import glyphs, train_and_export

EMPLOYEES = [f"Employee {number}" for number in range(1, 11)]
NEWCOMER = "Grace Hopper"
PEOPLE = [*EMPLOYEES, NEWCOMER]
LEAVER = EMPLOYEES[3]
HALF = 15
"""Of three more pictures of each employee; guessing gets three. How well a model recognises is
measured elsewhere, and this one is trained for seconds."""
Command = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Files of each person's pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    files: dict[str, list[Path]] = {}
    for number, person in enumerate(PEOPLE):
        files[person] = []
        for shot, image in enumerate(glyphs(40 + number, 1)[0]):
            path = folder / f"{person} {shot}.png"
            path.write_bytes(image)
            files[person].append(path)
    return files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("models") / "siamese"
    train_and_export(base / "1")
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
    monkeypatch.setattr(gallery_cli, "_embedder", lambda model: embedder)

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


def recognised(oneshot: Command, pictures: dict[str, list[Path]], person: str) -> int:
    """How many of three other pictures of someone have the right name first."""
    right = 0
    for picture in pictures[person][1:4]:
        _, found = oneshot("identify", picture, "--false-accept-rate", "0.2")
        right += found["candidates"][0]["name"] == person
    return right


def test_one_joins_and_one_leaves_and_nobody_retrains(
    oneshot: Command, models: Path, pictures: dict[str, list[Path]]
) -> None:
    before = digest(models)
    for person in EMPLOYEES:
        assert oneshot("enroll", person, pictures[person][0])[1]["added"] == 1
    assert sum(recognised(oneshot, pictures, person) for person in EMPLOYEES) >= HALF

    assert recognised(oneshot, pictures, NEWCOMER) == 0
    oneshot("enroll", NEWCOMER, pictures[NEWCOMER][0])
    assert recognised(oneshot, pictures, NEWCOMER) >= 2

    assert oneshot("remove", LEAVER)[1]["erased"] is True
    assert recognised(oneshot, pictures, LEAVER) == 0
    _, staff = oneshot("list")
    assert [one["name"] for one in staff] == sorted({*PEOPLE} - {LEAVER})
    staying = [person for person in EMPLOYEES if person != LEAVER]
    assert sum(recognised(oneshot, pictures, person) for person in staying) >= HALF

    assert digest(models) == before


def test_the_same_picture_opens_the_door_and_anybody_elses_does_not(
    oneshot: Command, pictures: dict[str, list[Path]]
) -> None:
    for person in EMPLOYEES:
        oneshot("enroll", person, pictures[person][0])
    assert oneshot("verify", EMPLOYEES[0], pictures[EMPLOYEES[0]][0])[0] == EXIT_DONE
    code, answer = oneshot(
        "verify", EMPLOYEES[0], pictures[EMPLOYEES[1]][0], "--false-accept-rate", "0.001"
    )
    assert (code, answer["same"]) == (EXIT_DIFFERENT, False)


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
    refused("too few people", "calibrate")
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
    assert oneshot("calibrate")[1]["source"] == "gallery"
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
    assert (found["source"], found["people"]) == ("cohort", 10)


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
