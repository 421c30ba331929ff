"""What is kept, what goes, and that ML Metadata agrees with the disk whatever happens."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2

from data_ingest.errors import InputError
from pipeline.cli.main import main
from pipeline.releases.cleanup import GcReport, collect_garbage
from pipeline.releases.promotion import Promotions
from pipeline.runs.metadata_store import parse_url
from pipeline.settings import PushSettings
from serving.saved_model.versions import versions
from tests.pipeline.killed import oneshot_killed
from tests.pipeline.recorded_runs import RecordedRun, RecordedRuns, files_of

DAY = 86_400.0
LIVE = metadata_store_pb2.Artifact.LIVE
MARKED = metadata_store_pb2.Artifact.MARKED_FOR_DELETION
DELETED = metadata_store_pb2.Artifact.DELETED


class Folder:
    """An output folder in which days pass."""

    def __init__(self, root: Path, *, today: float, url: str | None = None) -> None:
        self.now = today
        self.root = root
        connection = None if url is None else parse_url(url).connection()
        self.runs = RecordedRuns(root, clock=lambda: self.now, connection=connection)
        self.workspace = self.runs.workspace
        self.promotions = Promotions(
            self.workspace,
            self.runs.store,
            settings=PushSettings(server_poll_seconds=0),
            clock=lambda: self.now,
        )

    def day(self, *, data: int, blessed: bool = True) -> RecordedRun:
        """A run, and a day passes."""
        run = self.runs.run(data=data, blessed=blessed)
        self.now += DAY
        return run

    def gc(self, *, keep_versions: int, keep_days: float, dry_run: bool = False) -> GcReport:
        return collect_garbage(
            self.promotions,
            self.runs.history.runs(),
            keep_versions=keep_versions,
            keep_days=keep_days,
            now=self.now,
            dry_run=dry_run,
        )

    def versions(self) -> list[int]:
        return versions(self.workspace.serving_model)

    def reports(self) -> set[str]:
        return {path.name for path in self.workspace.runs.iterdir()} - {"latest"}

    def check_consistency(self) -> None:
        """Live artifacts are on the disk, the others are not, and nothing else is."""
        there = set()
        for artifact in self.runs.store.get_artifacts():
            assert artifact.state in (LIVE, DELETED)
            if artifact.state == LIVE:
                assert "content" in files_of(Path(artifact.uri)), artifact.uri
                there.add(Path(artifact.uri))
            else:
                assert not Path(artifact.uri).exists(), artifact.uri
        assert there == set(self.workspace.artifacts.glob("[!.]*/[!.]*/*"))
        for version in self.versions():
            assert "saved_model.pb" in files_of(self.workspace.serving_model / str(version))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Its days are over by now."""
    return Folder(tmp_path / "output", today=time.time() - 20 * DAY)


def test_what_is_neither_recent_nor_among_the_newest_goes(folder: Folder) -> None:
    made = [folder.day(data=number) for number in range(8)]
    report = folder.gc(keep_versions=2, keep_days=4.5)
    assert folder.versions() == [run.version for run in made[4:]]
    assert folder.reports() == {run.run_id for run in made[4:]}
    assert report.total_bytes > 0
    folder.check_consistency()
    folder.gc(keep_versions=2, keep_days=0)
    assert folder.versions() == [run.version for run in made[6:]]
    folder.check_consistency()


def test_the_index_of_runs_stays(folder: Folder) -> None:
    folder.day(data=1)
    index = folder.workspace.runs / "index.html"
    index.write_text("all runs")
    os.utime(index, (1.0, 1.0))
    folder.gc(keep_versions=1, keep_days=0)
    assert index.is_file()


def test_the_labelled_the_loaded_and_the_way_back_stay_with_model_and_report(
    folder: Folder,
) -> None:
    made = [folder.day(data=number) for number in range(6)]
    for run, label in ((made[0], "stable"), (made[1], "stable"), (made[3], "canary")):
        folder.promotions.promote(run.version or 0, label)
    kept = folder.gc(keep_versions=1, keep_days=0).kept_versions
    assert folder.versions() == [made[number].version for number in (0, 1, 3, 5)]
    assert kept[made[1].version or 0] == "stable"
    assert kept[made[0].version or 0] == "where a rollback goes"
    assert folder.reports() == {made[number].run_id for number in (0, 1, 3, 5)}
    for run in (made[0], made[1], made[3]):
        (model,) = folder.runs.store.get_artifacts_by_id([run.model])
        assert model.state == LIVE
    folder.check_consistency()
    folder.promotions.rollback()
    assert folder.promotions.standing().labels["stable"] == made[0].version


def test_what_somebody_made_servers_load_stays(folder: Folder) -> None:
    made = [folder.day(data=number).version or 0 for number in range(5)]
    folder.promotions.promote(made[3], "stable")
    file = folder.workspace.models_config
    by_hand = file.read_text().replace("specific {", f"specific {{ versions: {made[1]}")
    file.write_text(by_hand)
    assert folder.gc(keep_versions=1, keep_days=0).kept_versions[made[1]] == "loaded by servers"
    assert made[1] in folder.versions()


def test_the_examples_of_an_old_version_go_although_the_version_stays(folder: Folder) -> None:
    made = [folder.day(data=number) for number in range(3)]
    folder.promotions.promote(made[0].version or 0, "stable")
    folder.gc(keep_versions=1, keep_days=0)
    examples = folder.workspace.artifacts / "PairExampleGen" / "examples"
    assert len(list(examples.iterdir())) == 1


def test_the_baseline_stays_when_later_models_were_refused(folder: Folder) -> None:
    good = folder.day(data=0)
    for number in (1, 2, 3):
        folder.day(data=number, blessed=False)
    folder.gc(keep_versions=1, keep_days=0)
    assert folder.day(data=4).baseline == good.model
    folder.check_consistency()


def test_the_baseline_stays_although_somebody_deleted_its_version(folder: Folder) -> None:
    good, *bad = (folder.day(data=number) for number in range(3))
    for _ in bad:
        folder.promotions.rollback()
    shutil.rmtree(folder.workspace.serving_model / str(good.version))
    folder.gc(keep_versions=1, keep_days=0)
    assert folder.day(data=4).baseline == good.model


def test_the_baseline_stays_when_the_newest_version_was_rolled_back(folder: Folder) -> None:
    first, second, bad = (folder.day(data=number) for number in range(3))
    folder.promotions.promote(first.version or 0, "stable")
    folder.promotions.promote(bad.version or 0, "stable")
    folder.promotions.rollback()
    folder.gc(keep_versions=1, keep_days=0)
    assert folder.day(data=4).baseline == second.model
    folder.check_consistency()


def test_the_newest_run_is_still_served_from_the_cache(folder: Folder) -> None:
    for number in range(4):
        folder.day(data=number)
    folder.gc(keep_versions=1, keep_days=0)
    again = folder.day(data=3)
    assert again.cached == {
        "PairExampleGen",
        "StatisticsGen",
        "Trainer",
        "Evaluator",
        "ServingGate",
        "Pusher",
    }
    assert again.version == folder.versions()[-1]


def test_a_repeated_run_finds_the_baseline_that_it_was_compared_with(folder: Folder) -> None:
    first, second, _ = (folder.day(data=number) for number in range(3))
    repeated = folder.day(data=1)
    assert (repeated.model, repeated.baseline) == (second.model, first.model)
    folder.gc(keep_versions=1, keep_days=0)
    again = folder.day(data=1)
    assert again.baseline == first.model
    assert "Evaluator" in again.cached
    assert again.version == second.version


def test_the_cache_gives_out_nothing_that_was_removed(folder: Folder) -> None:
    first = folder.day(data=0)
    for number in (1, 2, 3):
        folder.day(data=number)
    folder.gc(keep_versions=1, keep_days=0)
    again = folder.day(data=0)
    assert again.cached == set()
    assert again.model > first.model
    folder.check_consistency()


def test_artifacts_that_a_recent_run_took_from_the_cache_stay(folder: Folder) -> None:
    old = folder.day(data=0)
    for number in range(1, 6):
        folder.day(data=number)
    recent = folder.day(data=0)
    assert recent.model == old.model
    folder.day(data=7)
    folder.gc(keep_versions=1, keep_days=2.5)
    (model,) = folder.runs.store.get_artifacts_by_id([old.model])
    assert model.state == LIVE
    assert old.version in folder.versions()
    folder.check_consistency()


def test_the_files_of_a_rolled_back_version_go_later_but_its_number_stays_taken(
    folder: Folder,
) -> None:
    folder.day(data=0)
    bad = folder.day(data=1).version or 0
    folder.promotions.rollback()
    kept = folder.workspace.serving_model / f"rolled-back-{bad}"
    folder.gc(keep_versions=1, keep_days=1)
    assert files_of(kept)
    folder.now += 2 * DAY
    folder.gc(keep_versions=1, keep_days=1)
    assert kept.is_dir()
    assert not files_of(kept)
    assert folder.gc(keep_versions=1, keep_days=1).removed == []
    folder.now = float(bad - 1)
    assert (folder.day(data=5).version or 0) > bad


def test_checkpoints_logs_and_leftovers_go_by_age(folder: Folder) -> None:
    folder.day(data=0)
    old, new = (folder.workspace.checkpoints / name for name in ("old", "new"))
    failed = folder.workspace.run_dir("failed-before-it-was-recorded")
    for path in (old, new, failed):
        path.mkdir(parents=True)
        (path / "file").touch()
    long_ago = folder.now - 10 * DAY
    for path in (old, failed):
        os.utime(path / "file", (long_ago, long_ago))
        os.utime(path, (long_ago, long_ago))
    orphan = folder.workspace.artifacts / "Trainer" / "model" / "999"
    orphan.mkdir()
    baselines = folder.root / "baselines"
    baselines.mkdir()
    (baselines / "999.json").touch()
    (baselines / "1.json").touch()
    folder.gc(keep_versions=1, keep_days=5)
    assert [path.exists() for path in (old, new, failed, orphan)] == [False, True, False, False]
    assert [path.name for path in baselines.iterdir()] == ["1.json"]


def test_spans_and_generated_data_are_nobodys_garbage(folder: Folder) -> None:
    folder.day(data=0)
    kept = [folder.root / "spans" / "span-1" / "span.json", folder.root / "synthetic" / "glyphs"]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (0, 0))
    for number in range(1, 4):
        folder.day(data=number)
    folder.gc(keep_versions=1, keep_days=0)
    assert all(path.exists() for path in kept)


def test_a_dry_run_tells_the_same_and_touches_nothing(folder: Folder) -> None:
    for number in range(5):
        folder.day(data=number)
    before = files_of(folder.root)
    states = [artifact.state for artifact in folder.runs.store.get_artifacts()]
    told = folder.gc(keep_versions=1, keep_days=0, dry_run=True)
    assert files_of(folder.root) - before <= {"serving_model/.promotion.lock"}
    assert [artifact.state for artifact in folder.runs.store.get_artifacts()] == states
    assert folder.gc(keep_versions=1, keep_days=0).removed == told.removed
    assert len(told.removed) > 10


def test_a_folder_that_was_moved_is_refused(folder: Folder, tmp_path: Path) -> None:
    folder.day(data=0)
    moved = folder.root.rename(tmp_path / "moved")
    before = files_of(moved)
    with pytest.raises(InputError, match="ML Metadata has artifacts elsewhere"):
        Folder(moved, today=folder.now).gc(keep_versions=1, keep_days=0)
    assert files_of(moved) - before <= {"serving_model/.promotion.lock"}


def test_a_folder_may_go_by_another_name(folder: Folder, tmp_path: Path) -> None:
    for _ in range(3):
        folder.day(data=0)
    link = tmp_path / "link"
    link.symlink_to(folder.root)
    told = folder.gc(keep_versions=1, keep_days=0, dry_run=True)
    assert told.removed
    for name in (link, folder.root / ".." / folder.root.name):
        other = Folder(name, today=folder.now)
        assert other.gc(keep_versions=1, keep_days=0, dry_run=True).total_bytes == told.total_bytes


def test_metadata_may_be_in_postgresql(tmp_path: Path, empty_database: str) -> None:
    folder = Folder(tmp_path, today=time.time() - 20 * DAY, url=empty_database)
    made = [folder.day(data=number).version or 0 for number in range(5)]
    for version in (made[1], made[3]):
        folder.promotions.promote(version, "stable", why="good")
    folder.promotions.rollback(why="bad")
    folder.gc(keep_versions=1, keep_days=0)
    assert folder.versions() == [made[0], made[1], made[4]]  # the first: where a rollback goes
    folder.check_consistency()
    history = folder.promotions.standing().history
    assert [(change.version, change.why) for change in history] == [
        (made[1], "good"),
        (made[3], "good"),
        (made[3], "bad"),
    ]
    assert folder.day(data=4).version == made[4]


@pytest.mark.parametrize(
    ("flag", "value"), [("--keep-versions", "0"), ("--keep-days", "-1"), ("--keep-days", "nan")]
)
def test_limits_that_make_no_sense_are_usage_errors(
    folder: Folder, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    assert main(["gc", "--output", str(folder.root), f"{flag}={value}"]) == 2
    assert flag in capsys.readouterr().err


def test_the_command_tells_people_and_programs(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [folder.day(data=number) for number in range(4)]
    command = ["gc", "--output", str(folder.root), "--keep-versions=1", "--keep-days=0"]
    assert main([*command, "--dry-run"]) == 0
    assert "Would remove" in (said := capsys.readouterr().out)
    assert "2 runs, 2 versions" in said
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    newest, way_back = made[-1].version, made[-2].version
    assert told["kept_versions"] == {str(way_back): "where a rollback goes", str(newest): "newest"}
    assert told["bytes"] == sum(gone["bytes"] for gone in told["removed"])
    assert folder.versions() == [way_back, newest]
    assert main(command) == 0
    assert "Removed nothing" in capsys.readouterr().out


STEPS = [
    ("pipeline.releases.cleanup._set_state", "after", 1),
    ("pipeline.releases.cleanup.remove_version", "before", 1),
    ("pipeline.releases.cleanup.remove_version", "after", 2),
    ("components.pusher.versions.shutil.rmtree", "before", 1),
    ("pipeline.releases.cleanup._remove", "after", 1),
    ("pipeline.releases.cleanup._remove", "after", 9),
    ("os.unlink", "after", 5),
    ("pipeline.releases.cleanup._set_state", "before", 2),
]


@pytest.mark.parametrize(("target", "when", "call"), STEPS)
def test_a_collection_killed_at_any_step_is_completed_by_the_next(
    folder: Folder, target: str, when: str, call: int
) -> None:
    made = [folder.day(data=number) for number in range(4)]
    oneshot_killed(
        "gc",
        f"--output={folder.root}",
        "--keep-versions=1",
        "--keep-days=0",
        target=target,
        when=when,
        call=call,
    )
    for version in folder.versions():
        assert "saved_model.pb" in files_of(folder.workspace.serving_model / str(version))
    # Before anything else: what is half gone is given out by neither cache nor Resolver.
    for artifact in folder.runs.store.get_artifacts():
        if artifact.state == LIVE:
            assert "content" in files_of(Path(artifact.uri))
    assert "Trainer" in folder.day(data=3).cached
    folder.now -= DAY
    folder.gc(keep_versions=1, keep_days=0)
    folder.check_consistency()
    assert folder.versions() == [run.version for run in made[-2:]]
    assert not list(folder.workspace.serving_model.glob(".tmp-*"))
