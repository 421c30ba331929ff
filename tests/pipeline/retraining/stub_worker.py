"""Stands for the process that runs the pipeline: does what `<output>/script.json` says.

The file holds a list of what to do in the first, second, ... try, the last for all further ones:
{"seconds": 0.5, "stiff": 0.5, "fail": "why", "refuse": "why", "interrupt": "why", "die": true,
"blessed": false, "child": true, "deaf": true}, all optional; "stiff" are seconds in which no other
thread of the process gets on, as while TensorFlow is loaded. `<output>/events` gets a line when a
try begins and when it ends, or is stopped in order; in between another one must not be at work.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from components.pusher.versions import push_version
from pipeline.retraining.job import Job
from pipeline.retraining.outcome import Outcome
from pipeline.retraining.worker import main
from pipeline.runs.history import RunHistory
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.status import Status
from pipeline.runs.workspace import Workspace


def work(job: Job) -> Outcome:
    script_file = job.output / "script.json"
    script = json.loads(script_file.read_text()) if script_file.exists() else [{}]
    events = job.output / "events"
    tries = sum(line.startswith("begin") for line in _lines(events))
    step = script[min(tries, len(script) - 1)]
    metadata = parse_url(job.metadata_url)
    history = RunHistory(metadata.connection())
    history.record(job.run)
    if step.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _note(events, "begin", job)
    if step.get("child"):
        child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
        (job.output / "child").write_text(str(child.pid))
    try:
        time.sleep(step.get("seconds", 0))
    except SystemExit:
        _note(events, "stopped", job)
        raise
    ctypes.PyDLL(None).usleep(int(1e6 * step.get("stiff", 0)))
    metadata.lease().check(job.token)
    if step.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in step:
        return Outcome(Status.FAILED, error=step["fail"])
    if "refuse" in step:
        return Outcome(Status.REFUSED, error=step["refuse"])
    if "interrupt" in step:
        return Outcome(Status.INTERRUPTED, error=step["interrupt"])
    blessed = step.get("blessed", True)
    version = None
    if job.run.stage == "push" and blessed:
        version = int(_push(job).name)
    run = replace(job.run, state=Status.DONE, blessed=blessed, pushed_version=version, seconds=0.0)
    history.record(run)
    _note(events, "end", job)
    return Outcome(Status.DONE, run=run)


def _push(job: Job) -> Path:
    model = job.output / "stub_model"
    model.mkdir(exist_ok=True)
    (model / "saved_model.pb").write_bytes(b"stub")
    return push_version(model, Workspace(job.output).serving_model)


def _note(events: Path, what: str, job: Job) -> None:
    with events.open("a") as stream:
        stream.write(f"{what} {job.token} {os.getpid()}\n")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main(work))
