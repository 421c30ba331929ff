"""Settings with which a whole pipeline takes seconds, and how a command is given them."""

from collections.abc import Mapping

TINY = {
    "pairs.train_pairs": "200",
    "pairs.eval_pairs": "80",
    "pairs.verification_pairs": "80",
    "pairs.ways": "[5]",
    "pairs.within_trials": "20",
    "pairs.between_trials": "20",
    "train.widths": "[8, 8, 8]",
    "train.image_size": "16",
    "train.steps": "6",
    "train.validate_every": "6",
    "train.classes_per_batch": "6",
    "train.images_per_class": "2",
    "evaluate.thresholds": "{auc: {min: 0.05}}",
    "gate.latency_requests": "10",
}
TINY_GLYPHS = {
    "dataset.synthetic_alphabets": "4",
    "dataset.synthetic_evaluation_alphabets": "2",
    "dataset.synthetic_characters": "6",
}


def as_options(settings: Mapping[str, str]) -> list[str]:
    """`--set key=value` for each."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
