"""kill -9 at any moment loses nothing that was acknowledged."""

import tempfile
from pathlib import Path

from tests.serving.gallery.kill_enrolment import Server, kill_often


def test_every_acknowledged_enrolment_survives_kill_9_in_sqlite(tmp_path: Path) -> None:
    outcome = kill_often(str(tmp_path / "gallery.db"), 5, longest=1.0)
    assert outcome.kills == 5
    assert outcome.acknowledged > 5
    assert outcome.killed_within_an_operation > 0


def test_every_acknowledged_enrolment_survives_kill_9_in_postgresql() -> None:
    """Of the process that enrols and of the server."""
    # Not in pytest's folders: see `postgres_server`.
    with tempfile.TemporaryDirectory(prefix="gallery-") as folder:
        Path(folder).chmod(0o755)
        server = Server(Path(folder) / "pg")
        outcome = kill_often(server.url, 4, longest=2.0, server=server)
        server.stop()
    assert (outcome.kills, outcome.server_crashes) == (4, 2)
    assert outcome.acknowledged > 4
