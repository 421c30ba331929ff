"""Beam's workers elsewhere: checks before a run, what failures of theirs mean, worker pools."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Final

import grpc
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.portability.api import beam_fn_api_pb2 as fn_api
from apache_beam.portability.api import beam_fn_api_pb2_grpc as fn_api_grpc
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

from data_ingest.errors import InputError
from pipeline.settings import BeamSettings

_log = logging.getLogger(__name__)
_ANSWER_SECONDS: Final = 20.0
_END_SECONDS: Final = 10.0
_JOB_FAILED: Final = "failed in state"
_WORKER: Final = """
import sys
from apache_beam.runners.worker.sdk_worker import SdkHarness
SdkHarness(sys.argv[1], worker_id=sys.argv[2]).run()
"""


def check_dataflow(settings: BeamSettings) -> None:
    """Has Beam validate the options of a Dataflow job, without asking Google Cloud.

    Raises:
      InputError: with what Beam finds wrong.
    """
    # Beam looks for a bucket of its own where the one that is given has no valid name.
    options = PipelineOptions([*settings.pipeline_args(), "--dry_run=true"])
    validator = PipelineOptionsValidator(options, DataflowRunner())
    location = validator.validate_gcs_path(options.view_as(GoogleCloudOptions), "temp_location")
    errors = location or validator.validate()
    if errors:
        raise InputError("beam: " + "; ".join(" ".join(error.split()) for error in errors))


def check_job_server(settings: BeamSettings) -> None:
    """Waits for the job server to answer.

    Raises:
      InputError: it does not.
    """
    with grpc.insecure_channel(str(settings.job_endpoint)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise InputError(
                f"beam.job_endpoint: no job server answers at {settings.job_endpoint} "
                f"within {_ANSWER_SECONDS:.0f} s"
            ) from None


def told_of_job(causes: Iterable[BaseException], settings: BeamSettings) -> str | None:
    """What a failure on the job server means, in a sentence; None: it was another failure.

    Args:
      causes: an error and those under it.
      settings: of the portable runner.
    """
    for cause in causes:
        if isinstance(cause, grpc.RpcError):
            what = f"was lost ({getattr(cause, 'details', str)() or 'no reason given'})"
        elif isinstance(cause, RuntimeError) and _JOB_FAILED in str(cause):
            what = f"gave up: {str(cause).strip().splitlines()[-1]}"
        else:
            continue
        return (
            f"the job server {settings.job_endpoint} {what}. Look at its log and at those of the "
            f"worker pools ({settings.worker_pool}); the same command continues from the last "
            "finished step"
        )
    return None


@contextmanager
def worker_pool(host: str, port: int) -> Iterator[int]:
    """Starts workers, in processes of this environment, for the job servers that ask for them.

    Whoever reaches the port can have any code run.

    Args:
      host: address to listen on.
      port: its port; 0 chooses one.

    Yields:
      The port.

    Raises:
      InputError: the port is taken, or the address is not this machine's.
    """
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    pool = _Pool()
    fn_api_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise InputError(f"--host, --port: cannot listen on {host}:{port}") from None
    server.start()
    try:
        yield bound
    finally:
        server.stop(None)
        pool.end()


class _Pool(fn_api_grpc.BeamFnExternalWorkerPoolServicer):
    """Beam's own pool starts whatever `python` is on the PATH, and never reads its output."""

    def __init__(self) -> None:
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def StartWorker(  # noqa: N802
        self, request: fn_api.StartWorkerRequest, context: grpc.ServicerContext
    ) -> fn_api.StartWorkerResponse:
        """Starts the process of one worker."""
        del context
        arguments = [request.control_endpoint.url, request.worker_id]
        try:
            worker = subprocess.Popen(
                [sys.executable, "-c", _WORKER, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )
        except OSError as error:
            return fn_api.StartWorkerResponse(error=str(error))
        self._workers[request.worker_id] = worker
        _log.info("Worker %s of %s: process %d", request.worker_id, arguments[0], worker.pid)
        return fn_api.StartWorkerResponse()

    def StopWorker(  # noqa: N802
        self, request: fn_api.StopWorkerRequest, context: grpc.ServicerContext
    ) -> fn_api.StopWorkerResponse:
        """Ends it."""
        del context
        worker = self._workers.pop(request.worker_id, None)
        if worker is not None:
            _end([worker])
        return fn_api.StopWorkerResponse()

    def end(self) -> None:
        """Ends all of them."""
        _end([*self._workers.values()])


def _end(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + _END_SECONDS
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
