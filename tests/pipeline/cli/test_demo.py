"""`oneshot demo` before its page is there."""

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from components.trainer.model import build_model
from pipeline.cli import demo
from pipeline.cli.demo import _pictures
from pipeline.cli.main import main
from pipeline.runs.status import ExitCode
from pipeline.runs.workspace import Workspace
from serving.saved_model.contract import Preprocessing
from serving.saved_model.export import export_model
from tests.pair_records import make_pairs, tiny_recipe, write_records


def test_without_a_model_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", f"--output={tmp_path}"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path}/serving_model/siamese: there is no model yet: `make run` trains" in said


def test_a_server_that_does_not_answer_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    monkeypatch.setattr(demo, "ANSWER_SECONDS", 0.1)
    url = "http://127.0.0.1:9"
    assert main(["demo", f"--output={tmp_path}", "--server", url]) == ExitCode.FAILED
    assert f"oneshot: {url}: siamese was not ready within 0.1 s" in capfd.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "a"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--port", port])
    assert "--port" in capsys.readouterr().err


def test_it_begins_with_what_the_newest_run_has_not_trained_on(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert _pictures(workspace, cropped=False)[1] == "Enrolled are 20 generated glyphs."
    assert _pictures(workspace, cropped=True)[1] == "Nobody is enrolled yet."
    pairs = [
        pair._replace(protocol="verification") for pair in make_pairs(groups=1, classes=4, pairs=20)
    ]
    write_records(tmp_path / "examples" / "Split-one_shot", pairs)
    for run, examples in (("1", tmp_path / "examples"), ("2", tmp_path / "removed")):
        workspace.run_dir(run).mkdir(parents=True)
        summary = {"artifacts": {"examples": str(examples)}}
        (workspace.run_dir(run) / "summary.json").write_text(json.dumps(summary))
    pictures, about = _pictures(workspace, cropped=False)
    assert about == "Enrolled are 2 classes that the model was not trained on."
    assert sorted(pictures.enrolled) == ["group00 character00", "group00 character02"]


@pytest.fixture
def outside() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that gets every request to another machine, and the beginnings of these."""
    asked: list[bytes] = []

    class Recorder(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked.append(self.request.recv(200))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


@pytest.mark.timeout(900)
def test_it_shows_the_pushed_model_and_asks_nothing_of_other_machines(
    tmp_path: Path, outside: tuple[str, list[bytes]]
) -> None:
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    export_model(
        build_model(tiny_recipe()),
        tmp_path / "serving_model" / "siamese" / "1700000000",
        preprocessing=Preprocessing(16),
        card={},
        warmup_images=[make_pairs(groups=1, classes=2, pairs=1)[0].image_a],
    )
    command = [sys.executable, "-m", "pipeline.cli.main", "demo", "--json", "--port=0"]
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), outside[0])
    with subprocess.Popen(
        [*command, f"--output={tmp_path}"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **proxies},
    ) as process:
        try:
            assert process.stdout is not None
            page = json.loads(process.stdout.readline())["page"]
            assert page.startswith("http://127.0.0.1:")
            answer = httpx.get(page, timeout=60, trust_env=False)
            assert "1700000000" in answer.text
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=300) == 0
        finally:
            process.kill()
    assert outside[1] == []
