"""Stands for a training process: says that it is done, and leaves a child that holds its stdout."""

import subprocess
import sys

from pipeline.retraining.job import Job
from pipeline.retraining.outcome import Outcome
from pipeline.runs.status import Status

if __name__ == "__main__":
    job = Job.model_validate_json(sys.stdin.readline())
    sys.stdout.write(Outcome(Status.DONE, run=job.run).to_json() + "\n")
    sys.stdout.flush()
    subprocess.Popen(["sleep", "600"])
