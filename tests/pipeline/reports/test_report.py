"""The report of a run: what it says, in which order, and from what it is written again."""

import json
import re
from html import unescape
from pathlib import Path

import pytest

from components.evaluator import examination
from components.evaluator.evidence import NOT_ENOUGH_EVIDENCE, lack_of_evidence
from pipeline.reports.index import report_on
from pipeline.reports.lineage import lineage
from pipeline.reports.report import write_report
from pipeline.runs.workspace import Workspace
from tests.pipeline.recorded_runs import RecordedRuns
from tests.pipeline.reports.reported_run import FIGURE, reported_runs

SECTIONS = (
    "Is it good?",
    "Is it good enough?",
    "Is it better than before?",
    "Where does it fail?",
    "How does it behave?",
    "Can the data be trusted?",
    "How was it made?",
)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RecordedRuns, str, str]:
    return reported_runs(tmp_path, monkeypatch)


def text(html: str) -> str:
    """What a person reads."""
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_sections_come_in_the_order_in_which_people_ask(
    runs: tuple[RecordedRuns, str, str],
) -> None:
    recorded, _, second = runs
    report, _ = report_on(recorded.workspace, second, recorded.history)
    html = report.read_text()
    assert tuple(re.findall(r"<h2[^>]*>(.*?)</h2>", html)) == SECTIONS
    assert "SYNTHETIC DATA" in html
    assert report.stat().st_size < 3_000_000
    assert not re.search(r"https?://|<script", html)
    # Each picture is said in words.
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", html))
    drawings = re.findall(r"<svg[^>]*>", html)
    assert all('aria-label="' in drawing for drawing in drawings)
    assert len(drawings) == 9
    told = "Images to pairs, Statistics, Training, Evaluation, Serving gate, Push"
    assert f"Which step took what from which: {told}" in html
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))


def test_it_says_why_a_model_was_not_blessed(runs: tuple[RecordedRuns, str, str]) -> None:
    recorded, _, second = runs
    told = text(write_report(recorded.workspace, second).read_text())
    assert "5 candidates of one group is 5 points worse than the latest blessed model's" in told
    row = "at least 50 %; at most 3 points worse than the model before 85.0 % 90.0 % −5.0 points no"
    assert f"5 candidates of one group {row}" in told
    assert "AUC, area under the ROC curve at least 75 % 98.0 % 98.0 % ±0.0 points yes" in told


def test_it_compares_with_the_run_before_and_the_served_one(
    runs: tuple[RecordedRuns, str, str],
) -> None:
    recorded, first, second = runs
    told = text(write_report(recorded.workspace, second).read_text())
    assert f"Run before: {first}" in told
    assert "train.seed 2 1" in told
    assert "train.preset fast fast" not in told
    assert "nothing to compare it with" in text(write_report(recorded.workspace, first).read_text())
    asked = text(write_report(recorded.workspace, first, compare=second).read_text())
    assert f"Run asked for: {second}" in asked
    # A third: the served one is then not the one before.
    third = recorded.run(data=1, training=2, blessed=False).run_id
    (recorded.workspace.run_dir(third) / "summary.json").write_text(
        (recorded.workspace.run_dir(second) / "summary.json").read_text().replace(second, third)
    )
    told = text(write_report(recorded.workspace, third).read_text())
    assert f"Run before: {second}" in told
    assert f"Served: {first}" in told


def test_names_are_plain_and_abbreviations_explained(runs: tuple[RecordedRuns, str, str]) -> None:
    recorded, _, second = runs
    told = text(report_on(recorded.workspace, second, recorded.history)[0].read_text())
    before_settings = told.partition("Configuration")[0]
    for code in re.findall(r"\b[a-zA-Z]+_\w+", before_settings):
        assert code.startswith(("rejected_", "train.")), code
    assert "Old Greek" in told
    for abbreviation in ("AUC", "EER", "TAR", "FAR", "ECE", "ROC", "DET", "TFDV", "MLMD", "HOG"):
        assert abbreviation in told
    for long in ("equal error rate", "true accept rate", "expected calibration error"):
        assert long in told.lower()


def test_data_are_told_with_what_was_left_out_and_anomalies(
    runs: tuple[RecordedRuns, str, str],
) -> None:
    recorded, _, second = runs
    told = text(write_report(recorded.workspace, second).read_text())
    assert "1,200 read, 1 left out as copies of others of their class" in told
    assert "2 because: cannot be read" in told
    assert "/d/a/broken.png cannot be read" in told
    assert "Label noise" in told
    assert "Training the network learns from it 1 5 60 240" in told
    assert "Candidates Values out of range" in told
    assert "Same class 0 to 1, mean 0.5" in told
    assert "This run took 55 s; cached steps were done by an earlier one." in told
    assert "Then 1,200 steps on all images" in told


def test_the_model_runs_once_and_a_report_without_it_still_has_its_figures(
    runs: tuple[RecordedRuns, str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded, first, second = runs
    html = write_report(recorded.workspace, second).read_text()
    assert "Trials answered wrongly" in html
    assert "Trials answered right" in html
    monkeypatch.setattr(examination, "examine", lambda **_: pytest.fail("computed again"))
    assert write_report(recorded.workspace, second).read_text() == html
    # The model and its examples were removed.
    (tmp_path / "made" / "model").rename(tmp_path / "gone")
    told = text(write_report(recorded.workspace, first).read_text())
    assert "The model or its examples are no longer there" in told
    assert "90.0 %" in told


def test_a_lack_of_evidence_is_said_in_large_letters(
    runs: tuple[RecordedRuns, str, str], tmp_path: Path
) -> None:
    recorded, first, _ = runs
    file = recorded.workspace.run_dir(first) / "summary.json"
    lack = lack_of_evidence(["within_30way_accuracy"], [FIGURE])
    lacking = {"blessed": False, "lacking": ["within_30way_accuracy"], "refusals": [lack]}
    file.write_text(json.dumps(json.loads(file.read_text()) | lacking))
    html = write_report(recorded.workspace, first).read_text()
    assert re.search(rf'<p class="warning">{NOT_ENOUGH_EVIDENCE}', html)


def test_figures_of_either_kind_of_forgery_are_told(
    runs: tuple[RecordedRuns, str, str],
) -> None:
    recorded, first, _ = runs
    file = recorded.workspace.run_dir(first) / "summary.json"
    summary = json.loads(file.read_text())
    summary["metrics"] |= {"eer_skilled": 0.25, "auc_random": 0.8125}
    summary["thresholds"] = {"eer_skilled": {"max": 0.125}}
    file.write_text(json.dumps(summary))
    told = text(write_report(recorded.workspace, first).read_text())
    assert "AUC, area under the ROC curve, random forgeries" in told
    assert "81.2 %" in told
    assert "EER, equal error rate, skilled forgeries at most 12.5 % 25.0 % none no" in told


def test_the_drawing_says_what_was_made_from_what(runs: tuple[RecordedRuns, str, str]) -> None:
    recorded, _, second = runs
    boxes, arrows = lineage(recorded.history.nodes(second))
    assert {("PairExampleGen", "Trainer"), ("Trainer", "Evaluator"), ("Evaluator", "Pusher")} < set(
        arrows
    )
    told = {box["id"]: box for box in boxes}
    assert told["PairExampleGen"]["layer"] < told["Trainer"]["layer"] < told["Pusher"]["layer"]
    assert told["PairExampleGen"]["cached"]
    assert not told["Trainer"]["cached"]


def test_markup_in_a_name_is_text(runs: tuple[RecordedRuns, str, str], tmp_path: Path) -> None:
    recorded, first, _ = runs
    file = Workspace(tmp_path).run_dir(first) / "summary.json"
    file.write_text(file.read_text().replace("Old_Greek", "<b>&"))
    html = write_report(recorded.workspace, first).read_text()
    assert "<b>&<" not in html
    assert "&lt;b&gt;&amp;" in html
