"""Finds out what each step of a run took from which, for a drawing."""

from collections.abc import Sequence
from typing import Any

from pipeline.reports.words import STEPS
from pipeline.runs.history import NodeRun


def lineage(nodes: Sequence[NodeRun]) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Boxes and arrows as `pipeline.reports.figures.lineage` draws them.

    Args:
      nodes: of one run, in the order they ran.
    """
    # What looks for a model of an earlier run hands on what others made.
    makers = sorted(nodes, key=lambda node: not node.node_id.endswith("Resolver"))
    maker = {one.id: node.node_id for node in makers for one in node.outputs.values()}
    arrows = []
    layers: dict[str, int] = {}
    for node in nodes:
        sources = {maker[one] for one in node.inputs if one in maker} - {node.node_id}
        sources &= layers.keys()
        layers[node.node_id] = max((layers[one] + 1 for one in sources), default=0)
        arrows += [(one, node.node_id) for one in sorted(sources)]
    boxes = [
        {
            "id": node.node_id,
            "title": STEPS.get(node.node_id, node.node_id),
            "text": _told(node, [one for one, made_by in maker.items() if made_by == node.node_id]),
            "layer": layers[node.node_id],
            "cached": node.cached,
        }
        for node in nodes
    ]
    return boxes, arrows


def _told(node: NodeRun, made: Sequence[int]) -> str:
    if not made:
        return "none yet"
    numbers = ", ".join(map(str, sorted(made)))
    told = f"artifact{'s' if len(made) > 1 else ''} {numbers}"
    return f"{told}, cached" if node.cached else told
