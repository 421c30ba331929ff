"""Known vulnerabilities of the pins: what is found, decided and not known is said as that."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import audit

TODAY = datetime.date(2026, 6, 1)
SOUND = {"name": "fish", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "cat", "skip_reason": "Dependency not found on PyPI"}


def bird(*ids: str) -> dict[str, Any]:
    vulns = [{"id": name, "fix_versions": ["2.0"], "aliases": []} for name in ids]
    return {"name": "bird", "version": "1.0", "vulns": vulns}


def run(answer: str, decisions: str = "", problem: str = "") -> tuple[int, list[str]]:
    asked: list[str] = []

    def ask(lock_file: Path, accepted: Sequence[str]) -> str:
        asked.extend(accepted)
        return answer

    lock = [Path("a.lock")]
    return audit.audit(lock, decisions, today=TODAY, ask=ask, problem=problem), asked


def answer(*pins: dict[str, Any]) -> str:
    return json.dumps({"dependencies": pins, "fixes": []})


def test_what_is_found_is_named_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = run(answer(SOUND, bird("GHSA-1")))
    told = capsys.readouterr().err
    assert code == audit.FOUND
    assert "a.lock: bird 1.0: GHSA-1, fixed in 2.0" in told
    assert "--upgrade-package" in told


def test_nothing_found_is_said_with_how_much_was_checked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(answer(SOUND, bird()))[0] == audit.CLEAN
    assert "2 packages checked" in capsys.readouterr().err


def test_a_decision_counts_until_its_day() -> None:
    decisions = "# ID day why\n\nGHSA-1 2026-06-01 not called\nGHSA-2 2026-05-31 not called\n"
    assert run(answer(SOUND), decisions)[1] == ["GHSA-1"]


@pytest.mark.parametrize(
    ("pins", "problem", "said"),
    [
        (answer(SOUND), "name or service not known", "NOT CHECKED: name or service not known"),
        (answer(SOUND, UNKNOWN), "", "NOT CHECKED: cat"),
        ("", "", "NOT CHECKED: pip-audit gave no answer"),
    ],
    ids=["no service", "a package it does not know", "no answer"],
)
def test_what_was_not_checked_does_not_pass_for_sound(
    pins: str, problem: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pins, problem=problem)[0] == audit.UNCHECKED
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('{"vulnerabilities": [{"id": "PYSEC-1"}]}', ""),
        ('{"vulnerabilities": []}', "names no advisory"),
        ("<html>", "Expecting value"),
        (None, "No such file"),
    ],
)
def test_a_mirror_without_advisories_is_noticed(
    page: str | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "json"
    if page is not None:
        file.write_text(page)
    told = audit.no_advisories(file.as_uri())
    assert problem in told
    assert bool(told) is bool(problem)


def test_every_decision_has_an_id_a_day_and_a_reason() -> None:
    for line in (audit.ROOT / "audit.txt").read_text().splitlines():
        if not line.startswith("#"):
            _, day, reason = line.split(maxsplit=2)
            assert datetime.date.fromisoformat(day)
            assert len(reason) > 10
    assert all((audit.ROOT / name).is_file() for name in audit.LOCK_FILES)
