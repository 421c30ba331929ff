"""Prints what the benchmarks of training found as tables."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: Mapping[str, Any]) -> None:
    """Prints all that the report has."""
    console = Console(stderr=True, width=110)
    console.print(_rates(report["rates"], title=f"{report['preset']} on {report['device']}"))
    if "profile" in report:
        console.print(_parts(report["profile"]))
        console.print(_products(report["profile"]))
    if "memory" in report:
        console.print(_memory(report["memory"]))
    if "training" in report:
        console.print(_training(report))


def _rates(rated: Mapping[str, Any], *, title: str) -> Table:
    table = Table("", "images/s", "images a core-second", title=title)
    for name, of in (("bare", "steps fed from memory"), ("loop", "the Trainer's loop")):
        columns = (f"{name}_images_per_second", f"{name}_images_per_core_second")
        table.add_row(of, *(f"{rated[column]:.0f}" for column in columns))
    ratios = (rated["ratio_by_clock"], rated["ratio_by_cores"])
    table.add_row("ratio: median, quartiles", *map(_percent, ratios))
    return table


def _parts(made: Mapping[str, Any]) -> Table:
    table = Table("part of a step", _unit(made), "share")
    for name, milliseconds in made["parts_ms"].items():
        table.add_row(name, f"{milliseconds:.1f}", f"{100 * made['parts_share'][name]:.1f} %")
    table.add_row("whole step", f"{made['step_ms']:.1f}", "")
    return table


def _products(made: Mapping[str, Any]) -> Table:
    table = Table("product, alone", "shape", "direction", "GFLOP", _unit(made), "GFLOP/s", "peak")

    def row(*names: str, gflop: float, ms: float) -> None:
        rate = 1e3 * gflop / ms
        share = f"{100 * rate / made['peak_gflop_per_second']:.0f} %"
        table.add_row(*names, f"{gflop:.3f}", f"{ms:.2f}", f"{rate:.0f}", share)

    for one in made["products"]:
        row(one["layer"], one["shape"], one["direction"], gflop=one["gflop"], ms=one["ms"])
    row("all of them", "", "", gflop=made["gflop_a_step"], ms=made["products_alone_ms"])
    row("whole step", "", "", gflop=made["gflop_a_step"], ms=made["step_ms"])
    return table


def _memory(found: list[Mapping[str, int]]) -> Table:
    table = Table("pairs", "images", "records read, MiB", "trained, MiB", "most ever, MiB")
    for one in found:
        grown = (one["read_mib"], one["trained_mib"], one["most_mib"])
        table.add_row(f"{one['pairs']:,}", f"{one['images']:,}", *map(str, grown))
    return table


def _training(report: Mapping[str, Any]) -> str:
    whole = report["training"]
    lines = [f"{whole['steps']} steps in {whole['seconds']:.0f} s"]
    if "official_accuracy" in whole:
        lines.append(
            f"official one-shot task {100 * whole['official_accuracy']:.2f} %, "
            f"{whole['official_trials']} trials"
        )
    if "target" in report:
        reached = report["seconds_to_target"]
        after = f"after {reached:.0f} s" if reached is not None else "not reached"
        lines.append(f"{100 * report['target']:.1f} % on held-out alphabets: {after}")
    lines += [f"{name} {value:.0f} on average" for name, value in report.get("gpu", {}).items()]
    return "\n".join(lines)


def _unit(made: Mapping[str, Any]) -> str:
    return "core-ms" if made["clock"] == "cores" else "ms"


def _percent(found: Mapping[str, float]) -> str:
    return f"{100 * found['median']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
