"""Our Pusher pushes only with both blessings, and says what it did."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from components.pusher.component import Executor
from components.pusher.pushed_models import MODEL_ID, NOT_PUSHED_BECAUSE, ROLLED_BACK
from components.pusher.versions import push_version, withdraw_version
from serving.saved_model.versions import versions
from tests.components.pusher.export_files import is_whole

Push = Callable[..., standard_artifacts.PushedModel]


@pytest.fixture
def pushed(source: Path, tmp_path: Path) -> Push:
    """Runs our Pusher's executor as TFX does."""

    def run(
        *, model_blessed: int | None = 1, infra_blessed: int | None = 1, rolled_back: str = ""
    ) -> standard_artifacts.PushedModel:
        model = standard_artifacts.Model()
        model.uri = str(source.parent)
        model.id = 6
        if rolled_back:
            model.set_string_custom_property(ROLLED_BACK, rolled_back)
        blessings = {}
        for name, kind, value in (
            ("model_blessing", standard_artifacts.ModelBlessing, model_blessed),
            ("infra_blessing", standard_artifacts.InfraBlessing, infra_blessed),
        ):
            if value is not None:
                blessings[name] = [kind()]
                blessings[name][0].set_int_custom_property("blessed", value)
        result = standard_artifacts.PushedModel()
        result.uri = str(tmp_path / f"pushed-{time.monotonic_ns()}")
        destination = pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(tmp_path / "base"))
        )
        Executor().Do(
            {"model": [model], **blessings},
            {"pushed_model": [result]},
            {"push_destination": proto_utils.proto_to_json(destination)},
        )
        return result

    return run


def test_a_blessed_model_is_pushed_and_recorded(pushed: Push, tmp_path: Path) -> None:
    result = pushed()
    version = result.get_string_custom_property("pushed_version")
    assert result.get_int_custom_property("pushed") == 1
    assert abs(int(version) - time.time()) < 60
    destination = Path(result.get_string_custom_property("pushed_destination"))
    assert destination == tmp_path / "base" / version
    assert is_whole(destination)
    assert is_whole(Path(result.uri))
    assert result.get_int_custom_property(MODEL_ID) == 6


def test_a_push_that_was_cut_off_before_it_was_recorded_is_not_repeated(
    pushed: Push, source: Path, tmp_path: Path
) -> None:
    known_to_nobody = push_version(source, tmp_path / "base", now=lambda: 100.0)
    result = pushed()
    assert result.get_string_custom_property("pushed_version") == "100"
    assert result.get_int_custom_property(MODEL_ID) == 6
    assert is_whole(Path(result.uri))
    assert list((tmp_path / "base").iterdir()) == [known_to_nobody]


def test_a_model_that_is_not_the_newest_any_more_is_pushed_again(
    pushed: Push, source: Path, tmp_path: Path
) -> None:
    first = pushed().get_string_custom_property("pushed_version")
    newer = tmp_path / "base" / str(int(first) + 1)
    newer.mkdir()
    assert int(pushed().get_string_custom_property("pushed_version")) > int(newer.name)


@pytest.mark.parametrize("known_to_mlmd", [True, False])
def test_a_model_that_was_rolled_back_is_not_pushed_again(
    pushed: Push, tmp_path: Path, known_to_mlmd: bool
) -> None:
    version = int(pushed().get_string_custom_property("pushed_version"))
    withdraw_version(tmp_path / "base", version)
    result = pushed(rolled_back=f"version {version} was rolled back" if known_to_mlmd else "")
    assert result.get_int_custom_property("pushed") == 0
    assert f"version {version}" in result.get_string_custom_property(NOT_PUSHED_BECAUSE)
    assert versions(tmp_path / "base") == []


@pytest.mark.parametrize(
    "blessings",
    [
        {"model_blessed": 0},
        {"infra_blessed": 0},
        {"model_blessed": None},
        {"infra_blessed": None},
        {"model_blessed": None, "infra_blessed": None},
    ],
)
def test_a_model_without_both_blessings_is_not_pushed(
    pushed: Push, tmp_path: Path, blessings: dict[str, int | None]
) -> None:
    result = pushed(**blessings)
    assert result.get_int_custom_property("pushed") == 0
    assert not (tmp_path / "base").exists()


def test_a_full_disk_is_said_plainly_and_not_marked_pushed(
    pushed: Push, tmp_path: Path, small_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "components.pusher.component.io_utils.copy_dir", lambda source, target: None
    )
    with pytest.raises(OSError, match="no space left to push the model"):
        pushed()
    assert list((tmp_path / "base").iterdir()) == []
