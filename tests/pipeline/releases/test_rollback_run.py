"""Real runs around a rollback and a collection: what is compared, cached, pushed and refused.

The tests build on one another's output folder, in the order they are written.
"""

import json
from pathlib import Path
from typing import Any

import ml_metadata
import pytest
from ml_metadata.proto import metadata_store_pb2

from components.pusher.pushed_models import rolled_back
from pipeline.cli.main import main
from pipeline.runs.workspace import Workspace
from serving.saved_model.versions import versions
from tests.pipeline.test_run import arguments, run

Artifact = metadata_store_pb2.Artifact


class Story:
    """An output folder, and the versions pushed into it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.workspace = Workspace(output)
        self.pushed: list[int] = []

    def run(self, capfd: pytest.CaptureFixture[str], **settings: str) -> tuple[int, dict[str, Any]]:
        code, summary, _ = run(
            capfd, *arguments(self.output, dataset__source="synthetic", **settings)
        )
        if summary["pushed_version"] is not None:
            self.pushed.append(summary["pushed_version"])
        return code, summary

    def oneshot(self, *argv: str) -> int:
        return main([*argv, "--output", str(self.output), "--set", "push.server_poll_seconds=0"])

    def versions(self) -> list[int]:
        return versions(self.workspace.serving_model)

    def artifacts(self) -> list[Artifact]:
        config = metadata_store_pb2.ConnectionConfig()
        config.sqlite.filename_uri = str(self.workspace.metadata_db)
        found: list[Artifact] = ml_metadata.MetadataStore(config).get_artifacts()
        return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("rollback"))


def test_two_models_are_pushed_and_the_second_becomes_stable(
    story: Story, capfd: pytest.CaptureFixture[str]
) -> None:
    assert story.run(capfd)[0] == 0
    assert story.oneshot("promote", str(story.pushed[0]), "--label", "stable") == 0
    assert story.run(capfd, train__seed="2")[0] == 0
    assert story.oneshot("promote", str(story.pushed[1]), "--label", "stable") == 0
    assert story.versions() == story.pushed


def test_after_the_rollback_the_same_run_comes_from_the_cache_and_is_refused(
    story: Story, capfd: pytest.CaptureFixture[str]
) -> None:
    assert story.oneshot("rollback", "--why", "wrong answers") == 0
    code, summary = story.run(capfd, train__seed="2")
    assert code == 3
    assert summary["blessed"] is False
    assert summary["pushed_version"] is None
    assert "wrong answers" in " ".join(summary["refusals"])
    assert "Trainer" in summary["cached"]
    assert story.versions() == [story.pushed[0]]


def test_a_collection_leaves_the_newest_run_in_the_cache(
    story: Story, capfd: pytest.CaptureFixture[str]
) -> None:
    before = len([a for a in story.artifacts() if a.state == Artifact.LIVE])
    assert story.oneshot("gc", "--keep-versions", "1", "--keep-days", "0") == 0
    live = [artifact for artifact in story.artifacts() if artifact.state == Artifact.LIVE]
    assert len(live) < before
    assert all(Path(artifact.uri).exists() for artifact in live)
    code, summary = story.run(capfd, train__seed="2")
    assert code == 3
    assert set(summary["cached"]) >= {"PairExampleGen", "StatisticsGen", "Trainer", "Pusher"}
    assert set(summary["cached"]) >= {"Evaluator", "ServingGate"}


def test_the_next_model_starts_from_and_is_compared_with_the_one_before_the_bad_one(
    story: Story, capfd: pytest.CaptureFixture[str]
) -> None:
    code, summary = story.run(capfd, train__seed="3", train__warm_start="true")
    assert code == 0
    assert story.versions() == [story.pushed[0], summary["pushed_version"]]
    card = Path(summary["model_dir"], "assets.extra", "model_card.json").read_text()
    start = Path(json.loads(card)["training"]["warm_start_from"])
    models = {artifact.id: artifact for artifact in story.artifacts() if artifact.type == "Model"}
    bad = [model for model in models.values() if rolled_back(model)]
    sound = [model for model in models.values() if not rolled_back(model)]
    assert len(bad) == 1
    assert Path(sound[0].uri) in start.parents
    blessing = max(
        (a for a in story.artifacts() if a.type == "ModelBlessing"),
        key=lambda artifact: artifact.id,
    )
    assert blessing.custom_properties["baseline_model_id"].int_value == sound[0].id


def test_servers_with_labels_are_told_to_load_what_was_pushed(story: Story) -> None:
    text = story.workspace.models_config.read_text()
    assert f"versions: {story.pushed[-1]}" in text
    assert f"value: {story.pushed[0]}" in text
