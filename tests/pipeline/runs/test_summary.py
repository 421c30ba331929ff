"""What a person sees of a run at its end."""

import io
import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from components.evaluator.evidence import NOT_ENOUGH_EVIDENCE, lack_of_evidence
from pipeline.runs.summary import SUMMARY_FILE, RunSummary, asked_of, print_summary, read_summary
from pipeline.runs.workspace import Workspace

FIGURE = "within_12way_accuracy"
SUMMARY = RunSummary(
    run_id="1",
    dataset="folder",
    blessed=False,
    pushed_version=None,
    model_dir=None,
    metrics={FIGURE: 0.5, f"{FIGURE}_ci95": [0.4, 0.6], f"{FIGURE}_n": 60, "auc": 0.8},
    seconds={"Trainer": 2.0, "total": 3.0},
    train_images_per_second=None,
    device=None,
    versions={},
    refusals=[f"{FIGURE} 0.5000 is below 0.609"],
    thresholds={FIGURE: {"min": 0.609, "max_drop": 0.03}, "auc": {"min": 0.75}},
    notes=[f"within_20way_accuracy: the data has no such trials; {FIGURE} takes its place"],
    images={
        "read": {"images": 1200},
        "duplicates": {"images": 1},
        "rejected": {"same image in two classes": 2},
        "copies": [["/d/a/copy.png", "/d/a/1.png"]],
        "in_two_classes": [["/d/a/2.png", "/d/b/[x].png"]],
    },
)
LACK = lack_of_evidence(["within_30way_accuracy"], [FIGURE])


def printed(summary: RunSummary, folder: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_summary(summary, console, workspace=Workspace(folder))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_was_asked_of_each_figure_is_said_beside_it(tmp_path: Path) -> None:
    text = printed(SUMMARY, tmp_path)
    assert "≥ 60.9 %" in text
    assert "≥ 0.75" in text
    assert SUMMARY.notes[0] in text
    assert SUMMARY.refusals[0] in text
    assert NOT_ENOUGH_EVIDENCE not in text


def test_cached_steps_keep_the_seconds_of_the_run_that_did_them(tmp_path: Path) -> None:
    seconds = {"Trainer": 42.0, "Evaluator": 7.0, "total": 51.0}
    text = printed(replace(SUMMARY, seconds=seconds, cached=["Trainer"], run_seconds=9.0), tmp_path)
    told = "This run took 9 s; cached steps were done by an earlier one."
    assert told in text
    assert "51" in text
    assert re.search(r"Trainer +│ +42.0 │ +cached │", text)
    assert re.search(r"Evaluator +│ +7.0 │ +│", text)
    assert told not in printed(SUMMARY, tmp_path)


def test_figures_of_either_kind_of_forgery_are_printed(tmp_path: Path) -> None:
    figures = {"eer_random": 0.0625, "auc_skilled": 0.8125, "eer_skilled": 0.25}
    limits = {"eer_skilled": {"max": 0.125}, "auc_skilled": {"min": 0.9}}
    text = printed(replace(SUMMARY, metrics=SUMMARY.metrics | figures, thresholds=limits), tmp_path)
    for told in ("eer random", "eer skilled", "auc skilled", "0.8125", "≤ 12.5 %", "≥ 0.9"):
        assert told in text


def test_a_lack_of_evidence_is_said_in_large_letters(tmp_path: Path) -> None:
    lacking = replace(SUMMARY, lacking=["within_30way_accuracy"], refusals=[LACK])
    text = printed(lacking, tmp_path)
    assert LACK in text


def test_label_noise_is_named_with_both_files(tmp_path: Path) -> None:
    text = printed(SUMMARY, tmp_path)
    assert "/d/a/2.png" in text
    assert "/d/b/[x].png" in text
    assert "/d/a/copy.png" not in text


def test_baselines_stand_beside_the_figures_that_they_have(tmp_path: Path) -> None:
    figures = {FIGURE: {"pixel_1nn": 0.111, "hog": 0.422}, "auc": {"hog": 0.7123}}
    text = printed(replace(SUMMARY, baselines=figures), tmp_path)
    for told in ("HOG", "42.2 %", "0.7123"):
        assert told in text
    for told in ("pixel 1-NN", "11.1 %"):
        assert told not in text
    assert "LBP" not in text


def test_the_one_baseline_of_omniglot_is_named_in_the_heading(tmp_path: Path) -> None:
    text = printed(replace(SUMMARY, baselines={FIGURE: {"pixel_1nn": 0.111}}), tmp_path)
    assert re.search(r"pixel 1-NN +┃ chance", text)
    assert re.search(r"60.9 % │ +11.1 % │ +8.3 %", text)


def test_a_summary_of_an_earlier_release_has_the_baseline_of_pixels(tmp_path: Path) -> None:
    (tmp_path / SUMMARY_FILE).write_text(json.dumps(asdict(SUMMARY) | {"baselines": {FIGURE: 0.1}}))
    assert read_summary(tmp_path).baselines == {FIGURE: {"pixel_1nn": 0.1}}


def test_bounds_are_written_as_the_figures_are() -> None:
    summary = replace(
        SUMMARY, thresholds={"eer": {"min": 0.1, "max": 0.25}, "ece": {"max_drop": 1}}
    )
    assert asked_of(summary, "eer") == "≥ 10 %, ≤ 25 %"
    assert asked_of(summary, "ece") == asked_of(summary, "auc") == ""


def test_the_next_command_can_be_typed_as_it_is_printed(tmp_path: Path) -> None:
    summary = replace(SUMMARY, blessed=True, pushed_version=7, model_dir="/it's/a [b] c/7")
    command = printed(summary, tmp_path).rpartition("Next ")[2]
    assert shlex.split(command)[1:4] == ["evaluate", "--model", "/it's/a [b] c/7"]
