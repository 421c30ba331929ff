"""The table of accuracies: what is measured once, and how seeds are put together."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_accuracy
from benchmarks.bench_accuracy import (
    ECE,
    OFFICIAL,
    WITHIN,
    Line,
    averaged,
    measure,
    summarize,
    table,
)

LINE = Line("small", ("train.preset=fast",), {OFFICIAL: 0.9, ECE: 0.02})


def run_of(official: float, ece: float) -> dict[str, Any]:
    figures = {OFFICIAL: official, ECE: ece}
    return {"figures": {name: {"value": value, "n": 400} for name, value in figures.items()}}


def test_seeds_are_put_together_and_compared_with_the_targets() -> None:
    found = summarize(LINE, [run_of(0.90, 0.01), run_of(0.92, 0.04), run_of(0.94, 0.04)])
    assert found[OFFICIAL]["mean"] == pytest.approx(0.92)
    assert found[OFFICIAL]["sd"] == pytest.approx(0.02)
    assert found[OFFICIAL]["n"] == [400, 400, 400]
    assert found[OFFICIAL]["met"] is True
    assert found[ECE]["met"] is False
    assert WITHIN not in found
    assert table({"small": found}).row_count == 2


def test_one_seed_has_no_deviation() -> None:
    assert summarize(LINE, [run_of(0.9, 0.01)])[OFFICIAL]["sd"] is None


def test_two_halves_of_a_protocol_are_averaged_over_all_their_trials() -> None:
    both = averaged(run_of(0.9, 0.01), run_of(0.96, 0.03))
    assert both["figures"][OFFICIAL] == {"value": pytest.approx(0.93), "n": 800}
    assert both["figures"][ECE]["value"] == pytest.approx(0.02)


def test_a_run_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    folder = tmp_path / "small-1"
    metrics = {
        key: value
        for name in (OFFICIAL, ECE)
        for key, value in ((name, 0.5), (f"{name}_ci95", [0.4, 0.6]), (f"{name}_n", 400))
    }

    def oneshot(*arguments: str, allowed: tuple[int, ...] = (0,)) -> str:
        calls.append(arguments)
        if arguments[0] == "run":
            latest = folder / "runs" / "latest"
            latest.mkdir(parents=True)
            summary = {
                "metrics": metrics,
                "artifacts": {"model": "somewhere"},
                "seconds": {"Trainer": 1.0},
                "train_images_per_second": 2.0,
                "device": "CPU",
            }
            (latest / "summary.json").write_text(json.dumps(summary))
            return ""
        return json.dumps({"accuracy": 0.7, "accuracy_ci95": [0.6, 0.8], "accuracy_n": 4000})

    monkeypatch.setattr(bench_accuracy, "_oneshot", oneshot)
    images = tmp_path / "images.zip"
    first = measure(LINE, 1, folder=folder, images=images, more=["train.steps=3"])
    assert [call[0] for call in calls] == ["run", "evaluate"]
    assert "train.seed=1" in calls[0]
    assert "train.steps=3" in calls[0]
    assert first["figures"][WITHIN]["n"] == 4000
    assert first["figures"][OFFICIAL]["value"] == 0.5
    assert measure(LINE, 1, folder=folder, images=images, more=["train.steps=3"]) == first
    assert len(calls) == 2
    with pytest.raises(SystemExit, match="another --output"):
        measure(LINE, 1, folder=folder, images=images, more=[])


def test_missing_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "images_evaluation.zip"
    with pytest.raises(SystemExit):
        bench_accuracy.main(["--images", str(missing)])
    assert str(missing) in capsys.readouterr().err
