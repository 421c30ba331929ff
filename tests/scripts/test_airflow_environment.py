"""Airflow's environment: made once, made anew when the pins change or a set-up was interrupted."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from airflow_environment import LOCK_FILE, AirflowSetup
from host import SetupError

_ROOT = Path(__file__).resolve().parents[2]


def _set_up(root: Path, *, fails_in: int | None = None) -> list[str]:
    """The commands that a set-up ran, the one that failed included."""
    commands: list[str] = []

    def run(command: Sequence[str], environ: Mapping[str, str]) -> None:
        commands.append(" ".join(command))
        if len(commands) - 1 == fails_in:
            raise SetupError("no network")
        if " venv " in commands[-1]:
            Path(command[-1]).mkdir()

    try:
        AirflowSetup(root, run=run).ensure()
    except SetupError:
        assert fails_in is not None
    return commands


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / LOCK_FILE).write_text("apache-airflow-core==3\n")
    return tmp_path


def test_the_environment_is_made_with_the_uv_of_the_main_one_and_only_once(root: Path) -> None:
    commands = _set_up(root)
    assert [kind in command for kind, command in zip(("venv", "sync", "-c"), commands, strict=True)]
    assert commands[0].startswith(str(root / ".venv" / "bin" / "uv"))
    assert commands[1].endswith(f"--require-hashes {root / LOCK_FILE}")
    assert _set_up(root) == []


def test_other_pins_make_it_anew_without_what_was_there(root: Path) -> None:
    _set_up(root)
    left_over = root / ".venv-airflow" / "left-over"
    left_over.touch()
    (root / LOCK_FILE).write_text("apache-airflow-core==4\n")
    assert len(_set_up(root)) == 3
    assert not left_over.exists()


@pytest.mark.parametrize("command", [0, 1, 2])
def test_a_set_up_that_failed_at_any_command_starts_over(root: Path, command: int) -> None:
    assert len(_set_up(root, fails_in=command)) == command + 1
    assert len(_set_up(root)) == 3
    assert _set_up(root) == []


def test_the_lock_pins_airflow_3_and_every_other_package_exactly_and_no_tfx() -> None:
    lines = (_ROOT / LOCK_FILE).read_text().splitlines()
    pins = [line.split()[0].split("==") for line in lines if line[0] not in "# "]
    assert all(len(pin) == 2 for pin in pins)
    versions = dict(pins)
    assert versions["apache-airflow-core"].startswith("3.")
    assert not versions.keys() & {"tfx", "tensorflow", "apache-beam"}
