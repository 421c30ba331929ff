"""A model's host with real SavedModels."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from serving.errors import Code, ServingError
from serving.saved_model.contract import EXTRA, MODEL_CARD, WARMUP
from serving.server.batching import BatchingOptions
from serving.server.loaded_version import WARMUP_FILE
from serving.server.model_host import ModelHost
from serving.server.models import ModelSetup, ServerState
from serving.server.versions import HostOptions, Policy, State
from tests.serving.server.word_model import export_word_model, push, words, write_warmup

PATIENCE = 120.0
Hosts = Callable[..., ModelHost]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Exported models by the offset that tells them apart."""
    folder = tmp_path_factory.mktemp("exports")
    return {
        offset: export_word_model(folder / str(offset), offset=offset) for offset in (100, 200, 300)
    }


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Hosts]:
    states = []

    def start(**options: Any) -> ModelHost:
        setup = ModelSetup(tmp_path, HostOptions(**{"poll_seconds": 0.05, **options}))
        state = ServerState({"words": setup})
        state.start()
        states.append(state)
        host = state.host("words")
        assert host.wait_settled(PATIENCE)
        return host

    yield start
    for state in states:
        state.close()


def lengths(host: ModelHost, *values: bytes, **which: Any) -> list[int]:
    found: list[int] = host.predict(words(*values), **which).outputs["length"].tolist()
    return found


def test_the_same_request_through_every_door(
    serve: Hosts, exports: dict[int, Path], tmp_path: Path
) -> None:
    push(exports[100], tmp_path, 4)
    host = serve(labels={"stable": 4})
    prediction = host.predict(words(b"abc", b"z\0"), signature="serving_default")
    assert prediction.version == 4
    assert prediction.outputs["length"].tolist() == [103, 102]
    assert prediction.outputs["word"].tolist() == [b"abc", b"z\0"]
    assert lengths(host, b"ab") == lengths(host, b"ab", version=4) == [102]
    assert lengths(host, b"ab", label="stable") == [102]
    by_loop = asyncio.run(host.predict_async(words(b"ab"), deadline=time.monotonic() + PATIENCE))
    assert by_loop.outputs["length"].tolist() == [102]
    assert len(lengths(host, *[b"x"] * 1000)) == 1000


@pytest.mark.parametrize(
    ("inputs", "which", "code", "message"),
    [
        (words(b"a"), {"signature": "x"}, Code.FAILED_PRECONDITION, 'signature key "x" not found'),
        (words(b"a"), {"version": 9}, Code.NOT_FOUND, r"request: Specific\(words, 9\)"),
        (words(b"a"), {"label": "x"}, Code.INVALID_ARGUMENT, "version label: x"),
        (words(b"a", b""), {}, Code.INVALID_ARGUMENT, "empty word"),
        (
            {"txt": np.zeros(1)},
            {},
            Code.INVALID_ARGUMENT,
            r"input size does not match signature: 1!=1 len\({txt}\) != len\({text}\)\. "
            r"Sent extra: {txt}\. Missing but required: {text}\.",
        ),
        ({"text": np.ones(1)}, {}, Code.INVALID_ARGUMENT, r"arg\[0\] to be string but double is"),
        ({"text": np.array(["a"])}, {}, Code.INVALID_ARGUMENT, "an array of Python objects"),
        ({"text": np.array([1], dtype=object)}, {}, Code.INVALID_ARGUMENT, "to be string"),
        (
            {"text": np.array([[b"a"]], dtype=object)},
            {},
            Code.INVALID_ARGUMENT,
            r"'text' has shape \[1, 1\], which is not of the form \[-1\]",
        ),
        (
            {"a": np.zeros((2, 3), "f4"), "b": np.zeros((1, 3), "f4")},
            {"signature": "sum"},
            Code.INVALID_ARGUMENT,
            "equal 0th-dimension size",
        ),
        (
            {"a": np.zeros((1, 4), "f4"), "b": np.zeros((1, 3), "f4")},
            {"signature": "sum"},
            Code.INVALID_ARGUMENT,
            r"'a' has shape \[1, 4\]",
        ),
        (words(b"a"), {"deadline": 0.0}, Code.DEADLINE_EXCEEDED, "Deadline exceeded"),
    ],
)
def test_wrong_requests_are_told_apart(
    served: ModelHost,
    inputs: dict[str, np.ndarray],
    which: dict[str, Any],
    code: Code,
    message: str,
) -> None:
    if "deadline" not in which:
        with pytest.raises(ServingError, match=message) as error:
            served.predict(inputs, **which)
        assert error.value.code is code
    with pytest.raises(ServingError, match=message) as error:
        asyncio.run(served.predict_async(inputs, **which))
    assert error.value.code is code
    assert lengths(served, b"fine") == [104]


@pytest.fixture(scope="module")
def served(
    exports: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelHost]:
    base_path = tmp_path_factory.mktemp("words")
    push(exports[100], base_path, 1)
    state = ServerState({"words": ModelSetup(base_path)})
    state.start()
    assert state.host("words").wait_available(PATIENCE)
    yield state.host("words")
    state.close()


def test_a_bad_row_fails_only_its_own_request(served: ModelHost) -> None:
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        try:
            answers[number] = lengths(served, b"" if number == 13 else b"x" * (number + 1))
        except ServingError as error:
            answers[number] = error.code

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.pop(13) is Code.INVALID_ARGUMENT
    assert answers == {number: [101 + number] for number in range(40) if number != 13}


def test_metadata_lists_every_signature(served: ModelHost) -> None:
    version, signatures = served.metadata()
    assert version == 1
    assert {"serving_default", "sum"} <= set(signatures.signature_def)
    text = signatures.signature_def["serving_default"].inputs["text"]
    assert text.dtype == tf.string.as_datatype_enum
    assert served.metadata(version=1).signatures is signatures
    with pytest.raises(ServingError) as error:
        served.metadata(version=2)
    assert error.value.code is Code.NOT_FOUND


def test_the_status_of_a_version_never_seen_is_not_found(served: ModelHost) -> None:
    assert [status.state for status in served.status(1)] == [State.AVAILABLE]
    with pytest.raises(ServingError, match="Could not find version 8 of model words") as error:
        served.status(8)
    assert error.value.code is Code.NOT_FOUND


def test_batches_are_counted(exports: dict[int, Path], tmp_path: Path) -> None:
    push(exports[100], tmp_path, 1)
    batching = BatchingOptions(max_batch_size=4, allowed_batch_sizes=(2, 4))
    state = ServerState({"words": ModelSetup(tmp_path, HostOptions(batching=batching))})
    state.start()
    try:
        assert state.host("words").wait_available(PATIENCE)
        assert lengths(state.host("words"), b"a", b"b", b"c") == [101, 101, 101]
    finally:
        state.close()
    counted = state.metrics.exposition().decode()
    about = 'model_name="words",op_name="serving_default"'
    batches = ":tensorflow:serving:batching"
    assert f'{batches}:processed_batch_size{{batch_size="4",{about}}} 1.0' in counted
    assert f"{batches}:padding_size_sum{{{about}}} 1.0" in counted
    assert f"{batches}:padding_size_count{{{about}}} 1.0" in counted


def test_warm_up_requests_run_before_a_version_is_served(
    serve: Hosts, exports: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "serving")
    write_warmup(push(exports[100], tmp_path / "..", 1), b"a", b"bc")
    (tmp_path / ".." / "1").rename(tmp_path / "1")
    assert lengths(serve(), b"a") == [101]
    assert "(2 warm-up requests)" in caplog.text


def test_a_failing_warm_up_request_fails_the_version(
    serve: Hosts, exports: dict[int, Path], tmp_path: Path
) -> None:
    push(exports[100], tmp_path, 1)
    write_warmup(push(exports[200], tmp_path, 2), b"a", b"")
    host = serve(policy=Policy(latest=None))
    (failed,) = host.status(2)
    assert failed.state == State.END
    assert failed.status.error_code == Code.INVALID_ARGUMENT
    assert "empty word" in failed.status.error_message
    assert lengths(host, b"a") == [101]
    assert lengths(serve(policy=Policy(latest=None), warmup=False), b"a") == [201]


def test_an_export_of_an_earlier_release_is_served_with_a_warning(
    serve: Hosts, exports: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(exports[100], tmp_path, 3)
    card = push(exports[200], tmp_path, 4) / EXTRA / MODEL_CARD
    card.parent.mkdir(exist_ok=True)
    card.write_text("{}")
    host = serve(policy=Policy(latest=None))
    assert lengths(host, b"a", version=4) == [201]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("words: version 4 needs a new export, which decodes indexed PNGs")


def test_warm_up_requests_are_where_the_exporter_writes_them() -> None:
    assert Path(EXTRA) / WARMUP == WARMUP_FILE == Path("assets.extra/tf_serving_warmup_requests")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "saved_model.pb").write_bytes(b"junk"),
        lambda folder: (folder / "saved_model.pb").unlink(),
        lambda folder: next((folder / "variables").glob("*.data*")).write_bytes(b""),
        lambda folder: (folder / "variables" / "variables.index").unlink(),
    ],
    ids=["unreadable graph", "no graph", "empty variables", "no index"],
)
def test_a_damaged_version_ends_with_an_error_and_disturbs_nobody(
    serve: Hosts, exports: dict[int, Path], tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    push(exports[100], tmp_path, 1)
    damage(push(exports[200], tmp_path, 2))
    host = serve(policy=Policy(latest=None))
    (failed,) = host.status(2)
    assert failed.state == State.END
    assert failed.status.error_code != Code.OK
    assert failed.status.error_message
    assert str(tmp_path) not in failed.status.error_message
    assert lengths(host, b"a") == [101]


def test_no_request_fails_while_versions_are_swapped_under_load(
    serve: Hosts, exports: dict[int, Path], tmp_path: Path
) -> None:
    push(exports[100], tmp_path, 1)
    host = serve()
    stop = threading.Event()
    failures: list[Exception] = []
    answered: list[list[int]] = [[] for _ in range(4)]

    def load(seen: list[int]) -> None:
        while not stop.is_set():
            try:
                version = host.predict(words(b"ab"))
                if version.outputs["length"].tolist() != [100 * version.version + 2]:
                    raise AssertionError(f"{version} has another version's outputs")
                seen.append(version.version)
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=load, args=(seen,)) for seen in answered]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 3):
            push(exports[100 * version], tmp_path, version)
            deadline = time.monotonic() + PATIENCE
            while not failures and any(version not in seen[-1:] for seen in answered):
                assert time.monotonic() < deadline
                stop.wait(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    for seen in answered:
        assert seen == sorted(seen), "an old version answered after a new one"
        assert set(seen) == {1, 2, 3}


def test_a_cancelled_caller_leaves_nothing_behind(served: ModelHost) -> None:
    async def give_up() -> None:
        task = asyncio.create_task(served.predict_async(words(b"a")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert lengths(served, b"ab") == [102]
