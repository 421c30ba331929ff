"""Breaks retrainings in ways that disks and people do, and counts what is lost.

    python -m benchmarks.faults deleted shards metadata clock disk --output /tmp/faults

The real pipeline on tiny generated images. A fault that loses or serves something wrong ends it
with an AssertionError. The full disk mounts a tmpfs of its own, and the clock needs `pip install
libfaketime`. Kills are in `tests.pipeline.retraining.kill_retrain`.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ml_metadata import MetadataStore
from ml_metadata.errors import NotFoundError
from ml_metadata.proto.metadata_store_pb2 import Artifact, ConnectionConfig, Event, Execution

from data_ingest.spans.store import SpanStore
from pipeline.runs.history import RunHistory
from pipeline.runs.metadata_store import locate
from pipeline.runs.workspace import Workspace
from pipeline.settings import MetadataSettings
from serving.deploy.models_config import STABLE, read_entry
from tests.pipeline.retraining.kill_retrain import digest
from tests.pipeline.retraining.start_together import CHECKOUT, TINY, land
from tests.pipeline.tiny import as_options

_SETTINGS: Final = TINY | {
    "push": "{server_poll_seconds: 0}",
    "retrain": "{window: 2, lease_seconds: 60, attempts: 1}",
}
_LEFT_BYTES: Final = 400 * 1024
"""Of a full disk: enough for ML Metadata, too little for a model."""
_LEFTOVERS: Final = ("partial-*", ".tmp*", "*.tmp", ".*.????????")
"""Names of what is being written, as `data_ingest.durable` and TFX give them."""


class Folder:
    """An output folder whose spans are trained on one after the other."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self._spans: dict[Path, str] = {}

    def land(self) -> int:
        """Lands a span of new glyphs, and returns its number."""
        number = land(self.workspace.root)
        for folder in self.workspace.spans.glob("span-*"):
            self._spans.setdefault(folder, digest(folder))
        return number

    def command(self, *argv: str) -> list[str]:
        """The command line of `oneshot retrain`, or of another command if `argv` names one."""
        named = argv if argv and not argv[0].startswith("-") else ("retrain", "--if-new", *argv)
        where = ["--json", "--output", str(self.workspace.root), *as_options(_SETTINGS)]
        return [sys.executable, "-m", "pipeline.cli.main", *named, *where]

    def oneshot(self, *argv: str, **environment: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, what `--json` said, and stderr."""
        done = subprocess.run(
            self.command(*argv),
            cwd=CHECKOUT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        said = json.loads(done.stdout) if done.stdout.strip() else {}
        return done.returncode, said, done.stderr

    @contextmanager
    def started(self, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        """`oneshot retrain` while it runs."""
        with subprocess.Popen(
            self.command(),
            cwd=CHECKOUT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            yield process

    def expect(self, code: int, *statuses: str) -> dict[str, Any]:
        """What a retraining said, which has to end so."""
        ended, said, errors = self.oneshot()
        assert ended == code, errors
        assert said["status"] in statuses, said
        return said

    def connection(self) -> ConnectionConfig:
        """To ML Metadata."""
        return locate(MetadataSettings(), self.workspace, {}).connection()

    def versions(self) -> list[int]:
        return sorted(int(path.name) for path in self.workspace.serving_model.glob("[0-9]*"))

    def check(self, *, history: bool = True) -> None:
        """Raises AssertionError where something is lost, half-written or wrong."""
        import tensorflow as tf

        store, versions = MetadataStore(self.connection()), self.versions()
        runs = [run for run in RunHistory(self.connection()).runs() if run.is_whole and run.span]
        spans = [span.number for span in SpanStore(self.workspace.spans).spans()]
        if history:
            trained = sorted(run.span or 0 for run in runs)
            assert trained == sorted({*trained, spans[-1]}), "a span is trained on once"
            assert sorted(run.pushed_version or 0 for run in runs) == versions
        text = self.workspace.models_config.read_text()
        entry = read_entry(text, self.workspace.model_name)
        assert entry is not None
        assert entry.labels == {STABLE: versions[-1]}, entry
        for version in versions:
            tf.saved_model.load(str(self.workspace.serving_model / str(version)))
        ended = (Execution.COMPLETE, Execution.CACHED)
        by_id = {execution.id: execution for execution in store.get_executions()}
        for artifact in store.get_artifacts():
            if artifact.state == Artifact.LIVE:
                events = store.get_events_by_artifact_ids([artifact.id])
                makers = [by_id[e.execution_id] for e in events if e.type == Event.OUTPUT]
                assert any(maker.last_known_state in ended for maker in makers), artifact
        left = [path for name in _LEFTOVERS for path in self.workspace.root.rglob(name)]
        assert not left, left
        for folder, landed in self._spans.items():
            assert digest(folder) == landed, f"{folder} has changed"


def deleted(folder: Folder, times: int, _chance: random.Random) -> Counter[str]:
    """Artifacts go: of a finished step, of the model to beat, and meanwhile of all steps."""
    artifacts, tried = folder.workspace.artifacts, Counter[str]()
    for _ in range(times):
        folder.land()
        folder.oneshot("--stage", "data")
        shutil.rmtree(_newest(artifacts / "PairExampleGen" / "examples"))
        shutil.rmtree(artifacts / "Trainer" / "model")
        with folder.started() as process:
            _wait_for(folder, "Trainer", process)
            assert _newest(artifacts / "PairExampleGen" / "examples").is_dir(), "made again"
            tried["of a finished step and a served model, before a run"] += 1
            shutil.rmtree(artifacts)
            _, errors = process.communicate()
        tried[f"all, in the training: exit code {process.returncode}"] += 1
        _tell(errors[-400:])
        folder.expect(0, "done", "nothing_new")
        folder.check()
    return tried


def shards(folder: Folder, times: int, chance: random.Random) -> Counter[str]:
    """One bit of a TFRecord flips, or its end is missing; what the message advises is done."""
    tried = Counter[str]()
    for _ in range(times):
        folder.land()
        for split, damage in (("train", _flip), ("one_shot", _cut)):
            folder.oneshot("--stage", "data")
            examples = _newest(folder.workspace.artifacts / "PairExampleGen" / "examples")
            shard = min((examples / f"Split-{split}").iterdir())
            shard.write_bytes(damage(shard.read_bytes(), chance))
            said = folder.expect(2, "refused")
            assert str(shard) in said["error"], said
            assert f"Delete {examples}" in said["error"], said
            shutil.rmtree(examples)
            tried[f"{damage.__name__[1:]} in {split}"] += 1
        folder.expect(0, "done")
        folder.check()
    return tried


def metadata(folder: Folder, times: int, chance: random.Random) -> Counter[str]:
    """metadata.db is empty, is cut in half, or has noise in its middle; `doctor --repair` helps."""
    tried, file = Counter[str](), folder.workspace.metadata_db
    for number in range(times):
        damage = (_noise, _cut, _empty)[number % 3]
        versions = folder.versions()
        file.write_bytes(damage(file.read_bytes(), chance))
        for argv in (("runs",), ("promote",), ("gc",), ()):
            code, _, errors = folder.oneshot(*argv)
            assert code == 2, errors
            assert "doctor --repair" in errors, errors
        code, repaired, errors = folder.oneshot("doctor", "--repair")
        assert code == 0, errors
        assert repaired["versions"] == versions, repaired
        folder.land()
        folder.expect(0, "done")
        folder.check(history=False)
        tried[f"{damage.__name__[1:]}: {repaired['runs']} runs of {len(versions)} spans kept"] += 1
    return tried


def disk(folder: Folder, times: int, _chance: random.Random) -> Counter[str]:
    """The disk is full before the training and before the push, and then has room again."""
    root, tried = folder.workspace.root, Counter[str]()
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "none", root], check=True)
    for _ in range(times):
        folder.land()
        for done, rest in (("data", "training"), ("evaluate", "push")):
            folder.oneshot("--stage", done)
            versions, ballast = folder.versions(), root / "ballast"
            with ballast.open("wb") as stream:
                free = shutil.disk_usage(root).free - _LEFT_BYTES
                os.posix_fallocate(stream.fileno(), 0, free)
            code, said, errors = folder.oneshot()
            _tell(f"{rest}: {code} {errors[-300:]}")
            assert (code, said["status"]) == (1, "failed"), said
            assert "full" in said["error"] or "no space" in said["error"], said
            assert folder.versions() == versions
            ballast.unlink()
            tried[f"before the {rest}"] += 1
        folder.expect(0, "done")
        folder.check()
    return tried


def clock(folder: Folder, times: int, chance: random.Random) -> Counter[str]:
    """The wall clock jumps in the middle of a retraining, forwards or back."""
    found = find_spec("libfaketime")
    if found is None or found.origin is None:
        raise SystemExit("jumps of the clock need `pip install libfaketime`")
    (library,) = Path(found.origin).parent.rglob("libfaketime.so.1")
    tried, offset = Counter[str](), folder.workspace.root / "clock"
    faked = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    for number in range(times):
        before, after = (("+0", "+2h"), ("+2h", "+0"), ("+0", "-1d"), ("-1d", "+0"))[number % 4]
        folder.land()
        offset.write_text(before)
        with folder.started(**faked) as process:
            _wait_for(folder, chance.choice(("PairExampleGen", "Trainer", "Evaluator")), process)
            offset.write_text(after)
            out, errors = process.communicate()
        said = json.loads(out)
        tried[f"{before} to {after}: {said['status']}"] += 1
        assert said["status"] == "done", errors
        folder.check()
    return tried


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _newest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: int(path.name))


def _empty(_content: bytes, _chance: random.Random) -> bytes:
    return b""


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: int(len(content) * chance.uniform(0.2, 0.9))]


def _noise(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content) // 4, len(content) // 2)
    return content[:place] + chance.randbytes(8192) + content[place + 8192 :]


def _flip(content: bytes, chance: random.Random) -> bytes:
    flipped = bytearray(content)
    flipped[chance.randrange(len(content) // 4, len(content) // 2)] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def _wait_for(folder: Folder, node: str, process: "subprocess.Popen[str]") -> None:
    store = MetadataStore(folder.connection())
    while process.poll() is None and not any(_is_running(store, node)):
        time.sleep(0.5)


def _is_running(store: MetadataStore, node: str) -> Iterator[bool]:
    for execution in store.get_executions():
        if execution.last_known_state == Execution.RUNNING:
            with suppress(NotFoundError):  # has no context yet
                contexts = store.get_contexts_by_execution(execution.id)
                yield any(context.name.endswith(f".{node}") for context in contexts)


FAULTS: Final = {
    "deleted": deleted,
    "shards": shards,
    "metadata": metadata,
    "clock": clock,
    "disk": disk,
}


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("faults", nargs="+", choices=FAULTS)
    parser.add_argument("--times", type=int, default=1, help="of each (%(default)s)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if "disk" in arguments.faults and os.environ.get("ONESHOT_FAULTS") != "own mounts":
        os.environ["ONESHOT_FAULTS"] = "own mounts"
        os.execvp("unshare", ["unshare", "-rm", *sys.orig_argv])
    for name in arguments.faults:
        folder = Folder(arguments.output.absolute() / ("disk" if name == "disk" else "output"))
        if name != "disk" and not folder.versions():
            folder.land()
            folder.expect(0, "done")
        counts = FAULTS[name](folder, arguments.times, random.Random(arguments.seed))
        for what, count in counts.most_common():
            _tell(f"{name:<10} {what:<45} {count:>3}")


if __name__ == "__main__":
    main()
