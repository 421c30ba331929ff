"""No secret is in what commands say, write and log, nor in the list of processes."""

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.pipeline.retraining.start_together import CHECKOUT, TINY, command, land
from tests.pipeline.retraining.webhook import hook
from tests.pipeline.tiny import as_options

pytestmark = pytest.mark.timeout(900)

BY_FILE = ("metadata", "webhook")
BY_ENVIRONMENT = (
    *("ONESHOT_METADATA_URL", "ONESHOT_WEBHOOK_URL", "ONESHOT_SMTP_PASSWORD", "ONESHOT_TOKEN"),
    *("PGPASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
)


class Canaries:
    """Secrets that occur nowhere else, and who looks for them."""

    def __init__(self) -> None:
        self.by_name = {name: f"canary{uuid.uuid4().hex}" for name in (*BY_FILE, *BY_ENVIRONMENT)}
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> str:
        return self.by_name[name]

    def look(self, where: str, content: str | bytes) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        self.seen |= {
            f"{name} in {where}" for name, it in self.by_name.items() if it.encode() in data
        }


class Processes(threading.Thread):
    """Looks all the time at how the processes of this machine were started."""

    def __init__(self, canaries: Canaries) -> None:
        super().__init__(daemon=True)
        self._canaries = canaries
        self._ended = threading.Event()
        self.commands: set[bytes] = set()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    self.commands.add((folder / "cmdline").read_bytes())

    def end(self) -> None:
        self._ended.set()
        self.join()
        for line in self.commands:
            self._canaries.look(f"the process {line[:200]!r}", line)


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


@pytest.fixture
def processes(canaries: Canaries) -> Iterator[Processes]:
    thread = Processes(canaries)
    thread.start()
    yield thread
    thread.end()


def test_secrets_stay_where_they_were_given(
    tmp_path: Path, empty_database: str, canaries: Canaries, processes: Processes
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    land(output)
    # In the folder of the caller, who keeps it: what is written from it is looked through.
    config = tmp_path / "config" / "pipeline_config.yaml"
    config.parent.mkdir()
    config.write_text(
        f"metadata: {{url: 'postgresql://ann:{canaries['metadata']}@db/oneshot'}}\n"
        f"notify: {{webhook_url: 'http://127.0.0.1:1/{canaries['webhook']}', smtp_host: 127.0.0.1,"
        " smtp_port: 1, smtp_user: ann, mail_from: a@example.org, mail_to: [b@example.org]}\n"
    )
    user = urlsplit(empty_database).username
    # The server trusts its socket, so that any password is right.
    database = urlsplit(empty_database)._replace(
        netloc=f"{user}:{canaries['ONESHOT_METADATA_URL']}@"
    )
    environ = {**os.environ, **{name: canaries[name] for name in BY_ENVIRONMENT}}
    environ["ONESHOT_METADATA_URL"] = database.geturl()

    def run(*argv: str, expected: int = 0, **changed: str) -> str:
        line = [sys.executable, "-m", "pipeline.cli.main", *argv, "--config", str(config)]
        done = subprocess.run(
            line, cwd=CHECKOUT, env=environ | changed, capture_output=True, text=True, check=False
        )
        assert done.returncode == expected, done.stderr
        canaries.look(f"the output of {argv[0]}", done.stdout + done.stderr)
        return done.stdout + done.stderr

    with hook() as webhook:
        environ["ONESHOT_WEBHOOK_URL"] = f"{webhook.url}/{canaries['ONESHOT_WEBHOOK_URL']}"
        line = command(output, "-v")
        run(*line[line.index("retrain") :])
        assert [body["event"] for body in webhook.bodies] == ["blessed"]
    sets = as_options(TINY)
    images = ["--data", str(output / "incoming.zip")]
    cluster = ["--volume", f"oneshot:{tmp_path}", "--image=x/y:1", "--schedule=0 3 * * *"]
    run(
        "compile",
        "--out",
        str(tmp_path / "k.yaml"),
        *cluster,
        *images,
        *sets,
        "--output",
        str(output),
    )
    run("doctor", *images, "--output", str(output))
    assert "span 1" in run("runs", "--output", str(output))
    assert "No notice by the webhook" in run("notify", "failed", "title", expected=1)
    nowhere = f"postgresql://ann:{canaries['ONESHOT_METADATA_URL']}@127.0.0.1:1/oneshot"
    run("runs", "--output", str(tmp_path / "other"), expected=1, ONESHOT_METADATA_URL=nowhere)

    written = [file for file in tmp_path.rglob("*") if file.is_file() and file != config]
    assert {"summary.json", "saved_model.pb", "k.yaml", "k.schedule.json"} <= {
        f.name for f in written
    }
    for file in written:
        canaries.look(str(file), file.read_bytes())
    with psycopg.connect(empty_database) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in tables.fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                canaries.look(table, str(row))
    processes.end()
    assert any(b"pipeline.retraining.worker" in line for line in processes.commands)
    assert not canaries.seen
