"""Pushes to and reads from an object store; TensorFlow's in-memory one stands for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf
from tfx.dsl.io import fileio, filesystem_registry
from tfx.dsl.io.plugins.tensorflow_gfile import TensorflowFilesystem
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from components.pusher.component import Executor
from components.pusher.earlier_models import ABSENT, ServedModel_Executor
from components.pusher.object_store import names_in, newest_version, push_to_object_store
from components.trainer.checkpoints import FitCheckpoint

FILES = ("saved_model.pb", "variables/variables.index", "assets.extra/model.keras")


class MemoryFilesystem(TensorflowFilesystem):
    """TFX asks for an object store's plugin by scheme."""

    SUPPORTED_SCHEMES = ["ram://"]


@pytest.fixture
def base() -> Iterator[str]:
    """An empty model base path in the store."""
    registry = filesystem_registry.DEFAULT_FILESYSTEM_REGISTRY
    registry.register(MemoryFilesystem, priority=20)
    yield "ram://bucket/models/siamese"
    if tf.io.gfile.exists("ram://bucket"):
        tf.io.gfile.rmtree("ram://bucket")


@pytest.fixture
def model(tmp_path: Path) -> standard_artifacts.Model:
    """A Trainer's export."""
    artifact = standard_artifacts.Model()
    artifact.uri = str(tmp_path / "model")
    for name in FILES:
        path = tmp_path / "model" / "Format-Serving" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return artifact


def test_the_file_that_servers_wait_for_is_copied_last(
    base: str, model: standard_artifacts.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    copy = fileio.copy

    def note(source: str, target: str) -> None:
        copied.append(Path(source).name)
        copy(source, target)

    monkeypatch.setattr(fileio, "copy", note)
    uri, version = push_to_object_store(f"{model.uri}/Format-Serving", base, now=lambda: 100.5)
    assert (uri, version) == (f"{base}/100", 100)
    assert copied[-1] == "saved_model.pb"
    for name in FILES:
        assert tf.io.gfile.GFile(f"{uri}/{name}").read() == name


def test_numbers_only_go_up_also_past_one_that_was_rolled_back(
    base: str, model: standard_artifacts.Model
) -> None:
    source = f"{model.uri}/Format-Serving"
    numbers = [push_to_object_store(source, base, now=lambda: 7.0)[1] for _ in range(2)]
    assert numbers == [7, 8]
    tf.io.gfile.makedirs(f"{base}/rolled-back-8")
    tf.io.gfile.rename(f"{base}/8/saved_model.pb", f"{base}/rolled-back-8/saved_model.pb")
    tf.io.gfile.rmtree(f"{base}/8")
    assert newest_version(base) == f"{base}/7"
    assert push_to_object_store(source, base, now=lambda: 7.0)[1] == 9


def test_a_copy_that_fails_leaves_no_version(
    base: str, model: standard_artifacts.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = fileio.copy

    def fail(source: str, target: str) -> None:
        if source.endswith("model.keras"):
            copy(source, target)
            raise OSError("quota")
        copy(source, target)

    monkeypatch.setattr(fileio, "copy", fail)
    with pytest.raises(OSError, match="quota"):
        push_to_object_store(f"{model.uri}/Format-Serving", base)
    assert names_in(base) == []


def test_a_version_without_its_last_file_is_not_served_yet(base: str) -> None:
    tf.io.gfile.makedirs(f"{base}/5")
    assert names_in(base) == ["5"]
    assert newest_version(base) is None


def test_the_pusher_pushes_there_and_the_served_model_is_found_again(
    base: str, model: standard_artifacts.Model, tmp_path: Path
) -> None:
    blessing, gate = standard_artifacts.ModelBlessing(), standard_artifacts.InfraBlessing()
    blessing.set_int_custom_property("blessed", 1)
    gate.set_int_custom_property("blessed", 1)
    pushed = standard_artifacts.PushedModel()
    pushed.uri = str(tmp_path / "pushed")
    filesystem = pusher_pb2.PushDestination.Filesystem(base_directory=base)
    destination = pusher_pb2.PushDestination(filesystem=filesystem)
    served, nothing = standard_artifacts.Model(), standard_artifacts.Model()
    nothing.uri, served.uri = str(tmp_path / "nothing"), str(tmp_path / "served")
    find = ServedModel_Executor()

    find.Do({}, {"model": [nothing]}, {"base_path": base})
    assert nothing.get_int_custom_property(ABSENT) == 1

    Executor().Do(
        {"model": [model], "model_blessing": [blessing], "infra_blessing": [gate]},
        {"pushed_model": [pushed]},
        {"push_destination": proto_utils.proto_to_json(destination)},
    )
    version = pushed.get_string_custom_property("pushed_version")
    assert pushed.get_string_custom_property("pushed_destination") == f"{base}/{version}"

    find.Do({}, {"model": [served]}, {"base_path": base})
    assert not served.get_int_custom_property(ABSENT)
    assert {(tmp_path / "served/Format-Serving" / name).read_text() for name in FILES} == set(FILES)


def test_a_checkpoint_there_is_taken_up_and_removed(base: str) -> None:
    def checkpoint() -> tuple[FitCheckpoint, tf.Variable]:
        weights = tf.Variable([0.0])
        return FitCheckpoint(f"{base}/c", key="k", variables={"weights": [weights]}), weights

    writer, weights = checkpoint()
    weights.assign([3.0])
    writer.save(1, {"step": 1})
    reader, weights = checkpoint()
    assert reader.restore() == {"step": 1}
    assert float(weights[0]) == 3.0
    reader.remove()
    assert not tf.io.gfile.exists(f"{base}/c") or not tf.io.gfile.listdir(f"{base}/c")
