"""Airflow's scheduler and the real pipeline: three spans, one of them bad, one with a crash."""

import json
from pathlib import Path

import pytest

from benchmarks.airflow_demo.demo import Demonstration, demonstrate
from benchmarks.airflow_demo.service import Airflow
from pipeline.cli.main import main

_STAGES = ["data", "train", "evaluate", "push"]
_GOOD = dict.fromkeys(_STAGES, "success")
# Sixteen processes import TFX, one after the other: five minutes, or twenty on a busy machine.
pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spans") / "demo"


@pytest.fixture(scope="module")
def shown(folder: Path) -> Demonstration:
    results: list[Demonstration] = []

    def keep(airflow: Airflow, result: Demonstration) -> None:
        results.append(result)

    demonstrate(folder, tell=lambda line: None, show=keep)
    return results[0]


def test_good_spans_are_promoted_and_the_bad_one_in_between_is_not(shown: Demonstration) -> None:
    assert shown.states == {1: _GOOD, 2: _GOOD | {"push": "skipped"}, 3: _GOOD}
    assert len(shown.served[1]) == 1
    assert shown.served[2] == shown.served[1]
    assert len(shown.served[3]) == 2
    assert shown.served[3][0] == shown.served[1][0]


def test_the_killed_training_is_tried_again_and_goes_on_from_its_checkpoint(
    folder: Path, shown: Demonstration
) -> None:
    tries = [(each.span, each.task, each.attempt, each.state) for each in shown.tries]
    crashed = [each for each in tries if each[0] == 3]
    assert crashed == [
        (3, "data", 1, "success"),
        (3, "train", 1, "failed"),
        (3, "train", 2, "success"),
        (3, "evaluate", 1, "success"),
        (3, "push", 1, "success"),
    ]
    finished = sorted((folder / "output").rglob("training.json"), key=lambda p: p.stat().st_mtime)
    assert json.loads(finished[-1].read_text())["resumed_from_step"] > 0


def test_the_other_spans_take_one_try_a_stage(shown: Demonstration) -> None:
    assert [(each.span, each.task) for each in shown.tries if each.span != 3] == [
        (span, stage) for span in (1, 2) for stage in _STAGES
    ]


def test_no_two_tasks_are_at_work_together(shown: Demonstration) -> None:
    for earlier, later in zip(shown.tries, shown.tries[1:], strict=False):
        assert earlier.end is not None
        assert earlier.end <= later.start


def test_a_landed_span_starts_its_retraining_and_a_promoted_model_is_told_of(
    shown: Demonstration,
) -> None:
    assert [(event["name"], event["extra"]["span"]) for event in shown.events] == [
        ("oneshot_spans", 1),
        ("oneshot_model", 1),
        ("oneshot_spans", 2),
        ("oneshot_spans", 3),
        ("oneshot_model", 3),
    ]
    models = [event["extra"] for event in shown.events if event["name"] == "oneshot_model"]
    assert [model["pushed_version"] for model in models] == shown.served[3]
    assert all(model["label"] == "stable" and model["accuracy"] > 0 for model in models)
    starts = [
        event["created_dagruns"] for event in shown.events if event["name"] == "oneshot_spans"
    ]
    assert [len(runs) for runs in starts] == [1, 1, 1]


def test_every_span_has_a_report_behind_its_button(folder: Path, shown: Demonstration) -> None:
    for span in (1, 2, 3):
        link = shown.reports[span]
        assert link is not None
        assert link.startswith("/oneshot/")
        assert (folder / "output" / "runs" / Path(link).parent.name / "report.html").is_file()


def test_the_history_tells_what_became_of_each_span(
    folder: Path, shown: Demonstration, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "--output", str(folder / "output"), "--json", "--limit", "100"]) == 0
    records = json.loads(capsys.readouterr().out)
    whole = {run["span"]: run for run in records if run["stage"] == "push"}
    assert {span: run["blessed"] for span, run in whole.items()} == {1: True, 2: False, 3: True}
    assert whole[2]["pushed_version"] is None
    assert [whole[1]["pushed_version"], whole[3]["pushed_version"]] == shown.served[3]


def test_the_label_went_from_one_good_model_to_the_next(
    folder: Path, shown: Demonstration, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "config.yaml"
    output = folder / "output"
    assert main(["promote", "--output", str(output), "--config", str(config), "--json"]) == 0
    standing = json.loads(capsys.readouterr().out)
    assert standing["labels"] == {"stable": shown.served[3][1]}
    assert sorted(change["version"] for change in standing["history"]) == shown.served[3]
