"""The units of systemd and the crontab line: well formed, and the command in them exists."""

import shlex
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from pipeline.cli.main import main

DEPLOY = Path(__file__).parents[3] / "pipeline" / "deploy"
DOCS = Path(__file__).parents[3] / "docs" / "retraining.md"


def _unit(name: str) -> RawConfigParser:
    parser = RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((DEPLOY / name).read_text())
    return parser


def _cron_command() -> list[str]:
    (line,) = [
        line
        for line in (DEPLOY / "crontab").read_text().splitlines()
        if line and not line.startswith(("#", "MAILTO"))
    ]
    command = line.split(maxsplit=5)[5]
    return shlex.split(command.partition("&& ")[2].partition(">>")[0])


@pytest.mark.parametrize("source", ["service", "crontab"])
def test_the_command_is_understood(
    source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = (
        shlex.split(_unit("oneshot-retrain.service")["Service"]["ExecStart"])
        if source == "service"
        else _cron_command()
    )
    assert Path(command[0]).name == "oneshot"
    output = command.index("--output") + 1
    command[output] = str(tmp_path / "output")
    # Nothing has landed there: nothing to do, and nothing to say.
    assert main(command[1:]) == 0
    assert capfd.readouterr().out == ""


def test_the_unit_waits_longer_than_the_command_and_3_is_no_failure() -> None:
    service = _unit("oneshot-retrain.service")["Service"]
    timeout = service["ExecStart"].split("--timeout ")[1].split()[0]
    assert int(timeout.removesuffix("h")) < int(service["TimeoutStartSec"].removesuffix("h"))
    assert service["SuccessExitStatus"] == "3"
    assert service["Type"] == "oneshot"


def test_the_unit_writes_where_its_output_is_and_has_no_rights() -> None:
    service = _unit("oneshot-retrain.service")["Service"]
    output = service["ExecStart"].split("--output ")[1].split()[0]
    assert Path(service["ReadWritePaths"]) in Path(output).parents
    assert service["ProtectSystem"] == "strict"
    assert (service["User"], service["CapabilityBoundingSet"]) == ("oneshot", "")


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for name, section in (("service", "Service"), ("timer", "Timer")):
        assert {"Unit", section} <= set(_unit(f"oneshot-retrain.{name}").sections())
        # The program must exist for `verify`.
        text = (DEPLOY / f"oneshot-retrain.{name}").read_text()
        text = text.replace("/opt/oneshot/.venv/bin/oneshot", "/bin/true")
        (tmp_path / f"oneshot-retrain.{name}").write_text(text)
    if program := shutil.which("systemd-analyze"):
        done = subprocess.run(
            [program, "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "oneshot-retrain" in done.stderr) == (0, False), done.stderr


def test_the_guide_names_the_files() -> None:
    text = DOCS.read_text()
    for name in ("oneshot-retrain.service", "oneshot-retrain.timer", "crontab"):
        assert f"pipeline/deploy/{name}" in text
