"""What `pipeline.runners.local` replaces in TFX is still what LocalDagRunner calls."""

import logging
import re
from pathlib import Path

import pytest
from tfx import v1 as tfx
from tfx.dsl.component.experimental.annotations import OutputArtifact
from tfx.dsl.component.experimental.decorators import component
from tfx.orchestration.portable import launcher

from data_ingest.errors import InputError, ReadError
from data_ingest.progress import running, watched
from pipeline.runners.local import RunFailedError, _ending, _for_people, announced_nodes
from pipeline.runs.status import Status
from pipeline.runs.workspace import Workspace
from pipeline.settings import BeamSettings


def test_every_node_is_announced_once_the_lease_has_been_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def importer(name: str) -> tfx.dsl.Importer:
        artifact = tfx.types.standard_artifacts.Model
        return tfx.dsl.Importer(str(tmp_path), artifact_type=artifact).with_id(name)

    pipeline = tfx.dsl.Pipeline(
        pipeline_name="tiny",
        pipeline_root=str(tmp_path / "root"),
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(tmp_path / "metadata.db")
        ),
        components=[importer("First"), importer("Second")],
    )
    original = launcher.Launcher.launch
    checked: list[bool] = []
    parts: dict[str, str] = {}

    def check_lease() -> None:
        checked.append(True)
        (run,) = running()
        parts.update(run.parts)

    with (
        caplog.at_level(logging.INFO, "pipeline.runners.local"),
        announced_nodes(["First", "Second"], check_lease),
    ):
        tfx.orchestration.LocalDagRunner().run(pipeline)
    assert len(checked) == 2
    said = [one.getMessage() for one in caplog.records if one.name == "pipeline.runners.local"]
    assert sorted(said[::2]) == ["[1/2] First", "[2/2] Second"]
    assert all(re.fullmatch(r" +done in \d+\.\d s", line) for line in said[1::2])
    assert re.fullmatch(r"\d+\.\d s", parts["First"])
    assert parts.keys() == {"First", "Second"}
    assert launcher.Launcher.launch is original


@component
def Makes(model: OutputArtifact[tfx.types.standard_artifacts.Model]) -> None:  # noqa: N802
    Path(model.uri).mkdir(parents=True, exist_ok=True)


def test_a_node_from_the_cache_is_told_as_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run() -> dict[str, str]:
        """How the one node went."""
        went: dict[str, str] = {}

        def changed() -> None:
            for one in running():
                went.update(one.parts)

        pipeline = tfx.dsl.Pipeline(
            pipeline_name="tiny",
            pipeline_root=str(tmp_path / "root"),
            metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
                str(tmp_path / "metadata.db")
            ),
            components=[Makes()],
            enable_cache=True,
        )
        with watched(changed), announced_nodes(["Makes"], lambda: None):
            tfx.orchestration.LocalDagRunner().run(pipeline)
        return went

    caplog.set_level(logging.INFO, "pipeline.runners.local")
    assert re.fullmatch(r"\d+\.\d s", run()["Makes"])
    assert run() == {"Makes": "cached"}
    said = [one.getMessage() for one in caplog.records if one.name == "pipeline.runners.local"]
    assert said[-1] == "      from the cache"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), Status.INTERRUPTED),
        (SystemExit(143), Status.INTERRUPTED),
        (InputError("no images"), Status.REFUSED),
        (RunFailedError("a fault"), Status.FAILED),
    ],
)
def test_the_history_says_how_a_run_ended(error: BaseException, state: Status) -> None:
    assert _ending(error) is state


def test_what_keeps_images_from_being_read_is_told_in_its_own_words(tmp_path: Path) -> None:
    said = "/data/1.zip/a/b/1.png: Stale file handle: see that its share works, and run it again"
    try:
        try:
            raise ReadError(said)
        except ReadError as error:
            raise RuntimeError("Traceback of Beam") from error
    except RuntimeError as error:
        told = _for_people(error, Workspace(tmp_path), BeamSettings())
    assert (type(told), str(told)) == (RunFailedError, said)


@pytest.mark.parametrize(
    "words", ["No space left on device", "Disk quota exceeded", "database or disk is full"]
)
def test_a_full_disk_and_a_used_quota_are_told_alike(words: str, tmp_path: Path) -> None:
    told = _for_people(
        RuntimeError(f"x.pb; {words} [while running 'Write']"), Workspace(tmp_path), BeamSettings()
    )
    assert f"the disk of {tmp_path} is full, or your quota on it" in str(told)
