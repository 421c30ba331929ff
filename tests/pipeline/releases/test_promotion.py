"""Labels, rollbacks and their history, and what is left of them when somebody pulls the plug."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from components.pusher.pushed_models import rolled_back
from data_ingest.errors import InputError
from pipeline.cli.main import main
from pipeline.releases.label_file import served_model
from pipeline.releases.promotion import Promotions
from pipeline.runs.workspace import Workspace
from pipeline.settings import PushSettings
from serving.deploy.models_config import CANARY, STABLE, ModelEntry, read_entry
from serving.saved_model.versions import versions
from tests.pipeline.killed import oneshot_killed
from tests.pipeline.recorded_runs import RecordedRuns


class Folder:
    """An output folder with three versions, and what was written and waited for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = RecordedRuns(root, clock=time.time)
        self.workspace = self.runs.workspace
        self.made = [self.runs.run(data=number) for number in range(3)]
        self.first, self.second, self.third = (run.version or 0 for run in self.made)
        self.waits: list[tuple[float, ModelEntry | None]] = []
        self.promotions = self.open()

    def open(self, **settings: object) -> Promotions:
        return Promotions(
            self.workspace,
            self.runs.store,
            settings=PushSettings(**settings),
            sleep=lambda seconds: self.waits.append((seconds, self.entry())),
        )

    def entry(self) -> ModelEntry | None:
        file = self.workspace.models_config
        return read_entry(file.read_text(), "siamese") if file.exists() else None

    def labels(self) -> dict[str, int]:
        entry = self.entry()
        return {} if entry is None else dict(entry.labels)

    def model_of(self, number: int) -> object:
        return self.runs.store.get_artifacts_by_id([self.made[number].model])[0]

    def oneshot(self, *arguments: str) -> int:
        return main([*arguments, "--output", str(self.root), "--set", "push.server_poll_seconds=0"])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_label_is_given_to_a_version_and_the_history_says_who_when_and_why(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = time.time()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.releases.promotion._this_user", lambda: "ana@desk")
        folder.promotions.promote(folder.first, STABLE, why="first one")
    folder.promotions.promote(folder.second, CANARY)
    assert folder.labels() == {STABLE: folder.first, CANARY: folder.second}
    first, second = folder.promotions.standing().history
    assert (first.who, first.why, first.version, first.previous) == (
        "ana@desk",
        "first one",
        folder.first,
        None,
    )
    assert before <= first.when <= second.when <= time.time()
    assert second.labels == (CANARY,)
    assert second.who.partition("@")[2]


def test_the_served_model_is_the_stable_one_else_the_newest(folder: Folder) -> None:
    base, settings = folder.workspace.serving_model, PushSettings()
    assert served_model(folder.workspace, settings) == base / str(folder.third)
    folder.promotions.promote(folder.third, CANARY)
    assert served_model(folder.workspace, settings) == base / str(folder.third)
    folder.promotions.promote(folder.first, STABLE)
    assert served_model(folder.workspace, settings) == base / str(folder.first)
    assert served_model(Workspace(folder.root / "nothing"), settings) is None


def test_servers_load_the_labelled_the_newest_and_the_one_to_go_back_to(folder: Folder) -> None:
    folder.promotions.promote(folder.first, STABLE)
    assert folder.promotions.loaded() == {folder.first, folder.third}
    folder.promotions.promote(folder.second, STABLE)
    assert folder.promotions.loaded() == {folder.first, folder.second, folder.third}


def test_a_label_moves_only_after_servers_could_load_the_version(folder: Folder) -> None:
    """TF Serving refuses a file, all of it, that moves a label to a version not loaded yet."""
    folder.promotions.promote(folder.first, STABLE)
    assert folder.waits == []  # nobody follows a file that was not there
    folder.promotions.promote(folder.second, STABLE)
    ((seconds, meanwhile),) = folder.waits
    assert 9 < seconds <= 10
    assert meanwhile is not None
    assert meanwhile.labels == {STABLE: folder.first}
    assert meanwhile.loaded >= {folder.first, folder.second}


def test_a_file_that_servers_have_read_long_ago_needs_no_waiting(folder: Folder) -> None:
    folder.promotions.promote(folder.first, STABLE)
    an_hour_ago = time.time() - 3600
    os.utime(folder.workspace.models_config, (an_hour_ago, an_hour_ago))
    folder.promotions.promote(folder.third, STABLE)
    assert folder.waits == []
    assert folder.labels() == {STABLE: folder.third}


def test_the_same_promotion_again_changes_nothing(folder: Folder) -> None:
    assert folder.promotions.promote(folder.first, STABLE) is not None
    text = folder.workspace.models_config.read_text()
    assert folder.promotions.promote(folder.first, STABLE) is None
    assert folder.workspace.models_config.read_text() == text
    assert len(folder.promotions.standing().history) == 1


def test_other_models_in_the_file_stay(folder: Folder) -> None:
    other = "model_config_list { config { name: 'other' base_path: '/models/other' } }"
    folder.workspace.models_config.write_text(other)
    folder.promotions.promote(folder.first, STABLE)
    text = folder.workspace.models_config.read_text()
    assert read_entry(text, "other") == ModelEntry()
    assert folder.labels() == {STABLE: folder.first}


def test_servers_may_see_the_folder_under_another_path(folder: Folder) -> None:
    folder.open(server_base_path="/models/siamese").promote(folder.first, STABLE)
    assert 'base_path: "/models/siamese"' in folder.workspace.models_config.read_text()


def test_a_rollback_returns_to_the_version_that_was_stable_before(folder: Folder) -> None:
    for version in (folder.first, folder.third):
        folder.promotions.promote(version, STABLE)
    folder.promotions.promote(folder.third, CANARY)
    change = folder.promotions.rollback(why="wrong answers")
    assert (change.version, change.previous) == (folder.third, folder.first)
    assert set(change.labels) == {STABLE, CANARY}
    assert folder.labels() == {STABLE: folder.first, CANARY: folder.first}
    assert versions(folder.workspace.serving_model) == [folder.first, folder.second]
    assert folder.third not in folder.promotions.loaded()
    assert "wrong answers" in rolled_back(folder.model_of(2))
    assert rolled_back(folder.model_of(1)) == ""


def test_the_labels_of_a_rollback_move_in_one_step_before_the_version_goes(folder: Folder) -> None:
    for version in (folder.first, folder.third):
        folder.promotions.promote(version, STABLE)
    folder.waits.clear()
    folder.promotions.rollback()
    *_, (_, when_servers_were_waited_for) = folder.waits
    assert when_servers_were_waited_for is not None
    assert when_servers_were_waited_for.labels == {STABLE: folder.first}
    assert when_servers_were_waited_for.loaded == {folder.first, folder.second}


def test_rollbacks_go_back_one_by_one_and_end_with_an_explanation(folder: Folder) -> None:
    for version in (folder.first, folder.second, folder.third):
        folder.promotions.promote(version, STABLE)
    assert folder.promotions.rollback().previous == folder.second
    assert folder.promotions.rollback().previous == folder.first
    with pytest.raises(InputError, match=f"no version before {folder.first} to go back to"):
        folder.promotions.rollback()
    assert folder.labels() == {STABLE: folder.first}


def test_a_bad_canary_gives_way_to_the_stable_version(folder: Folder) -> None:
    folder.promotions.promote(folder.first, STABLE)
    folder.promotions.promote(folder.third, CANARY)
    assert folder.promotions.rollback(CANARY).version == folder.third
    assert folder.labels() == {STABLE: folder.first, CANARY: folder.first}


def test_without_labels_the_newest_version_is_taken_back_and_no_file_appears(
    folder: Folder,
) -> None:
    change = folder.promotions.rollback()
    assert (change.version, change.previous, change.labels) == (folder.third, folder.second, ())
    assert versions(folder.workspace.serving_model) == [folder.first, folder.second]
    assert not folder.workspace.models_config.exists()


def test_a_rolled_back_model_is_never_a_baseline_again_nor_pushed_again(folder: Folder) -> None:
    folder.promotions.rollback(why="bad")
    again = folder.runs.run(data=2)
    assert (again.model, again.version) == (folder.made[2].model, None)
    assert "Trainer" in again.cached
    later = folder.runs.run(data=9)
    assert later.baseline == folder.made[1].model
    assert later.version is not None
    assert later.version > folder.third


def test_a_mark_that_a_run_under_way_has_overwritten_is_made_again(folder: Folder) -> None:
    stale = folder.model_of(2)
    folder.promotions.rollback(why="bad")
    folder.runs.store.put_artifacts([stale])
    assert rolled_back(folder.model_of(2)) == ""
    folder.promotions.complete()
    assert "bad" in rolled_back(folder.model_of(2))


def test_a_push_is_loaded_by_servers_once_there_are_labels(folder: Folder) -> None:
    folder.promotions.follow_push()
    assert not folder.workspace.models_config.exists()
    folder.promotions.promote(folder.first, STABLE)
    newest = folder.runs.run(data=7).version
    folder.promotions.follow_push()
    assert newest in folder.promotions.loaded()
    assert folder.labels() == {STABLE: folder.first}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("promote", "5", "--label", "stable"), "no version 5; there are"),
        (("promote", "5"), "VERSION and --label belong together"),
        (("promote", "--label", "canary"), "VERSION and --label belong together"),
        (("rollback", "--label", "canary"), "no version has the label canary, only stable"),
    ],
)
def test_what_cannot_be_done_is_explained_and_changes_nothing(
    folder: Folder,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    folder.promotions.promote(folder.first, STABLE)
    before = folder.promotions.standing()
    capsys.readouterr()
    assert folder.oneshot(*arguments) == 2
    assert message in capsys.readouterr().err
    assert folder.promotions.standing() == before


@pytest.mark.parametrize("command", [("promote",), ("rollback",), ("gc",)])
def test_a_folder_without_versions_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert main([*command, "--output", str(tmp_path / "nothing")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_models_config_is_named_and_left_alone(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.workspace.models_config.write_text("model_config_list { by hand")
    assert folder.oneshot("promote", str(folder.first), "--label", "stable") == 2
    assert str(folder.workspace.models_config) in capsys.readouterr().err
    assert folder.workspace.models_config.read_text() == "model_config_list { by hand"
    folder.workspace.models_config.unlink()
    assert folder.promotions.standing().history == []


def test_a_version_that_was_rolled_back_does_not_come_back(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.oneshot("rollback", "--why", "wrong answers") == 0
    capsys.readouterr()
    assert folder.oneshot("promote", str(folder.third), "--label", "stable") == 2
    assert "wrong answers" in capsys.readouterr().err


def test_the_commands_tell_people_and_programs(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder.oneshot("promote", str(folder.second), "--label", "stable", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["labels"] == {"stable": folder.second}
    assert told["change"]["action"] == "promote"
    assert folder.oneshot("rollback", "--why", "noise") == 0
    assert f"{folder.second} is out of service" in (said := capsys.readouterr().out)
    assert f"Servers that follow the newest version and not the labels get {folder.third}" in said
    assert folder.oneshot("promote", "--json") == 0
    standing = json.loads(capsys.readouterr().out)
    assert standing["rolled_back"] == [folder.second]
    assert [change["why"] for change in standing["history"]] == ["", "noise"]
    assert folder.oneshot("promote") == 0
    assert "rolled back" in capsys.readouterr().out


STEPS = [
    ("pipeline.releases.promotion.write_atomically", "after"),
    ("pipeline.releases.label_file.write_atomically", "before"),
    ("pipeline.releases.label_file.write_atomically", "after"),
    ("pipeline.releases.promotion.withdraw_version", "before"),
    ("pipeline.releases.promotion.withdraw_version", "after"),
    ("pipeline.releases.changes.PromotionHistory.mark_rolled_back", "before"),
    ("pipeline.releases.changes.PromotionHistory.mark_rolled_back", "after"),
    ("pipeline.releases.changes.PromotionHistory.record", "before"),
    ("pipeline.releases.changes.PromotionHistory.record", "after"),
]


def is_rolled_back(folder: Folder) -> bool:
    """Whether all that a rollback of the third version changes has changed, and once."""
    standing = folder.promotions.standing()
    done = [change for change in standing.history if change.action == "rollback"]
    return (
        folder.labels() == {STABLE: folder.first}
        and standing.versions == [folder.first, folder.second]
        and standing.rolled_back == [folder.third]
        and folder.third not in folder.promotions.loaded()
        and "wrong" in rolled_back(folder.model_of(2))
        and [(change.version, change.previous) for change in done] == [(folder.third, folder.first)]
        and not list(folder.workspace.models_config.parent.glob(".promotion.json"))
    )


@pytest.mark.parametrize(("target", "when"), STEPS)
def test_a_rollback_killed_at_any_step_is_completed_by_the_next_command(
    folder: Folder, target: str, when: str
) -> None:
    for version in (folder.first, folder.third):
        folder.promotions.promote(version, STABLE)
    oneshot_killed(
        "rollback",
        "--why=wrong",
        f"--output={folder.root}",
        "--set=push.server_poll_seconds=0",
        target=target,
        when=when,
    )
    assert not is_rolled_back(folder)
    # Whoever looks in between finds whole versions behind every label.
    for version in folder.labels().values():
        assert (folder.workspace.serving_model / str(version) / "saved_model.pb").exists()
    folder.promotions.complete()
    assert is_rolled_back(folder)
    folder.promotions.complete()
    assert is_rolled_back(folder)


def test_a_rollback_killed_before_it_began_has_changed_nothing(folder: Folder) -> None:
    for version in (folder.first, folder.third):
        folder.promotions.promote(version, STABLE)
    before = folder.promotions.standing()
    oneshot_killed(
        "rollback",
        f"--output={folder.root}",
        target="pipeline.releases.promotion.write_atomically",
        when="before",
    )
    folder.promotions.complete()
    assert folder.promotions.standing() == before


@pytest.mark.parametrize(
    ("target", "when", "call"),
    [
        ("pipeline.releases.promotion.write_atomically", "after", 1),
        ("pipeline.releases.label_file.write_atomically", "after", 1),
        ("pipeline.releases.label_file.write_atomically", "after", 2),
        ("pipeline.releases.changes.PromotionHistory.record", "after", 1),
    ],
)
def test_a_promotion_killed_at_any_step_is_completed_by_the_next_command(
    folder: Folder, target: str, when: str, call: int
) -> None:
    folder.promotions.promote(folder.first, STABLE)
    oneshot_killed(
        "promote",
        str(folder.second),
        "--label=stable",
        f"--output={folder.root}",
        "--set=push.server_poll_seconds=0",
        target=target,
        when=when,
        call=call,
    )
    folder.promotions.complete()
    assert folder.labels() == {STABLE: folder.second}
    assert [change.version for change in folder.promotions.standing().history] == [
        folder.first,
        folder.second,
    ]


def test_changes_at_the_same_time_happen_one_after_the_other(folder: Folder) -> None:
    """None is lost, and each sees what the one before it left."""
    errors: list[Exception] = []

    def promote(version: int) -> None:
        try:
            folder.open(server_poll_seconds=0).promote(version, STABLE)
        except Exception as error:
            errors.append(error)

    made = [folder.first, folder.second, folder.third]
    threads = [threading.Thread(target=promote, args=(version,)) for version in made * 2]
    run_all(threads)
    assert errors == []
    history = folder.promotions.standing().history
    assert [change.previous for change in history] == [
        None,
        *(change.version for change in history[:-1]),
    ]
    assert folder.labels() == {STABLE: history[-1].version}


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
