"""What `pipeline.runners.local` replaces in TFX is still what LocalDagRunner calls."""

import logging
from pathlib import Path

import pytest
from tfx import v1 as tfx
from tfx.orchestration.portable import launcher

from pipeline.runners.local import announced_nodes


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
    with (
        caplog.at_level(logging.INFO, "pipeline.runners.local"),
        announced_nodes(["First", "Second"], lambda: checked.append(True)),
    ):
        tfx.orchestration.LocalDagRunner().run(pipeline)
    assert len(checked) == 2
    said = [one.getMessage() for one in caplog.records if one.name == "pipeline.runners.local"]
    assert sorted(said[::2]) == ["[1/2] First", "[2/2] Second"]
    assert launcher.Launcher.launch is original
