"""kill -9 at any moment loses nothing that was acknowledged."""

from pathlib import Path

from tests.serving.gallery.kill_enrolment import kill_often


def test_every_acknowledged_enrolment_survives_kill_9_in_sqlite(tmp_path: Path) -> None:
    outcome = kill_often(str(tmp_path / "gallery.db"), 5)
    assert outcome.kills == 5
    assert outcome.acknowledged > 5
    assert outcome.killed_within_an_operation > 0


def test_every_acknowledged_enrolment_survives_kill_9_in_postgresql(empty_postgres: str) -> None:
    outcome = kill_often(empty_postgres, 3)
    assert outcome.kills == 3
    assert outcome.acknowledged > 3
