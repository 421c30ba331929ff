"""Builds the graph of the pipeline, the same for every runner."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal

from ml_metadata.proto import metadata_store_pb2
from tfx import v1 as tfx
from tfx.dsl.components.base.base_node import BaseNode

from components.evaluator.comparison import compare
from components.evaluator.eval_config import EXTRACTORS_MODULE, METRICS_MODULE, eval_config
from components.example_gen import PairExampleGen, make_input_config
from components.example_validator import (
    CuratedSchemaGen,
    ReadableExampleValidator,
    schema_text,
    stats_options,
)
from components.examples_readers import Evaluator, StatisticsGen
from components.pusher.component import Pusher
from components.pusher.earlier_models import PushedModelStrategy, ServedModel
from components.serving_gate.component import ServingGate
from components.trainer.pretrained import fingerprint
from data_ingest.sources.dataset import Dataset
from pipeline.config import PipelineConfig
from pipeline.fingerprint import source_hash
from pipeline.settings import STAGES, Stage


def create_pipeline(
    *,
    config: PipelineConfig,
    dataset: Dataset,
    protocols: AbstractSet[tuple[str, int]],
    pipeline_root: str,
    serving_model_dir: str,
    checkpoint_dir: str,
    metadata_connection_config: metadata_store_pb2.ConnectionConfig | None = None,
    beam_pipeline_args: Sequence[str] | None = None,
    earlier_models: Literal["metadata", "served"] = "metadata",
    until: Stage = "push",
    last: Callable[[Mapping[str, BaseNode]], Iterable[BaseNode]] = lambda _: (),
) -> tfx.dsl.Pipeline:
    """From images to a pushed model.

    Args:
      config: the whole configuration.
      dataset: where the images lie.
      protocols: the (protocol, way) trials this data can make.
      pipeline_root: where artifacts go.
      serving_model_dir: TF Serving's model base path.
      checkpoint_dir: a folder that outlives a killed training.
      metadata_connection_config: ML Metadata's store; None where the orchestrator brings one.
      beam_pipeline_args: Beam arguments; None takes those of `config.beam`.
      earlier_models: where the model to compare with, and to start from, is found: in ML Metadata
        by Resolvers, or in `serving_model_dir` where the orchestrator has no Resolvers.
      until: the last stage: `data` ends with the validated examples, `train` with a model,
        `evaluate` with both blessings, and `push` is the whole graph.
    """
    examples = PairExampleGen(
        input_base=str(dataset.base),
        input_config=make_input_config(dataset.inputs),
        pair_settings=config.pairs,
        max_rejected_share=config.dataset.max_rejected_share,
        writer_pattern=config.dataset.writer_pattern,
        source_hash=source_hash("components.example_gen"),
        dataset=dataset.source,
        kind=dataset.kind,
        max_side=config.dataset.max_side,
        crop=config.dataset.crop,
    )
    schema = CuratedSchemaGen(schema_text=schema_text())
    statistics = StatisticsGen(
        examples=examples.outputs["examples"],
        schema=schema.outputs["schema"],
        stats_options=stats_options(),
    )
    validator = ReadableExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    ).with_id("ExampleValidator")
    stages: dict[Stage, list[BaseNode]] = {"data": [examples, schema, statistics, validator]}

    stages["train"] = []
    served = None
    if earlier_models == "served":
        served = ServedModel(base_path=serving_model_dir)
        stages["train"].append(served)
    base_model = None
    if served is not None:
        # Whether it is started from is up to each run.
        base_model = served.outputs["model"]
    elif config.train.warm_start:
        warm_start = _pushed_model("WarmStartResolver")
        base_model = warm_start.outputs["model"]
        stages["train"].append(warm_start)
    trainer = tfx.components.Trainer(
        run_fn="components.trainer.run_fn.run_fn",
        examples=examples.outputs["examples"],
        base_model=base_model,
        train_args=tfx.proto.TrainArgs(splits=["train"]),
        eval_args=tfx.proto.EvalArgs(splits=["eval"]),
        custom_config={
            "train": config.train.model_dump_json(),
            "source_hash": source_hash("components.trainer.run_fn"),
            "dataset": dataset.source,
            "kind": dataset.kind,
            "crop": config.dataset.crop,
            "backbone": fingerprint(config.train.recipe(dataset.kind).backbone),
            "max_side": config.dataset.max_side,
            "checkpoint_dir": checkpoint_dir,
        },
    )
    if until != "data":
        # Trained only on data that passed; without this a parallel runner would not wait.
        trainer.add_upstream_node(validator)
    stages["train"].append(trainer)

    stages["evaluate"] = []
    baseline = served
    if baseline is None:
        baseline = _pushed_model("BaselineResolver", candidate=trainer.outputs["model"])
        stages["evaluate"].append(baseline)
    # How far a network gets ahead of these is known of Omniglot and generated glyphs.
    own = dataset.source == "folder"
    judging = [METRICS_MODULE, EXTRACTORS_MODULE] + [compare.__module__] * own
    evaluator = Evaluator(
        beat_baselines=config.evaluate.beat_baselines if own else None,
        examples=examples.outputs["examples"],
        model=trainer.outputs["model"],
        baseline_model=baseline.outputs["model"],
        eval_config=eval_config(config.evaluate, protocols, source_hash=source_hash(*judging)),
        module_path=EXTRACTORS_MODULE,
        example_splits=["one_shot"],
    )
    gate = ServingGate(
        model=trainer.outputs["model"],
        examples=examples.outputs["examples"],
        settings=config.gate.model_dump_json(),
        source_hash=source_hash("components.serving_gate.component"),
    )
    # The order in which people read the verdicts; the two do not depend on each other.
    gate.add_upstream_node(evaluator)
    pusher = Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=gate.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=serving_model_dir)
        ),
    )
    stages["evaluate"] += [evaluator, gate]
    stages["push"] = [pusher]
    wanted = STAGES[: STAGES.index(until) + 1]
    nodes = [node for stage in wanted for node in stages[stage]]
    return tfx.dsl.Pipeline(
        pipeline_name=config.pipeline_name,
        pipeline_root=pipeline_root,
        components=[*nodes, *last({node.id: node for node in nodes})],
        enable_cache=True,
        metadata_connection_config=metadata_connection_config,
        beam_pipeline_args=list(
            config.beam.pipeline_args() if beam_pipeline_args is None else beam_pipeline_args
        ),
    )


def _pushed_model(node_id: str, **inputs: tfx.dsl.Channel) -> BaseNode:
    """Finds the newest pushed model in ML Metadata."""
    return tfx.dsl.Resolver(
        strategy_class=PushedModelStrategy,
        model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.Model),
        pushed_model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.PushedModel),
        **inputs,
    ).with_id(node_id)
