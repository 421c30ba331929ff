"""The whole pipeline on tiny generated data: what runs, what is cached, what reaches serving.

The tests of this module build on one another's output folder, in the order they are written.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.cli.main import main
from serving.saved_model.loader import LoadedModel
from tests.pipeline import tiny

TINY = tiny.TINY | tiny.TINY_GLYPHS | {"train.steps": "12", "train.checkpoint_every": "3"}
NODES = {
    "PairExampleGen",
    "StatisticsGen",
    "ExampleValidator",
    "Trainer",
    "Evaluator",
    "ServingGate",
    "Pusher",
}


def arguments(output: Path, **overrides: str) -> list[str]:
    settings = TINY | {key.replace("__", "."): value for key, value in overrides.items()}
    sets = tiny.as_options(settings)
    return ["run", "--output", str(output), "--json", *sets]


def run(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any], str]:
    capfd.readouterr()
    code = main(argv)
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else {}, err


def versions(output: Path) -> list[int]:
    folder = output / "serving_model" / "siamese"
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def first(output: Path) -> dict[str, Any]:
    """The summary of a first run on generated glyphs."""
    code = main(arguments(output, dataset__source="synthetic"))
    assert code == 0
    summary: dict[str, Any] = json.loads((output / "runs/latest/summary.json").read_text())
    return summary


def test_a_run_leaves_a_blessed_model_that_the_serving_loader_accepts(
    output: Path, first: dict[str, Any]
) -> None:
    assert first["blessed"] is True
    assert versions(output) == [first["pushed_version"]]
    with LoadedModel(Path(first["model_dir"])) as model:
        assert {"serving_default", "embed", "match", "examples"} <= set(model.signatures)


def test_every_node_is_announced_with_its_number(output: Path, first: dict[str, Any]) -> None:
    log = next((output / "runs").glob("[0-9]*/run.log")).read_text()
    announced = re.findall(r"pipeline\.runners\.local: \[(\d)/9\] (\w+)", log)
    assert [int(number) for number, _ in announced] == list(range(1, 10))
    assert {node for _, node in announced} >= NODES
    assert log.count("pipeline.runners.local:       done in") == 9


def test_the_summary_says_what_it_was_trained_on_how_good_and_how_long(
    output: Path, first: dict[str, Any]
) -> None:
    assert first["dataset"] == "synthetic"
    assert set(first["seconds"]) >= NODES | {"total"}
    assert first["cached"] == []
    for name in (
        "within_5way_accuracy",
        "between_5way_accuracy",
        "verification_accuracy",
        "auc",
        "eer",
        "tar_at_1pct_far",
        "ece",
    ):
        low, high = first["metrics"][f"{name}_ci95"]
        assert 0 <= low <= first["metrics"][name] <= high <= 1, name
    assert first["metrics"]["within_5way_accuracy_n"] == 20
    assert "official_20way_accuracy" not in first["metrics"]
    assert first["train_images_per_second"] > 0
    assert "CPU" in first["device"]
    assert first["versions"]["tfx"].startswith("1.")


def test_the_report_is_one_file_with_its_pictures_and_says_synthetic(
    output: Path, first: dict[str, Any]
) -> None:
    html = (output / "runs/latest/report.html").read_text()
    assert "SYNTHETIC DATA" in html
    assert html.count("data:image/png;base64,") >= 4
    assert html.count("<svg") >= 6
    assert not re.search(r'(src|href)="https?:|url\((?!#)', html)
    index = (output / "runs/index.html").read_text()
    assert f'href="{first["run_id"]}/report.html"' in index


def test_an_unchanged_second_run_is_all_cached_and_pushes_nothing(
    output: Path,
    first: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Neither is the model run again for the report, nor its evaluation read again.
    for name in (
        "components.evaluator.examination.examine",
        "pipeline.runs.summarize.read_metrics",
    ):
        monkeypatch.setattr(name, lambda *args, **kwargs: pytest.fail("computed again"))
    code, summary, _ = run(capfd, *arguments(output, dataset__source="synthetic"))
    assert code == 0
    assert set(summary["cached"]) >= NODES
    assert summary["pushed_version"] == first["pushed_version"]
    assert versions(output) == [first["pushed_version"]]
    assert summary["metrics"] == first["metrics"]
    log = (output / "runs" / summary["run_id"] / "run.log").read_text("utf-8")
    assert log.count("pipeline.runners.local:       from the cache") == len(NODES) + 1
    # What the work took is not forgotten.
    assert {node: summary["seconds"][node] for node in NODES} == {
        node: first["seconds"][node] for node in NODES
    }
    assert summary["run_seconds"] < sum(first["seconds"][node] for node in NODES)
    assert summary["seconds"]["total"] > summary["run_seconds"]
    reports = [output / "runs" / run / "report.html" for run in (first["run_id"], "latest")]
    kept, again = (
        re.findall(r'<div class="trial">.*?</div>', r.read_text(), re.S) for r in reports
    )
    assert kept == again
    assert kept


def test_a_report_is_written_again_without_tensorflow(output: Path, first: dict[str, Any]) -> None:
    code = (
        "import sys; from pipeline.cli.main import main; "
        "assert main(sys.argv[1:]) == 0; assert 'tensorflow' not in sys.modules"
    )
    argv = ["report", first["run_id"], "--output", str(output)]
    subprocess.run([sys.executable, "-c", code, *argv], check=True)


def test_another_training_seed_runs_the_trainer_and_what_follows_only(
    output: Path, first: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    # Also the first run that has a baseline.
    code, summary, _ = run(capfd, *arguments(output, dataset__source="synthetic", train__seed="2"))
    assert code == 0
    assert NODES - set(summary["cached"]) == {"Trainer", "Evaluator", "ServingGate", "Pusher"}
    figure = "within_5way_accuracy"
    assert summary["before"][figure] == first["metrics"][figure]
    assert versions(output) == [first["pushed_version"], summary["pushed_version"]]


def test_a_warm_start_trains_on_from_the_latest_blessed_model(
    output: Path, first: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    code, summary, _ = run(
        capfd, *arguments(output, dataset__source="synthetic", train__warm_start="true")
    )
    assert code == 0
    card = Path(summary["model_dir"], "assets.extra", "model_card.json").read_text()
    start = json.loads(card)["training"]["warm_start_from"]
    assert (Path(start) / "assets.extra" / "model.keras").is_file()


def test_a_model_below_a_threshold_is_not_pushed_and_the_exit_code_says_so(
    output: Path, first: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    before = versions(output)
    code, summary, err = run(
        capfd,
        *arguments(
            output,
            dataset__source="synthetic",
            evaluate__thresholds="{within_5way_accuracy: {min: 0.999}, "
            "within_30way_accuracy: {min: 0.1}}",
        ),
    )
    assert code == 3
    # Told before the training, at its end and in the report.
    log = (output / "runs/latest/run.log").read_text()
    assert log.index("NOT ENOUGH EVIDENCE") < log.index("[1/9]")
    assert "NOT ENOUGH EVIDENCE" in err
    assert "NOT ENOUGH EVIDENCE" in (output / "runs/latest/report.html").read_text()
    assert summary["lacking"] == ["within_30way_accuracy"]
    assert summary["config"]["train"]["steps"] == 12
    assert summary["thresholds"]["within_5way_accuracy"] == {"min": 0.999}
    assert summary["blessed"] is False
    assert summary["pushed_version"] is None
    assert "within_5way_accuracy" in " ".join(summary["refusals"])
    assert versions(output) == before


def test_runs_lists_the_history_newest_first(
    output: Path, first: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert main(["runs", "--output", str(output), "--json"]) == 0
    records = json.loads(capfd.readouterr().out)
    assert [record["state"] for record in records] == ["done"] * 5
    assert [record["blessed"] for record in records] == [False, True, True, True, True]
    assert records[-1]["pushed_version"] == first["pushed_version"]
    assert records[-1]["accuracy"] == first["metrics"]["within_5way_accuracy"]
    assert all(record["dataset"] == "synthetic" for record in records)


def test_evaluate_measures_an_exported_model_on_any_zip(
    output: Path, first: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    images = next((output / "synthetic").rglob("images_evaluation.zip"))
    argv = ["evaluate", "--model", first["model_dir"], "--images", str(images)]
    capfd.readouterr()
    assert main([*argv, "--way", "5", "--trials", "30", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    low, high = result["accuracy_ci95"]
    assert 0 <= low <= result["accuracy"] <= high <= 1
    assert result["accuracy_n"] == 30
    assert len(result["by_group"]) == 2
    assert main([*argv, "--way", "50"]) == 2
    assert "50" in capfd.readouterr().err


def test_generated_glyphs_never_take_the_place_of_real_data(
    output: Path, first: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digits = write_digits(tmp_path / "digits", a_class=6)
    (min(digits.rglob("*.png")).parent / "drawing.xcf").write_bytes(b"gimp xcf")
    mine = tmp_path / "mine"
    some = arguments(mine, dataset__max_rejected_share="0.1")
    code, summary, err = run(capfd, *some, "--data", str(digits))
    assert code == 0
    left_out = "Images left out: 1 not an image: .xcf; listed in"
    assert any(note.startswith(left_out) for note in summary["notes"])
    assert "drawing.xcf; listed in" in err
    assert summary["dataset"] == "folder"
    assert any(name.startswith("within_") for name in summary["metrics"])
    assert "Few classes: all figures are of 3 classes with 18 images" in summary["notes"]
    assert versions(mine) == [summary["pushed_version"]]

    code, _, err = run(capfd, *arguments(mine, dataset__source="synthetic"))
    assert code == 2
    assert "models of real data" in err
    assert versions(mine) == [summary["pushed_version"]]


def test_too_many_broken_images_stop_the_run_with_their_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    digits = write_digits(tmp_path / "digits", a_class=10)
    broken = sorted(digits.rglob("*.png"))[::20]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    code, _, err = run(capfd, *arguments(tmp_path / "out"), "--data", str(digits))
    assert code == 2
    assert "max_rejected_share" in err
    assert broken[0].name in err
    assert not list((tmp_path / "out").rglob("*.gz"))


@pytest.mark.parametrize("case", ["unreadable zip", "empty folder", "single class", "missing"])
def test_unusable_data_is_refused_at_once_by_name(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "images.zip"
    if case == "unreadable zip":
        data.write_bytes(b"PK\x03\x04 but no more")
    elif case == "empty folder":
        data.mkdir()
    elif case == "single class":
        with zipfile.ZipFile(data, "w") as archive:
            for number in range(3):
                archive.writestr(f"Greek/alpha/{number}.png", png(number))
    code, _, err = run(capfd, *arguments(tmp_path / "out"), "--data", str(data))
    assert code == 2
    assert "images.zip" in err or "Greek" in err or "alpha" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "serving_model").exists()


def test_a_wrong_configuration_key_ends_with_code_2_and_the_right_keys(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capfd, "run", "--output", str(tmp_path / "out"), "--set", "train.stepz=3")
    assert code == 2
    assert "train.stepz" in err
    assert not (tmp_path / "out").exists()


def test_a_killed_training_continues_from_its_checkpoint(tmp_path: Path) -> None:
    output = tmp_path / "out"
    argv = arguments(output, dataset__source="synthetic", train__steps="300")
    command = [sys.executable, "-m", "pipeline.cli.main", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 240
        # Written last: it names the checkpoint that is whole.
        while not list((output / "checkpoints").rglob("checkpoint")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert not (output / "serving_model").exists()

    # To TFX, which reads the process's arguments, -v would be a flag with a number.
    finished = subprocess.run([*command, "-v"], capture_output=True, text=True, check=True)
    summary = json.loads(finished.stdout)
    assert {"PairExampleGen", "StatisticsGen", "ExampleValidator"} <= set(summary["cached"])
    training = json.loads(Path(summary["artifacts"]["model_run"], "training.json").read_text())
    assert training["resumed_from_step"] >= 3
    assert versions(output) == [summary["pushed_version"]]
    listed = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "runs", "--json", "--output", str(output)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [record["state"] for record in json.loads(listed.stdout)] == ["done", "interrupted"]


def write_digits(root: Path, *, a_class: int) -> Path:
    """scikit-learn's digits as `<class>/<image>`, `a_class` images each, light on dark."""
    digits = load_digits()
    for label in range(10):
        folder = root / f"digit{label}"
        folder.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:a_class]):
            pixels = (image * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(folder / f"{number}.png")
    return root


def png(shade: int) -> bytes:
    import io

    buffer = io.BytesIO()
    image = Image.new("L", (20, 20), 255)
    image.paste(shade, (5, 5, 15, 15))
    image.save(buffer, "PNG")
    return buffer.getvalue()
