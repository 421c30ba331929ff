"""Kills retrainings at random moments, lets the next one complete, and looks at what is served.

    python -m tests.pipeline.retraining.kill_retrain --kills 50 --output /tmp/killed

The real pipeline on tiny images. Every third model is refused by its threshold. All the time the
serving folder is watched: a version must be there whole from the first moment, stay as it is, and
be a model that both the Evaluator and the ServingGate blessed; labels must name versions that are
there. The last of several calls with the same folder goes on where the one before it ended.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_metadata import MetadataStore

from pipeline.runs.history import RunHistory
from pipeline.runs.metadata_store import MetadataLocation, locate
from pipeline.runs.workspace import Workspace
from pipeline.settings import MetadataSettings
from serving.deploy.models_config import read_entry
from tests.pipeline.retraining.start_together import CHECKOUT, children, command, land

_KILLS_A_SPAN = 5
_REFUSED = ["--set", "evaluate={thresholds: {auc: {min: 0.9999}}}"]


@dataclass
class Outcome:
    """What became of all kills together."""

    kills: int = 0
    after_the_end: int = 0
    interrupted: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    versions: int = 0


class Watcher(threading.Thread):
    """Looks at the serving folder without a pause."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(daemon=True)
        self._workspace = workspace
        self._ended = threading.Event()
        self.digests: dict[int, str] = {}
        self.problems: list[str] = []
        self.looks = 0

    def run(self) -> None:
        while not self._ended.wait(0.002):
            self.look()

    def look(self) -> None:
        self.looks += 1
        base = self._workspace.serving_model
        numbers = {int(path.name) for path in base.glob("[0-9]*")} if base.is_dir() else set()
        for number in sorted(numbers - set(self.digests)):
            self.digests[number] = digest(base / str(number))
        file = self._workspace.models_config
        if file.exists():
            entry = read_entry(file.read_text(), self._workspace.model_name)
            named = {*entry.labels.values(), *entry.loaded} if entry else set()
            if missing := named - {int(path.name) for path in base.glob("[0-9]*")}:
                self.problems.append(f"{file} names {missing}, which are not there")

    def end(self) -> None:
        self._ended.set()
        self.join()


def digest(folder: Path) -> str:
    """Of all names and contents, those of empty folders too."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_file():
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def blessed_digests(store: MetadataStore) -> set[str]:
    """Of all exports that both the Evaluator and the ServingGate blessed."""
    blessings: Counter[int] = Counter()
    for kind in ("ModelBlessing", "InfraBlessing"):
        for artifact in store.get_artifacts_by_type(kind):
            if artifact.custom_properties["blessed"].int_value == 1:
                # An artifact that was served from the cache is the output of several executions.
                event = next(
                    event
                    for event in store.get_events_by_artifact_ids([artifact.id])
                    if event.type == event.OUTPUT
                )
                blessings.update(
                    {
                        model.artifact_id
                        for model in store.get_events_by_execution_ids([event.execution_id])
                        if model.type == model.INPUT
                        and any(step.key == "model" for step in model.path.steps)
                    }
                )
    both = [model for model, count in blessings.items() if count >= 2]
    models = store.get_artifacts_by_id(both)
    return {digest(Path(model.uri) / "Format-Serving") for model in models}


def complete_once(output: Path) -> float:
    """Lands a span and retrains on it undisturbed; returns how many seconds that took."""
    land(output)
    started = time.monotonic()
    subprocess.run(command(output), cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def kill(output: Path, outcome: Outcome, *, after: Sequence[float], moments: random.Random) -> None:
    """Lands a span, kills its retraining after so many seconds each time, and completes it."""
    workspace = Workspace(output)
    metadata = locate(MetadataSettings(), workspace)
    watcher = Watcher(workspace)
    watcher.look()
    watcher.start()
    number = land(output)
    argv = _REFUSED if number % 3 == 0 else []
    for seconds in after:
        _kill_once(command(output, *argv), seconds, moments)
        history = RunHistory(metadata.connection())
        reached = [run for run in history.runs() if run.span == number]
        nodes = history.nodes(reached[0].run_id) if reached else []
        if reached and reached[0].is_whole:
            outcome.after_the_end += 1
            break
        outcome.kills += 1
        outcome.interrupted[f"after {nodes[-1].node_id if nodes else 'nothing'}"] += 1
    done = subprocess.run(
        command(output, *argv), cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    outcome.completed[said["status"]] += 1
    blessed = number % 3 != 0
    expected = ("done", "nothing_new") if blessed else ("not_blessed", "nothing_new")
    assert said["status"] in expected, done.stderr
    watcher.end()
    outcome.looks += watcher.looks
    check(workspace, metadata, watcher)
    newest = next(run for run in RunHistory(metadata.connection()).runs() if run.span == number)
    assert newest.is_whole
    assert (newest.pushed_version is not None) == blessed
    assert newest.promoted == blessed
    assert metadata.lease().holder() is None


def _kill_once(argv: list[str], seconds: float, moments: random.Random) -> None:
    process = subprocess.Popen(
        argv, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    guards = children(process.pid)
    workers = [*guards, *(worker for guard in guards for worker in children(guard))]
    victim = moments.choice([process.pid, *workers])
    if process.poll() is None:
        os.kill(victim, signal.SIGKILL)
    if victim in workers:
        # Before its command can begin the next try.
        process.kill()
    process.wait()


def check(workspace: Workspace, metadata: MetadataLocation, watcher: Watcher) -> None:
    """Raises AssertionError where a version was or is not what it has to be."""
    assert not watcher.problems, watcher.problems
    good = blessed_digests(MetadataStore(metadata.connection()))
    for number, first in watcher.digests.items():
        now = digest(workspace.serving_model / str(number))
        assert first == now, f"version {number} was seen before it was whole"
        assert now in good, f"version {number} is not blessed"
    left = [path.name for path in workspace.serving_model.glob(".tmp-*")]
    assert not left, left


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    undisturbed = output / "seconds"
    if not undisturbed.exists():
        undisturbed.write_text(str(complete_once(output)))
    outcome = Outcome()
    moments = random.Random(arguments.seed)
    longest = float(undisturbed.read_text())
    while outcome.kills < arguments.kills:
        after = [moments.uniform(0, longest) for _ in range(_KILLS_A_SPAN)]
        kill(output, outcome, after=after, moments=moments)
        sys.stderr.write(f"{vars(outcome)}\n")
    outcome.versions = len(list(Workspace(output).serving_model.glob("[0-9]*")))
    sys.stdout.write(json.dumps(vars(outcome)) + "\n")


if __name__ == "__main__":
    main()
