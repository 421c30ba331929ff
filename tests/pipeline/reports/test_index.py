"""The list of all runs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.reports import index
from pipeline.reports.index import try_to_report_on, write_index
from pipeline.runs.history import RunRecord
from pipeline.runs.status import Status
from tests.pipeline.reports.reported_run import reported_runs


def test_all_runs_are_listed_with_a_trend_and_links_to_reports_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, first, second = reported_runs(tmp_path, monkeypatch)
    (recorded.workspace.run_dir(first) / "report.html").unlink()
    failed = RunRecord("run-failed", Status.FAILED, started=0.0, error="no space left\nand more")
    html = write_index(recorded.workspace, [*recorded.history.runs(), failed]).read_text()
    assert re.findall(r'href="([^"]+\.html)"', html) == [f"{second}/report.html"]
    assert html.index(second) < html.index(first) < html.index("run-failed")
    assert "no space left" in html
    assert "and more" not in html
    assert "Accuracy of 2 runs, 5 candidates of one group: last 85.0 %" in html
    assert "SYNTHETIC DATA" in html


def test_runs_judged_by_other_trials_have_a_trend_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, _, _ = reported_runs(tmp_path, monkeypatch)
    newest, oldest = recorded.history.runs()
    other = replace(newest, accuracy_metric="between_5way_accuracy")
    html = write_index(recorded.workspace, [other, oldest]).read_text()
    assert html.count("<svg") == 2


def test_a_report_that_cannot_be_written_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorded, first, _ = reported_runs(tmp_path, monkeypatch)
    monkeypatch.setattr(index, "write_report", lambda *_, **__: 1 / 0)
    try_to_report_on(recorded.workspace, first, recorded.history)
    assert f"`oneshot report {first}` tries again" in caplog.text
