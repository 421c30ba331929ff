"""What one run came to: `summary.json` and the table at its end."""

import json
import logging
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from components.evaluation import read_metrics, refusals
from components.pushed_models import NOT_PUSHED_BECAUSE, custom_text
from components.serving_gate import REPORT as GATE_REPORT
from data_ingest.dataset import Dataset
from pipeline.baselines import pixel_nearest_neighbour_accuracy
from pipeline.files import write_text_atomically
from pipeline.history import NodeRun, RunHistory
from pipeline.workspace import Workspace

_LOGGER = logging.getLogger(__name__)
PACKAGES = (
    "tensorflow",
    "keras",
    "tfx",
    "apache-beam",
    "tensorflow-data-validation",
    "tensorflow-model-analysis",
    "ml-metadata",
)
# Within-alphabet 20-way accuracy on Omniglot, as given in Koch et al. 2015, table 2.
KOCH_2015_ACCURACY = 0.920
HUMAN_ACCURACY = 0.955


@dataclass(frozen=True)
class RunSummary:
    """The content of `summary.json`.

    `metrics` holds accuracies and rates in [0, 1], each with `<name>_ci95` ([low, high]) and
    `<name>_n` (trials or pairs); a protocol that the data cannot make is absent.
    """

    run_id: str
    dataset: str
    blessed: bool
    pushed_version: int | None
    model_dir: str | None
    metrics: dict[str, Any]
    seconds: dict[str, float]
    train_images_per_second: float | None
    device: str | None
    versions: dict[str, str]
    data_found: str = ""
    cached: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    baselines: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    per_group: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def headline(self) -> tuple[str, float | None]:
        """The one-shot figure that stands for the run: official, else the hardest within."""
        return headline_metric(self.metrics)


def read_summary(run_dir: Path) -> RunSummary:
    """The `summary.json` of a run that went as far as a verdict."""
    return RunSummary(**json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))


def headline_metric(metrics: Mapping[str, Any]) -> tuple[str, float | None]:
    """Name and value of the official accuracy, else of the within-group trials of most ways."""
    names = accuracy_names(metrics)
    return (names[0], float(metrics[names[0]])) if names else ("", None)


def ways_of(metric: str) -> int:
    """`within_20way_accuracy` → 20."""
    return int(metric.split("_")[1].removesuffix("way"))


def summarize(
    *,
    history: RunHistory,
    run_id: str,
    dataset: Dataset,
    workspace: Workspace,
    seconds: float,
) -> RunSummary:
    """Gathers the figures of a finished run from ML Metadata and writes `summary.json`."""
    nodes = history.nodes(run_id)
    artifacts = _artifact_uris(nodes)
    training = _read_json(Path(artifacts.get("model_run", "")) / "training.json")
    version = _pushed_version(nodes)
    metrics = read_metrics(artifacts["evaluation"])
    per_group = metrics.pop("per_group")
    summary = RunSummary(
        run_id=run_id,
        dataset=dataset.kind,
        blessed=_is_blessed(nodes),
        pushed_version=version,
        model_dir=str(workspace.serving_model / str(version)) if version else None,
        metrics=metrics,
        seconds={node.node_id: round(node.seconds, 2) for node in nodes}
        | {"total": round(seconds, 2)},
        train_images_per_second=training.get("images_per_second"),
        device=training.get("device"),
        versions={name: package_metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        data_found=dataset.description,
        cached=[node.node_id for node in nodes if node.cached],
        baselines=_baselines(artifacts["examples"], workspace),
        refusals=_refusals(nodes, artifacts["evaluation"]),
        artifacts=artifacts,
        per_group=per_group,
    )
    write_text_atomically(
        workspace.run_dir(run_id) / "summary.json",
        json.dumps(asdict(summary), indent=2) + "\n",
    )
    return summary


def _artifact_uris(nodes: list[NodeRun]) -> dict[str, str]:
    """Output key → URI, over all nodes but the resolvers."""
    return {
        key: artifacts[0].uri
        for node in nodes
        if not node.node_id.endswith("Resolver")
        for key, artifacts in node.outputs.items()
        if artifacts and key != "blessing"
    }


def _output(nodes: list[NodeRun], node_id: str, key: str) -> Any:
    for node in nodes:
        if node.node_id == node_id and node.outputs.get(key):
            return node.outputs[key][0]
    return None


def _is_blessed(nodes: list[NodeRun]) -> bool:
    blessings = [_output(nodes, node, "blessing") for node in ("Evaluator", "ServingGate")]
    both = all(b is not None and b.custom_properties["blessed"].int_value == 1 for b in blessings)
    return both and not _taken_back(nodes)


def _taken_back(nodes: list[NodeRun]) -> str:
    """Who rolled this very model back earlier, when and why; empty if nobody did."""
    pushed = _output(nodes, "Pusher", "pushed_model")
    return "" if pushed is None else custom_text(pushed, NOT_PUSHED_BECAUSE)


def _refusals(nodes: list[NodeRun], evaluation_uri: str) -> list[str]:
    """Why the model was not blessed: failed thresholds, what the ServingGate found, a rollback."""
    gate = _output(nodes, "ServingGate", "blessing")
    found = _read_json(Path(gate.uri) / GATE_REPORT).get("reasons", []) if gate is not None else []
    taken_back = [reason] if (reason := _taken_back(nodes)) else []
    return [*refusals(evaluation_uri), *found, *taken_back]


def _pushed_version(nodes: list[NodeRun]) -> int | None:
    pushed = _output(nodes, "Pusher", "pushed_model")
    if pushed is None or pushed.custom_properties["pushed"].int_value != 1:
        return None
    return int(pushed.custom_properties["pushed_version"].string_value)


def _baselines(examples_uri: str, workspace: Workspace) -> dict[str, float]:
    """Pixel nearest neighbour on the same trials, computed once an Examples artifact."""
    cache = workspace.root / "baselines" / f"{Path(examples_uri).name}.json"
    known = _read_json(cache)
    if not known:
        known = pixel_nearest_neighbour_accuracy(Path(examples_uri))
        write_text_atomically(cache, json.dumps(known) + "\n")
    return known


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def print_summary(summary: RunSummary, console: Console, *, workspace: Workspace) -> None:
    """The table a person sees at the end of a run."""
    if summary.dataset == "synthetic":
        console.print(
            "[bold red]SYNTHETIC DATA[/]: generated glyphs, not Omniglot. These figures say that "
            "the pipeline works, not how good the recogniser is.\n"
        )
    accuracy = Table(title="One-shot accuracy", title_justify="left")
    for heading in ("trials", "accuracy", "95 % interval", "n", "pixel 1-NN", "chance"):
        accuracy.add_column(heading, justify="left" if heading == "trials" else "right")
    metrics = summary.metrics
    for name in accuracy_names(metrics):
        accuracy.add_row(
            name.removesuffix("_accuracy").replace("_", " "),
            _percent(metrics[name]),
            _interval(metrics.get(f"{name}_ci95")),
            str(metrics.get(f"{name}_n", "")),
            _percent(summary.baselines.get(name)),
            _percent(1 / ways_of(name)),
        )
    if "official_20way_accuracy" in metrics and summary.dataset == "omniglot":
        accuracy.add_section()
        accuracy.add_row("Koch 2015", _percent(KOCH_2015_ACCURACY), "", "", "", "")
        accuracy.add_row("humans", _percent(HUMAN_ACCURACY), "", "", "", "")
    console.print(accuracy)

    pairs = Table(title="Same or different (pairs of unseen classes)", title_justify="left")
    for heading in ("measure", "value", "95 % interval", "n"):
        pairs.add_column(heading, justify="left" if heading == "measure" else "right")
    for name in ("verification_accuracy", "auc", "eer", "ece"):
        if name in metrics:
            value = _percent(metrics[name]) if name != "auc" else f"{metrics[name]:.4f}"
            interval = metrics.get(f"{name}_ci95")
            pairs.add_row(
                name.replace("_", " "),
                value,
                _interval(interval) if name != "auc" or not interval else _plain(interval),
                str(metrics.get(f"{name}_n", "")),
            )
    console.print(pairs)

    times = Table(title="Seconds", title_justify="left")
    times.add_column("step")
    times.add_column("seconds", justify="right")
    for node, seconds in summary.seconds.items():
        times.add_row(node, "cached" if node in summary.cached else f"{seconds:.1f}")
    console.print(times)
    if summary.train_images_per_second:
        console.print(
            f"Trained at {summary.train_images_per_second:.0f} images/s on {summary.device}."
        )
    console.print(f"Report   {workspace.latest_run / 'report.html'}", soft_wrap=True)
    if summary.pushed_version is None:
        console.print("[bold]Not blessed, so not pushed[/]:", soft_wrap=True)
        for reason in summary.refusals:
            console.print(f"  {reason}", soft_wrap=True, markup=False)
        console.print("The thresholds are under `evaluate` and `gate` in the configuration.")
        return
    console.print(f"Model    {summary.model_dir}", soft_wrap=True)
    console.print(
        f"Next     {_command()} evaluate --model {summary.model_dir} --images DIR_OR_ZIP",
        soft_wrap=True,
    )


def _command() -> str:
    """How this installation's `oneshot` is called from the working folder."""
    script = Path(sys.executable).with_name("oneshot")
    folder = Path.cwd()
    return str(script.relative_to(folder) if script.is_relative_to(folder) else script)


def accuracy_names(metrics: Mapping[str, Any]) -> list[str]:
    """One-shot figures as people compare them: official first, most ways first."""
    order = ("official", "within", "between")
    names = [name for name in metrics if name.endswith("way_accuracy")]
    return sorted(names, key=lambda name: (order.index(name.split("_")[0]), -ways_of(name)))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _interval(bounds: list[float] | None) -> str:
    return "" if not bounds else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _plain(bounds: list[float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"
