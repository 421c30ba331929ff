"""The gallery over HTTP, behind the same guard as the models; background rebuilds."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from serving.client.images import encode_png
from serving.gallery.gallery import Gallery
from serving.gallery.http import Follower, gallery_routes
from serving.gallery.sqlite.store import SqliteStore
from serving.server.models import ServerState
from serving.server.rest.app import rest_app
from serving.server.rest.protocol import RestOptions
from tests.serving.gallery.conftest import OpenStore
from tests.serving.gallery.fakes import FakeModels, photo, written

PEOPLE = [f"person {number}" for number in range(8)]
BLANK = encode_png(np.full((20, 20), 255, np.uint8))


def b64(image: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(image).decode()}


@pytest.fixture(scope="module")
def models() -> FakeModels:
    return FakeModels()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, models: FakeModels) -> Iterator[Starlette]:
    path = tmp_path_factory.mktemp("api") / "gallery.db"
    with Gallery(SqliteStore(path), models) as gallery:
        follower = Follower(gallery)
        routes = gallery_routes(gallery, follower)
        state = ServerState({})
        yield rest_app(state, options=RestOptions(token="secret"), routes=routes)
        state.close()
        follower.close()


@pytest.fixture
def client(app: Starlette) -> Iterator[TestClient]:
    headers = {"authorization": "Bearer secret"}
    with TestClient(app, headers=headers, raise_server_exceptions=True) as client:
        for identity in client.get("/v1/gallery/identities").json()["identities"]:
            client.post("/v1/gallery/remove", json={"name": identity["name"]})
        for person in PEOPLE:
            body = {"name": person, "images": [b64(photo(person))]}
            assert client.post("/v1/gallery/enroll", json=body).status_code == 200
        yield client


def test_enrolled_people_are_identified_and_verified(client: TestClient) -> None:
    found = client.post(
        "/v1/gallery/identify", json={"image": b64(photo(PEOPLE[2], 1)), "limit": 3}
    ).json()
    assert found["name"] == PEOPLE[2]
    assert found["candidates"][0]["name"] == PEOPLE[2]
    assert len(found["candidates"]) == 3
    stranger = client.post("/v1/gallery/identify", json={"image": b64(photo("who?"))}).json()
    assert stranger["name"] is None
    for person, same in ((PEOPLE[0], True), (PEOPLE[1], False)):
        body = {"name": person, "image": b64(photo(PEOPLE[0], 1))}
        assert client.post("/v1/gallery/verify", json=body).json()["same"] is same


def test_removed_people_are_gone(client: TestClient) -> None:
    removed = client.post("/v1/gallery/remove", json={"name": PEOPLE[0]}).json()
    assert removed == {"name": PEOPLE[0], "images": 1, "erased": True}
    listed = client.get("/v1/gallery/identities").json()["identities"]
    assert [identity["name"] for identity in listed] == PEOPLE[1:]
    page = client.get("/v1/gallery/identities", params={"after": PEOPLE[2], "limit": 2}).json()
    assert [identity["name"] for identity in page["identities"]] == PEOPLE[3:5]


def test_the_state_tells_model_calibration_and_rebuild(client: TestClient) -> None:
    state = client.get("/v1/gallery").json()
    assert (state["names"], state["images"], state["model_version"]) == (8, 8, "1")
    assert state["calibration"]["source"] == "model"
    assert state["rebuild"] == {"state": "idle", "done": 0, "total": 0, "error": ""}


def test_a_rebuild_goes_on_behind_the_answer(client: TestClient, models: FakeModels) -> None:
    models.newest = "2" if models.newest == "1" else "1"
    reply = client.post("/v1/gallery/rebuild")
    assert (reply.status_code, reply.json()["rebuild"]["state"]) == (202, "running")
    deadline = time.monotonic() + 60
    while client.get("/v1/gallery").json()["rebuild"]["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.get("/v1/gallery").json()["model_version"] == models.newest


def test_without_the_token_nobody_is_told_anything(app: Starlette) -> None:
    with TestClient(app) as stranger:
        for path in ("", "/identities"):
            assert stranger.get(f"/v1/gallery{path}").status_code == 401
        assert stranger.post("/v1/gallery/remove", json={"name": PEOPLE[0]}).status_code == 401


@pytest.mark.parametrize(
    ("action", "body", "status", "message"),
    [
        ("identify", {}, 400, "missing: image"),
        ("identify", {"image": "abc"}, 400, "base64"),
        ("identify", {"image": {"b64": "?"}}, 400, "base64"),
        ("identify", {"image": {"b64": ""}}, 400, "empty; "),
        ("identify", {"image": b64(written(b"refused"))}, 400, "not an image"),
        ("identify", {"image": b64(BLANK)}, 400, "nothing is drawn on it; "),
        ("verify", {"name": PEOPLE[0], "image": b64(BLANK)}, 400, "nothing is drawn on it; "),
        (
            *("enroll", {"name": "A", "images": [b64(photo("A")), b64(BLANK)]}, 400),
            "'A', image 1: nothing is drawn on it; ",
        ),
        ("identify", {"image": b64(b"x"), "limit": 0}, 400, "limit"),
        ("identify", {"image": b64(b"x"), "limit": True}, 400, "integer"),
        ("identify", {"image": b64(b"x"), "false_accept_rate": 2}, 400, "false-accept rate"),
        ("identify", {"image": b64(b"x"), "other": 1}, 400, "unknown: 1"),
        ("enroll", {"name": "A", "images": []}, 400, "1 to 100 images"),
        ("enroll", {"name": "A\n", "images": [b64(b"x")]}, 400, "control characters"),
        ("enroll", {"name": 5, "images": [b64(b"x")]}, 400, "name is a string"),
        ("enroll", {"name": "A", "images": b64(b"x")}, 400, "list of images"),
        ("enroll", {"name": "A", "images": [b64(photo(PEOPLE[1]))]}, 409, "already enrolled"),
        ("verify", {"name": "nobody", "image": b64(photo("x"))}, 404, "nobody is enrolled"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(
    client: TestClient, action: str, body: dict[str, Any], status: int, message: str
) -> None:
    reply = client.post(f"/v1/gallery/{action}", json=body)
    assert reply.status_code == status
    assert message in reply.json()["error"]


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "image", "images", "b64", "limit", "false_accept_rate", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
ACTIONS = st.sampled_from(["enroll", "identify", "verify", "remove"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(action=ACTIONS, body=documents.map(json.dumps).map(str.encode) | st.binary(max_size=60))
def test_no_body_makes_the_server_fail(client: TestClient, action: str, body: bytes) -> None:
    reply = client.post(f"/v1/gallery/{action}", content=body)
    assert reply.status_code < 500
    assert isinstance(reply.json(), dict)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"name":"\\ud800"}', b'{"name":1e999}', b"\xff\xfe{"]
)
def test_hostile_json_is_refused(client: TestClient, body: bytes) -> None:
    reply = client.post("/v1/gallery/remove", content=body)
    assert reply.status_code == 400


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=1001", "limit=99999999999999", "after=%00"]
)
def test_wrong_pages_are_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/v1/gallery/identities?{query}").status_code == 400


def test_a_gallery_survives_the_server_that_held_it(tmp_path: Path, models: FakeModels) -> None:
    path = tmp_path / "gallery.db"
    for turn in range(2):
        with Gallery(SqliteStore(path), FakeModels()) as gallery:
            gallery.enroll(f"{turn}", [photo(f"{turn}")])
            assert gallery.identify(photo("0", 1)).candidates[0].name == "0"


@pytest.fixture
def own_models() -> FakeModels:
    return FakeModels()


@pytest.fixture
def followed(open_one: OpenStore, own_models: FakeModels) -> Gallery:
    made = Gallery(open_one(), own_models)
    made.enroll_many([(person, [photo(person)]) for person in PEOPLE])
    return made


def test_a_follower_rebuilds_when_a_newer_model_appears(
    followed: Gallery, own_models: FakeModels
) -> None:
    follower = Follower(followed, every_seconds=0.01)
    try:
        own_models.newest = "2"
        deadline = time.monotonic() + 60
        while followed.status().model_version != "2" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert followed.identify(photo(PEOPLE[0], 1)).model_version == "2"
    finally:
        follower.close()


def test_a_failed_rebuild_is_told_and_the_next_one_succeeds(
    followed: Gallery, own_models: FakeModels
) -> None:
    follower = Follower(followed)

    def wait() -> None:
        deadline = time.monotonic() + 60
        while follower.state.state == "running" and time.monotonic() < deadline:
            time.sleep(0.01)

    try:
        own_models.newest = "2"
        own_models.available = {"1"}
        follower.rebuild()
        wait()
        assert follower.state.state == "failed"
        assert "version 2 is not loaded" in follower.state.error
        own_models.available = {"1", "2"}
        follower.rebuild()
        wait()
        assert follower.state.state == "idle"
        assert followed.status().model_version == "2"
    finally:
        follower.close()
