"""`oneshot retrain` with a stub for the pipeline: all the rest is real.

python -m tests.pipeline.retraining.stub_retrain [--on-host NAME] retrain --if-new --output DIR ...
"""

import functools
import socket
import sys

import pipeline.retraining.retrain
from pipeline.cli.main import main
from pipeline.retraining.job import Child

if __name__ == "__main__":
    argv = sys.argv[1:]
    if argv[0] == "--on-host":
        name = argv[1]
        socket.gethostname = lambda: name
        argv = argv[2:]
    if argv[0] == "--real":
        sys.exit(main(argv[1:]))
    pipeline.retraining.retrain.retrain = functools.partial(
        pipeline.retraining.retrain.retrain, child=Child("tests.pipeline.retraining.stub_worker")
    )
    sys.exit(main(argv))
