"""A damaged metadata.db is noticed by every command, and replaced by what can still be known."""

import argparse
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import ml_metadata
import pytest
from ml_metadata.proto.metadata_store_pb2 import Artifact, ConnectionConfig, Event

from components.pusher.pushed_models import MODEL_ID, custom_int, pushed_version, sound_models
from pipeline.cli.doctor import check_history
from pipeline.cli.main import main
from pipeline.cli.shared import Context
from pipeline.releases.promotion import Promotions
from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.repair import damage, repair, restore_models
from pipeline.runs.status import Status
from pipeline.runs.workspace import Workspace
from pipeline.settings import PushSettings
from tests.pipeline.recorded_runs import RecordedRuns
from tests.pipeline.runs.test_summary import SUMMARY

NOISE = random.Random(1).randbytes(8192)


def _connection(workspace: Workspace) -> ConnectionConfig:
    return parse_url(f"sqlite:///{workspace.metadata_db}").connection()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Of two versions and one before them that was rolled back, and a span's run."""
    runs = RecordedRuns(tmp_path, clock=iter(range(1000, 2000)).__next__)
    first, second, _ = (runs.run(data=number) for number in range(3))
    settings = PushSettings(server_poll_seconds=0)
    promotions = Promotions(runs.workspace, runs.store, settings=settings)
    promotions.promote(first.version or 0, "stable")
    promotions.promote(second.version or 0, "stable")
    promotions.rollback(why="bad")
    runs.history.record(
        RunRecord("run-of-a-span", Status.DONE, 5.0, span=7, window=(6, 7), promoted=True)
    )
    return runs.workspace


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _noisy(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + NOISE + content[middle + len(NOISE) :]


def _no_header(content: bytes) -> bytes:
    return NOISE[:100] + content[100:]


DAMAGES = pytest.mark.parametrize("spoil", [_half, _noisy, _no_header, lambda content: b""])


@DAMAGES
def test_every_command_names_a_damaged_file_and_what_to_do(
    spoil: Callable[[bytes], bytes], workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    file = workspace.metadata_db
    file.write_bytes(spoiled := spoil(file.read_bytes()))
    for command in (["runs"], ["gc"], ["promote"], ["rollback"], ["retrain", "--if-new"], ["run"]):
        assert main([*command, "--output", str(workspace.root)]) == 2
        told = capfd.readouterr().err
        assert f"oneshot: {file} is " in told
        assert f"oneshot doctor --repair --output {workspace.root}" in told
        assert len(told.splitlines()) == 1
    options = argparse.Namespace(config=None, overrides=[], output=workspace.root)
    check = check_history(Context(options))
    assert (check.ok, check.fatal) == (False, True)
    assert f"{file} is " in check.detail
    assert file.read_bytes() == spoiled


def test_nothing_is_wrong_with_a_sound_file_or_where_there_is_no_history(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = workspace.metadata_db.read_bytes()
    assert damage(workspace.metadata_db, workspace) == ""
    assert main(["doctor", "--repair", "--output", str(workspace.root)]) == 0
    assert "Nothing is wrong" in capsys.readouterr().out
    assert workspace.metadata_db.read_bytes() == before
    begun = Workspace(tmp_path / "begun")
    assert damage(begun.metadata_db, begun) == ""
    begun.root.mkdir()
    # As SQLite leaves it where it is killed before it has made the first table.
    begun.metadata_db.touch()
    assert damage(begun.metadata_db, begun) == ""


@DAMAGES
def test_a_repaired_history_knows_the_versions_and_what_can_be_read_of_the_runs(
    spoil: Callable[[bytes], bytes], workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = "20260131-184501-203"
    workspace.run_dir(run_id).mkdir()
    summary = replace(SUMMARY, run_id=run_id, pushed_version=1001, blessed=True)
    (workspace.run_dir(run_id) / "summary.json").write_text(json.dumps(asdict(summary)))
    file = workspace.metadata_db
    file.write_bytes(spoiled := spoil(file.read_bytes()))
    journal = file.with_name("metadata.db-journal")
    journal.write_bytes(b"of the damaged file")
    folders = {path.name for path in workspace.serving_model.glob("[0-9]*")}
    assert main(["doctor", "--repair", "--json", "--output", str(workspace.root)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {str(version) for version in told["versions"]} == folders
    assert len(folders) == 2
    assert (Path(told["damaged"]) / "metadata.db").read_bytes() == spoiled
    assert (Path(told["damaged"]) / "artifacts" / "Trainer").is_dir()
    assert not (workspace.artifacts / "Trainer").exists()
    assert not journal.exists()
    assert damage(file, workspace) == ""

    runs = {run.run_id: run for run in RunHistory(_connection(workspace)).runs()}
    assert (runs[run_id].pushed_version, runs[run_id].accuracy) == (1001, 0.5)
    assert runs[run_id].dataset == "folder"
    assert told["runs"] == len(runs)
    # As it was, where the page that held it can be read.
    assert ("run-of-a-span" in runs) == (spoil is _noisy)
    if spoil is _noisy:
        assert (runs["run-of-a-span"].span, runs["run-of-a-span"].window) == (7, (6, 7))
    store = ml_metadata.MetadataStore(_connection(workspace))
    # Where TFX's Resolver looks: outputs in the context of the pipeline.
    context = store.get_context_by_type_and_name("pipeline", "oneshot")
    events = store.get_events_by_execution_ids(
        [execution.id for execution in store.get_executions_by_context(context.id)]
    )
    made = store.get_artifacts_by_id([e.artifact_id for e in events if e.type == Event.OUTPUT])
    pushes = [artifact for artifact in made if artifact.type == "PushedModel"]
    newest = sound_models([one for one in made if one.type == "Model"], pushes)[-1]
    (push,) = [push for push in pushes if custom_int(push, MODEL_ID) == newest.id]
    assert pushed_version(push) == max(map(int, folders))
    assert newest.state == push.state == Artifact.LIVE
    model = Path(newest.uri, "Format-Serving", "saved_model.pb").read_bytes()
    assert (
        model
        == (workspace.serving_model / str(max(told["versions"])) / "saved_model.pb").read_bytes()
    )
    for command in (["runs"], ["promote"], ["gc"]):
        assert main([*command, "--output", str(workspace.root)]) == 0


def test_without_its_file_a_folder_with_artifacts_is_repaired_before_it_is_used(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.metadata_db.unlink()
    assert main(["runs", "--output", str(workspace.root)]) == 2
    assert "metadata.db is missing" in capsys.readouterr().err
    assert not workspace.metadata_db.exists()
    assert main(["doctor", "--repair", "--output", str(workspace.root)]) == 0
    assert damage(workspace.metadata_db, workspace) == ""
    assert [path.name for path in workspace.artifacts.iterdir()] == ["repaired"]


def test_a_repair_that_was_cut_off_is_repeated(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = workspace.metadata_db
    file.write_bytes(_half(file.read_bytes()))

    def cut_off(*_: object, **__: object) -> None:
        raise OSError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.runs.repair.rename_durably", cut_off)
        with pytest.raises(OSError, match="cut off"):
            repair(file, workspace, pipeline_name="oneshot")
    assert damage(file, workspace)
    assert len(repair(file, workspace, pipeline_name="oneshot").versions) == 2
    assert damage(file, workspace) == ""
    assert [path.name for path in workspace.root.glob(".*")] == []


def test_a_model_whose_artifact_is_gone_is_copied_back_or_no_longer_counts(
    tmp_path: Path,
) -> None:
    runs = RecordedRuns(tmp_path, clock=iter(range(1000, 2000)).__next__)
    for number in range(3):
        runs.run(data=number)
    base, store = runs.workspace.serving_model, runs.store
    shutil.rmtree(runs.workspace.artifacts / "Trainer" / "model")
    oldest, *_, newest = sorted(path.name for path in base.iterdir())
    shutil.rmtree(base / oldest)
    restore_models(store, runs.workspace)
    gone, *_, there = store.get_artifacts_by_type("Model")
    assert gone.state == Artifact.DELETED
    assert there.state == Artifact.LIVE
    copied = Path(there.uri, "Format-Serving", "saved_model.pb")
    assert copied.read_bytes() == (base / newest / "saved_model.pb").read_bytes()
    copied.write_text("as it is")
    restore_models(store, runs.workspace)
    assert copied.read_text() == "as it is"
