"""The command line as a whole: what it imports, how it prints, and how it ends."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_ingest.errors import InputError
from pipeline.cli import main as command_line
from pipeline.cli.shared import OUTPUT, Context, Handler, add_command, print_json, table
from pipeline.runs.status import ExitCode
from pipeline.runs.summary import _command


@pytest.fixture
def try_command(monkeypatch: pytest.MonkeyPatch) -> list[Handler]:
    """What a command `try` does; the last one counts."""
    handlers: list[Handler] = []

    class Group:
        @staticmethod
        def add_parsers(commands: Any) -> None:
            add_command(commands, "try", lambda context: handlers[-1](context), OUTPUT, text="try")

    monkeypatch.setattr(command_line, "_GROUPS", (Group,))
    return handlers


def test_help_is_given_without_tensorflow_tfx_or_beam() -> None:
    code = (
        "import sys; from pipeline.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'tensorflow', 'keras', 'tfx', 'apache_beam', 'ml_metadata', 'grpc'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("run", "evaluate", "serve", "gallery", "retrain", "promote", "doctor"):
        assert f"    {command} " in done.stdout


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line.main(["--version"])
    assert end.value.code == 0
    assert re.fullmatch(r"oneshot \d+\.\d+\.\d+\n", capsys.readouterr().out)


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert {choice.dest for choice in action._choices_actions} == set(action.choices)
            assert all(choice.help for choice in action._choices_actions)
            for below in action.choices.values():
                yield from commands_of(below)


def test_every_command_and_option_says_what_it_is_for() -> None:
    for parser in commands_of(command_line.command_parser()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, (parser.prog, action.dest)
            assert not action.help.startswith("("), (parser.prog, action.dest)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("no such key"), ExitCode.USAGE, "oneshot: no such key\n"),
        (RuntimeError("it broke"), ExitCode.FAILED, "oneshot: it broke\n"),
        (OSError("disk full"), ExitCode.FAILED, "oneshot: disk full\n"),
        (ImportError("x.so: no"), ExitCode.FAILED, "oneshot: x.so: no\n"),
        (MemoryError(), ExitCode.FAILED, "oneshot: out of memory; see `oneshot doctor`\n"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "oneshot: interrupted; the same command"),
    ],
)
def test_an_error_ends_with_its_exit_code_and_one_line(
    error: BaseException,
    code: ExitCode,
    said: str,
    try_command: list[Handler],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(context: Context) -> None:
        raise error

    try_command.append(fail)
    assert command_line.main(["try"]) == code
    out, err = capsys.readouterr()
    assert (out, err[: len(said)]) == ("", said)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        # An unset variable in a script, which must not stand for the working folder.
        (["run", "--data", ""], "--data: give a path"),
        (["run", "--output", ""], "--output: give a path"),
        (["run", "--config", ""], "--config: give a path"),
        (["ingest", "--next", ""], "DIR_OR_ZIP: give a path"),
        (["runs", "--limit", "0"], "--limit: 1 or more, not 0"),
        (["runs", "--limit", "-1"], "--limit: 1 or more, not -1"),
        (["serve", "--max_body_bytes", "0"], "--max_body_bytes: 1 or more, not 0"),
        (["retrain", "--if-new", "--timeout", "99999999999h"], "of at most a year"),
        (["retrain", "--if-new", "--timeout", "0s"], "write a time as 30s"),
        (["compile", "--out", "x.yaml", "--output", "/o", "--volume", "A_B:/m"], "claim's name"),
        (["compile", "--out", "x.yaml", "--output", "/o", "--image", "a b"], "--image: 'a b'"),
        (["compile", "--out", "x.yaml", "--output", "/o", "--gpu", ""], "--gpu: '': a name"),
    ],
)
def test_an_absurd_value_is_refused_with_its_option(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = command_line.main(command)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_a_result_is_a_table_for_people_and_json_for_scripts(
    try_command: list[Handler], capsys: pytest.CaptureFixture[str]
) -> None:
    def show(context: Context) -> ExitCode:
        rows = (("[b]Zoë :cat:", "1"), ("x", "22"))
        context.show({"names": ["Zoë"]}, table(("name", "images"), rows, right=("images",)), "end")
        return ExitCode.NOT_BLESSED

    try_command.append(show)
    assert command_line.main(["try"]) == 3
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if "─" not in line] == [
        "name          images",
        "[b]Zoë :cat:       1",
        "x                 22",
        "end",
    ]
    assert command_line.main(["try", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"names": ["Zoë"]}


def test_a_path_that_is_not_utf_8_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": "a\udcff"})
    assert json.loads(capsys.readouterr().out) == {"path": "a\udcff"}


def test_the_workspace_is_of_the_configured_model(tmp_path: Path) -> None:
    common = {"output": Path("/out"), "overrides": ["push.model_name=words"]}
    config = tmp_path / "config.yaml"
    config.touch()
    context = Context(argparse.Namespace(**common, config=config))
    assert context.workspace.serving_model == Path("/out/serving_model/words")
    assert Context(argparse.Namespace(output=Path("/out"))).workspace.model_name == "siamese"


def test_paths_of_options_are_absolute_and_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    parse = command_line.command_parser().parse_args
    options = parse(["run", "--output", "../out", "--data", "../a/./b/../c", "--config", "x.yaml"])
    assert options.output == tmp_path / "out"
    assert options.data == tmp_path / "a" / "c"
    assert options.config == tmp_path / "here" / "x.yaml"
    assert parse(["run"]).output == tmp_path / "here" / "output"
    options = parse(["evaluate", "--model", "//models/../m", "--images", "images"])
    assert (options.model, options.images) == (Path("/m"), tmp_path / "here" / "images")
    assert parse(["ingest", "--next", "../new"]).sources == [tmp_path / "new"]


def test_a_working_folder_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit):
        command_line.main(["runs", "--output", "out"])
    assert "working folder is gone" in capsys.readouterr().err
    assert Path(_command()).is_absolute()


@pytest.mark.parametrize("name", ["output [1]", "out*"])
def test_an_output_folder_that_tfx_would_take_for_a_pattern_is_refused_before_it_is_made(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / name
    command = ["run", "--output", str(output), "--set", "dataset.source=synthetic"]
    assert command_line.main(command) == ExitCode.USAGE
    assert f"oneshot: --output: {output} has " in capsys.readouterr().err
    assert not output.exists()
