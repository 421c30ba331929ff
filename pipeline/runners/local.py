"""Runs the graph on this machine with TFX's LocalDagRunner."""

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from ml_metadata import MetadataStore
from pydantic import ValidationError
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.orchestration.portable.data_types import ExecutionInfo

from components.evaluator.evidence import evidence, tell_of_evidence
from components.trainer.pretrained import is_path, model_file
from data_ingest.errors import InputError, ReadError
from data_ingest.progress import INSTEAD_OF_VIEW, step
from data_ingest.records.read import expected_protocols
from data_ingest.sources.dataset import Dataset
from pipeline.config import PipelineConfig
from pipeline.dag import create_pipeline
from pipeline.runners.beam import check_job_server, told_of_job
from pipeline.runs.history import SQLITE_FULL, RunHistory, RunRecord
from pipeline.runs.live import CACHED, NOW
from pipeline.runs.metadata_store import MetadataLocation, remember
from pipeline.runs.repair import restore_models
from pipeline.runs.status import Status
from pipeline.runs.summarize import summarize
from pipeline.runs.workspace import Workspace
from pipeline.settings import JUDGED_STAGES, BeamSettings

MAKES_A_MODEL: Final = {"dataset", "pairs", "train", "evaluate", "gate"}
"""Sections of the configuration that a report shows: none of them has a secret."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


class RunFailedError(RuntimeError):
    """A node failed for a reason that is not the user's input."""


def run_pipeline(
    *,
    config: PipelineConfig,
    dataset: Dataset,
    workspace: Workspace,
    metadata: MetadataLocation,
    run: RunRecord,
    check_lease: Callable[[], object],
) -> RunRecord:
    """Runs every node that is not cached, as far as `run.stage` says.

    If that is as far as a verdict it writes `runs/<run_id>/summary.json`.

    Args:
      config: the whole configuration.
      dataset: where the images lie.
      workspace: where everything goes.
      metadata: ML Metadata's store, whose lease the caller holds.
      run: what the history is to hold of the run.
      check_lease: called before every node; raises where the lease is lost.

    Returns:
      what the history holds of the run now.

    Raises:
      InputError: a node found bad input; the message is for the user.
      RunFailedError: a node failed otherwise; what had finished is kept and not repeated.
    """
    connection = metadata.connection()
    history = RunHistory(connection)
    remember(metadata, workspace)
    for node in history.close_interrupted(workspace.artifacts):
        _log.info("%s of an earlier run was cut off; its partial output is removed", node)
    restore_models(MetadataStore(connection), workspace)
    _refuse_to_replace_real_data(history, dataset, workspace)
    require_trainable(config, dataset)
    _check_beam(config.beam)
    protocols = expected_protocols(
        dataset.containers(), config.pairs, writer_pattern=config.dataset.writer_pattern
    )
    asked = evidence(config.evaluate, protocols)
    if run.stage in JUDGED_STAGES:
        tell_of_evidence(asked, protocols)
    ir = compiler.Compiler().compile(
        create_pipeline(
            config=config,
            dataset=dataset,
            protocols=protocols,
            pipeline_root=str(workspace.artifacts),
            serving_model_dir=str(workspace.serving_model),
            checkpoint_dir=str(workspace.checkpoints),
            metadata_connection_config=connection,
            until=run.stage,
        )
    )
    runtime_parameter_utils.substitute_runtime_parameter(
        ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run.run_id}
    )
    nodes = [node.pipeline_node.node_info.id for node in ir.nodes]
    started = time.time()
    record = replace(run, state=Status.RUNNING, started=started, dataset=dataset.source)
    history.record(record)
    try:
        with announced_nodes(nodes, check_lease), own_arguments_hidden():
            LocalDagRunner().run_with_ir(ir)
        done = replace(record, state=Status.DONE)
        if done.is_judged:
            with step("Summing up"):
                summary = summarize(
                    nodes=history.nodes(run.run_id),
                    run_id=run.run_id,
                    dataset=dataset,
                    workspace=workspace,
                    seconds=time.time() - started,
                    asked=asked,
                    config=config.model_dump(mode="json", include=MAKES_A_MODEL),
                )
            done = replace(
                done,
                accuracy=summary.headline[1],
                accuracy_metric=summary.headline[0],
                blessed=summary.blessed,
                pushed_version=summary.pushed_version,
            )
    except BaseException as error:
        for_people = _for_people(error, workspace, config.beam)
        ended = replace(
            record,
            state=_ending(for_people),
            seconds=time.time() - started,
            error=str(error)[:1000],
        )
        try:
            history.record(ended)
        except OSError as unrecorded:
            _log.warning("The history does not say how the run ended: %s", unrecorded)
        # Bad input explains itself; of anything else the log is to show where it came from.
        raise for_people from (error if isinstance(for_people, RunFailedError) else None)
    done = replace(done, seconds=time.time() - started)
    history.record(done)
    if done.is_judged:
        workspace.point_latest_at(run.run_id)
    return done


def require_trainable(config: PipelineConfig, dataset: Dataset) -> None:
    """Raises InputError now, and not once everything is ingested, where no training can follow."""
    try:
        backbone = config.train.recipe(dataset.kind).backbone
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"train: {reason} (with images of kind {dataset.kind})") from None
    if backbone is not None and is_path(backbone):
        model_file(backbone)


def _check_beam(beam: BeamSettings) -> None:
    if beam.runner == "dataflow":
        raise InputError(
            "beam.runner: dataflow is for pipelines that `oneshot compile` makes: its workers do "
            "not see the output folder of this machine"
        )
    if beam.runner == "portable":
        check_job_server(beam)


def _ending(error: BaseException) -> Status:
    if isinstance(error, InputError):
        return Status.REFUSED
    return Status.FAILED if isinstance(error, Exception) else Status.INTERRUPTED


def _refuse_to_replace_real_data(
    history: RunHistory, dataset: Dataset, workspace: Workspace
) -> None:
    """A lost network must not put a model of generated glyphs in the place of a real one."""
    for run in history.runs() if dataset.source == "synthetic" else []:
        if run.dataset not in ("", "synthetic"):
            raise InputError(
                f"{workspace.root}: this output folder holds models of real data ({run.dataset}, "
                f"run {run.run_id}), and only generated glyphs were found for this run. Give the "
                "data with --data, or another folder with --output"
            )


def _for_people(error: BaseException, workspace: Workspace, beam: BeamSettings) -> BaseException:
    """What to raise in the place of a node's error, which may lie under those of libraries."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, InputError):
            return cause
        if isinstance(cause, ReadError):
            return RunFailedError(str(cause))
    if not isinstance(error, Exception):
        return error
    if any(_is_disk_full(cause) for cause in causes):
        return RunFailedError(
            f"the disk of {workspace.root} is full, or your quota on it. Free some space, or give "
            "another folder with --output, and run the same command again: finished steps are kept"
        )
    if beam.runner == "portable" and (told := told_of_job(causes, beam)):
        return RunFailedError(told)
    text = str(error).strip() or type(error).__name__
    return RunFailedError(f"{type(error).__name__}: {text.splitlines()[0]}")


def _is_disk_full(error: BaseException) -> bool:
    # TensorFlow, Beam and ML Metadata tell of it in their own errors, in words.
    by_number = isinstance(error, OSError) and error.errno in _FULL
    told = ("ENOSPC", SQLITE_FULL, *(os.strerror(number) for number in _FULL))
    return by_number or any(text in str(error) for text in told)


@contextmanager
def own_arguments_hidden() -> Iterator[None]:
    """Meanwhile the program has no arguments: TFX reads those of the process as flags of its own,
    to which `-v` is a number, and hands them to Beam."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        yield
    finally:
        sys.argv = arguments


@contextmanager
def announced_nodes(nodes: Sequence[str], check_lease: Callable[[], object]) -> Iterator[None]:
    """Tells when each node starts and how long it took; none starts without the lease.

    TFX 1.21 offers no hook for that (tensorflow/tfx#2452), so a method of LocalDagRunner's private
    launcher is replaced meanwhile. tests/pipeline/runners/test_local.py fails where TFX no longer
    calls it.
    """
    original = launcher.Launcher.launch

    def launch(node_launcher: launcher.Launcher) -> ExecutionInfo | None:
        # Exporting a model silences the logger of LocalDagRunner.
        logging.getLogger("absl").setLevel(logging.INFO)
        check_lease()
        node = node_launcher._pipeline_node.node_info.id
        place = f"[{nodes.index(node) + 1}/{len(nodes)}] {node}"
        _log.info("%s", place, extra=INSTEAD_OF_VIEW)
        whole.parts[node] = NOW
        with step(node) as one:
            try:
                execution = original(node_launcher)
            except BaseException:
                whole.parts[node] = "not finished"
                raise
            cached = _is_cached(node_launcher, execution)
            whole.parts[node] = CACHED if cached else f"{one.seconds:.1f} s"
        told = "from the cache" if cached else f"done in {one.seconds:.1f} s"
        _log.info("      %s", told, extra=INSTEAD_OF_VIEW)
        return execution

    launcher.Launcher.launch = launch
    try:
        with step("Run", parts=nodes, logged=False) as whole:
            yield
    finally:
        launcher.Launcher.launch = original


def _is_cached(node_launcher: launcher.Launcher, execution: ExecutionInfo | None) -> bool:
    """Whether a node that is done had nothing to do; Resolvers and Importers are never cached."""
    runs_itself = node_launcher._system_node_handler is not None
    return not runs_itself and execution is not None and not execution.execution_output_uri
