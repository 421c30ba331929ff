"""What `pipeline.runners.local` replaces in TFX is still what LocalDagRunner calls."""

from collections.abc import Callable
from pathlib import Path

from tfx import v1 as tfx
from tfx.orchestration.portable import launcher

from pipeline.runners.local import launching_nodes_by


def test_every_node_is_launched_by_the_function_given(tmp_path: Path) -> None:
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
    launched: list[str] = []
    original = launcher.Launcher.launch

    def launch(node: str, launch_node: Callable[[], object]) -> object:
        launched.append(node)
        return launch_node()

    with launching_nodes_by(launch):
        tfx.orchestration.LocalDagRunner().run(pipeline)
    assert sorted(launched) == ["First", "Second"]
    assert launcher.Launcher.launch is original
