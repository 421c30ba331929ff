"""Stands for a training process: says that it is done, and leaves a child that holds its stdout."""

import subprocess
import sys

from pipeline.retraining.job import Job, Result

if __name__ == "__main__":
    job = Job.from_json(sys.stdin.readline())
    sys.stdout.write(Result("done", run=job.run).to_json() + "\n")
    sys.stdout.flush()
    subprocess.Popen(["sleep", "600"])
