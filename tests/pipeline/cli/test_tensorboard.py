"""`oneshot tensorboard`: the page, and which training it is of."""

import argparse
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ml_metadata.proto.metadata_store_pb2 import Artifact

from components.trainer.board import show_batch, write_projector
from data_ingest.errors import InputError
from pipeline.cli.main import main
from pipeline.cli.shared import Context
from pipeline.cli.tensorboard import _training_of
from pipeline.runs.history import NodeRun
from tests.pair_records import tiny_data

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """The logs of the newest training of the output folder `tmp_path / "output"`."""
    trainings = tmp_path / "output/artifacts/Trainer/model_run"
    (trainings / "9").mkdir(parents=True)
    folder = trainings / "10"
    folder.mkdir()
    with tf.summary.create_file_writer(str(folder)).as_default():
        tf.summary.scalar("train/loss", 0.5, step=1)
        show_batch(np.ones((3, 8, 8, 1), np.float32), 1)
    data = tiny_data(tmp_path / "pairs")
    write_projector(folder, data, np.ones((len(data.index), 3)))
    return folder


def test_the_page_has_curves_batches_and_embeddings(training: Path, tmp_path: Path) -> None:
    command = ["tensorboard", "--output", str(tmp_path / "output"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", *command],
        cwd=CHECKOUT,
        env={**os.environ, "no_proxy": "*"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            assert line
            said += line
        found = json.loads(said)
        assert found["logs"] == str(training)
        url = found["url"]
        assert url.startswith("http://127.0.0.1:")

        def ask(path: str) -> Any:
            with urllib.request.urlopen(f"{url}{path}", timeout=60) as reply:
                return json.load(reply)

        assert "train/loss" in ask("data/plugin/scalars/tags")["."]
        assert "train/batch" in ask("data/plugin/images/tags")["."]
        (run,) = ask("data/plugin/projector/runs")
        (shown,) = ask(f"data/plugin/projector/info?run={run}")["embeddings"]
        assert shown["tensorShape"][1] == 3
        assert shown["sprite"]["imagePath"].endswith("sprite.png")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stdout.close()


def test_without_a_training_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tensorboard", "--output", str(tmp_path)]) == 2
    assert f"oneshot: {tmp_path}: nothing has been trained here yet: `oneshot run`" in (
        capsys.readouterr().err
    )


def test_a_run_is_shown_by_the_training_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class History:
        def nodes(self, run_id: str) -> list[NodeRun]:
            if run_id != "run-2":
                return [NodeRun("PairExampleGen", False, 1.0, {})]
            return [NodeRun("Trainer", True, 1.0, {"model_run": Artifact(uri=str(folder))})]

    folder = tmp_path / "logs"
    folder.mkdir()
    context = Context(argparse.Namespace(output=tmp_path))
    monkeypatch.setattr(context, "history", History)
    context.workspace.run_dir("run-2").mkdir(parents=True)
    context.workspace.point_latest_at("run-2")
    assert _training_of(context, "run-2") == _training_of(context, "latest") == folder
    with pytest.raises(InputError, match="run run-1: it has no finished training"):
        _training_of(context, "run-1")
    folder.rmdir()
    with pytest.raises(InputError, match=f"the logs of its training, {folder}, are gone"):
        _training_of(context, "run-2")
