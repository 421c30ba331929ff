"""`oneshot serve` as a person or a script meets it."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from data_ingest.errors import InputError
from pipeline.cli.main import command_parser, main
from pipeline.cli.shared import Context
from pipeline.runs.status import ExitCode
from serving.client import Client
from tests.serving.server.word_model import export_word_model, push

PATIENCE = 120.0


def parse(*arguments: str) -> argparse.Namespace:
    return command_parser().parse_args(["serve", *arguments])


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A server process, and what it said about itself."""
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", "--json"]
    with subprocess.Popen(
        [*command, "--port=0", "--rest-api-port=0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    base_path = tmp_path / "serving_model" / "words"
    base_path.mkdir(parents=True)
    push(export_word_model(tmp_path / "model", offset=100), base_path, 7)
    with served(f"--output={tmp_path}", "--model-name=words", ONESHOT_TOKEN="s3cret") as (
        process,
        said,
    ):
        assert said["models"] == ["words"]
        with Client(said["rest"], model="words", token="s3cret") as client:
            assert client.wait_ready(timeout=PATIENCE) == 7
        url = f"{said['rest']}/v1/models/words:predict"
        assert httpx.post(url, json={"instances": ["a"]}).status_code == 401
        headers = {"Authorization": "Bearer s3cret"}
        answer = httpx.post(url, json={"inputs": ["abc"]}, headers=headers, timeout=PATIENCE)
        assert answer.json()["outputs"]["length"] == [103]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out == ""
    assert "version 7 is available" in err
    assert "version 7 is unloaded" in err
    assert "Traceback" not in err
    assert "not only on this machine" not in err


def test_a_changed_configuration_file_is_taken_over(tmp_path: Path) -> None:
    exported = export_word_model(tmp_path / "model")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        push(exported, tmp_path / name, 1)
    config = tmp_path / "models.config"
    entry = "config {{ name: '{0}' base_path: '{1}/{0}' model_platform: 'tensorflow' }}"
    config.write_text("model_config_list {" + entry.format("a", tmp_path) + "}")
    with served(f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=0.05") as (
        _,
        said,
    ):
        with Client(said["rest"], model="a") as client:
            client.wait_ready(timeout=PATIENCE)
        config.write_text("model_config_list {" + entry.format("b", tmp_path) + "}")
        with Client(said["rest"], model="b") as client:
            assert client.wait_ready(timeout=PATIENCE) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=nowhere"], "nowhere/serving_model/siamese: no such folder; `oneshot run`"),
        (["--model_base_path={tmp}/1"], "is one version; --model_base_path is the folder around"),
        (["--model_config_file={tmp}/models.config"], r"models\.config: no such file"),
        (
            ["--model_config_file={tmp}/x", "--model_name=a"],
            "leave out --model_name and --model_base_path",
        ),
        (["--port=1", "--rest-api-port=1"], "--rest_api_port cannot be the same as --port"),
        (["--port=70000"], "--port: 0 to 65535"),
        (["--model-base-path={tmp}", "--tls_key=k"], "--tls_certificate and --tls_key"),
        (["--model_base_path={tmp}", "--token_file={tmp}/none"], "none: no such file"),
        (["--model_base_path={tmp}", "--token_file={tmp}/token"], "one line of ASCII characters"),
        (
            ["--model_base_path={tmp}", "--batching_parameters_file={tmp}/token"],
            "token: .*two",
        ),
        (["--model_config_file={tmp}/token"], "token: .*two"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "token").write_text("two\nlines")
    parsed = parse(*(argument.format(tmp=tmp_path) for argument in arguments))
    with pytest.raises(InputError, match=message):
        parsed.handler(Context(parsed))


@pytest.mark.parametrize(
    "argument", ["--enable_batching=maybe", "--file-system-poll-wait-seconds=0", "--port=x"]
)
def test_values_of_the_wrong_kind_are_usage_errors(argument: str) -> None:
    with pytest.raises(SystemExit) as error:
        parse(argument)
    assert error.value.code == 2


def test_flags_have_tf_servings_names_with_dashes_or_underscores() -> None:
    for dash in ("-", "_"):
        flags = [
            flag.replace("_", dash)
            for flag in ("rest_api_port=1", "model_name=m", "enable_batching=false")
        ]
        parsed = parse(*(f"--{flag}" for flag in flags))
        assert (parsed.rest_api_port, parsed.model_name, parsed.enable_batching) == (1, "m", False)
    assert parse().rest_api_port == 8501
    assert parse("--enable_batching").enable_batching is True


@pytest.mark.parametrize(
    ("host", "exposed"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)],
)
def test_a_server_that_others_can_reach_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str, exposed: bool
) -> None:
    from pipeline.cli.serve import _options, _warn_of_exposure

    _warn_of_exposure(_options(parse(f"--host={host}", f"--model_base_path={tmp_path}")))
    assert ("not only on this machine" in caplog.text) is exposed
    assert ("--token_file" in caplog.text) is exposed


def test_a_signal_while_libraries_load_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = []

    def load(context: Context) -> None:
        handlers.append(signal.getsignal(signal.SIGINT))
        raise KeyboardInterrupt

    (tmp_path / "serving_model" / "siamese").mkdir(parents=True)
    monkeypatch.setattr(Context, "quiet_libraries", load)
    assert main(["serve", f"--output={tmp_path}"]) == ExitCode.INTERRUPTED
    assert handlers == [signal.getsignal(signal.SIGINT)]
