"""`oneshot retrain` with the real pipeline on tiny images, its metadata in a real PostgreSQL.

The tests of this module build on one another's output folder, in the order they are written.
"""

import io
import json
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from PIL import Image, ImageOps

from pipeline.cli.main import main
from pipeline.runs.history import RunHistory
from pipeline.runs.metadata_store import URL_VARIABLE, parse_url
from serving.saved_model.loader import LoadedModel
from tests.pipeline.retraining.kill_retrain import Outcome, complete_once, kill
from tests.pipeline.retraining.start_together import CHECKOUT, command, land

# Each test is several whole retrainings.
pytestmark = pytest.mark.timeout(900)

PASSWORD = "let no log@may hold\\this"
PART = "log@may"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retrain")


@pytest.fixture(scope="module")
def database(postgres_server: str) -> str:
    """URL of a new database, whose owner, no administrator, is asked for a password."""
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE keeper LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("CREATE DATABASE whole_pipeline OWNER keeper")
        row = connection.execute("SHOW hba_file").fetchone()
        assert row is not None
        rules = Path(row[0])
        rules.write_text("local whole_pipeline keeper scram-sha-256\n" + rules.read_text())
        connection.execute("SELECT pg_reload_conf()")
    parts = urlsplit(postgres_server)
    netloc = f"keeper:{quote(PASSWORD, safe='')}@"
    return parts._replace(netloc=netloc, path="/whole_pipeline").geturl()


@pytest.fixture(autouse=True)
def _environment(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, database)


def _inverted(image: bytes) -> bytes:
    stream = io.BytesIO()
    with Image.open(io.BytesIO(image)) as drawing:
        ImageOps.invert(drawing.convert("L")).save(stream, "PNG")
    return stream.getvalue()


def retrain(
    output: Path, capfd: pytest.CaptureFixture[str], *argv: str
) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    line = command(output, *argv)
    code = main(line[line.index("retrain") :])
    return code, json.loads(capfd.readouterr().out)


def test_stages_are_done_one_after_the_other_and_once(
    output: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    land(output)
    code, result = retrain(output, capfd, "--stage", "train")
    assert (code, result["status"]) == (0, "done"), result
    assert result["blessed"] is None
    assert not (output / "serving_model").exists()
    assert not (output / "runs" / "latest").exists()

    code, result = retrain(output, capfd)
    assert (code, result["status"], result["promoted"]) == (0, "done", True)
    summary = json.loads((output / "runs" / "latest" / "summary.json").read_text())
    assert {"PairExampleGen", "StatisticsGen", "ExampleValidator", "Trainer"} <= set(
        summary["cached"]
    )
    assert {"Evaluator", "ServingGate", "Pusher"}.isdisjoint(summary["cached"])
    with LoadedModel(Path(summary["model_dir"])):
        pass
    assert retrain(output, capfd)[1]["status"] == "nothing_new"


def test_everything_is_in_the_database_and_the_password_nowhere(
    output: Path, database: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not (output / "metadata.db").exists()
    whole, part = RunHistory(parse_url(database).connection()).runs()
    assert [
        node.node_id for node in RunHistory(parse_url(database).connection()).nodes(whole.run_id)
    ]
    assert (part.stage, whole.stage, whole.span, whole.window) == ("train", "push", 1, (1,))
    capfd.readouterr()
    assert main(["runs", "--output", str(output)]) == 0
    out, err = capfd.readouterr()
    assert whole.run_id in out
    assert PART not in out + err
    for file in output.rglob("*"):
        assert not file.is_file() or PART.encode() not in file.read_bytes(), file
    with psycopg.connect(database) as connection:
        for (table,) in connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                assert PART not in str(row), table


def test_a_command_without_the_url_does_not_begin_a_second_history(
    output: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(URL_VARIABLE)
    capfd.readouterr()
    for argv in (["retrain", "--if-new"], ["run"], ["runs"]):
        assert main([*argv, "--output", str(output)]) == 2
        assert URL_VARIABLE in capfd.readouterr().err
    assert not (output / "metadata.db").exists()


def test_a_bad_span_ends_with_3_and_the_model_that_is_served_stays(
    output: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = output / "serving_model" / "models.config"
    before = config.read_text()
    land(output)
    refused = ["--set", "evaluate={thresholds: {auc: {min: 0.9999}}}"]
    code, result = retrain(output, capfd, *refused)
    assert (code, result["status"], result["pushed_version"]) == (3, "not_blessed", None)
    assert result["span"] == 2
    assert config.read_text() == before
    assert retrain(output, capfd)[1]["status"] == "nothing_new"


def test_a_span_that_drifted_is_excluded_before_anything_is_trained(
    output: Path, database: str, capfd: pytest.CaptureFixture[str]
) -> None:
    land(output, spoil=_inverted)
    code, result = retrain(output, capfd, "--set", "drift.action=block")
    assert (code, result["status"], result["state"], result["span"]) == (3, "blocked", "blocked", 3)
    assert "paper" in result["drift"]
    assert "readmit 3" in result["error"]
    assert RunHistory(parse_url(database).connection()).nodes(result["run_id"]) == []
    assert retrain(output, capfd, "--set", "drift.action=block")[1]["status"] == "nothing_new"


def test_where_drift_is_the_trigger_only_a_span_that_drifted_is_trained_on(
    output: Path, database: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trigger = ["--set", "retrain.trigger=drift"]
    land(output)
    code, result = retrain(output, capfd, *trigger)
    assert (code, result["status"], result["span"]) == (0, "skipped", 4), result
    assert RunHistory(parse_url(database).connection()).nodes(result["run_id"]) == []
    assert retrain(output, capfd, *trigger)[1]["status"] == "nothing_new"
    land(output, spoil=_inverted)
    code, result = retrain(output, capfd, *trigger)
    assert result["status"] in ("done", "not_blessed"), result
    assert "paper" in result["drift"]
    assert RunHistory(parse_url(database).connection()).nodes(result["run_id"])


def test_what_a_kill_9_interrupts_is_completed_and_nothing_bad_is_ever_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `python -m tests.pipeline.retraining.kill_retrain --kills 50` is the long version.
    monkeypatch.delenv(URL_VARIABLE)
    seconds = complete_once(tmp_path)
    outcome = Outcome()
    after = [0.4 * seconds, 0.6 * seconds]
    kill(tmp_path, outcome, after=after, moments=random.Random(1))
    assert outcome.kills + outcome.after_the_end == 2
    assert outcome.looks > 100


def test_sigterm_in_a_training_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(URL_VARIABLE)
    land(tmp_path)
    long = "{widths: [8, 8, 8], image_size: 16, steps: 100000, checkpoint_every: 100000}"
    process = subprocess.Popen(
        command(tmp_path, "--set", f"train={long}"),
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def log() -> str:
        return "".join(file.read_text() for file in tmp_path.glob("runs/[0-9]*/run.log"))

    while "components.trainer.progress: step" not in log():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(out)["error"] == "ended by SIGTERM"
    (step,) = re.findall(r"Stopped from outside, after step (\d+)", log())
    (checkpoint,) = tmp_path.glob("checkpoints/*/ckpt-*.index")
    assert checkpoint.stem == f"ckpt-{step}"
