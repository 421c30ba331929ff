"""Names of splits and protocols, free of TensorFlow."""

from typing import Final

TRAIN_SPLIT: Final = "train"
EVAL_SPLIT: Final = "eval"
ONE_SHOT_SPLIT: Final = "one_shot"
SPLITS: Final = (TRAIN_SPLIT, EVAL_SPLIT, ONE_SHOT_SPLIT)

PROTOCOL_TRAIN: Final = "train"
PROTOCOL_VERIFICATION: Final = "verification"
PROTOCOL_RANDOM: Final = "random"
"""Pairs of signatures, the different ones by two writers: random forgeries."""
PROTOCOL_SKILLED: Final = "skilled"
"""Pairs of signatures, the different ones of a genuine and a forged one of a writer."""
PROTOCOL_OFFICIAL: Final = "official"
PROTOCOL_WITHIN: Final = "within"
PROTOCOL_BETWEEN: Final = "between"
PROTOCOLS: Final = (
    PROTOCOL_TRAIN,
    PROTOCOL_VERIFICATION,
    PROTOCOL_RANDOM,
    PROTOCOL_SKILLED,
    PROTOCOL_OFFICIAL,
    PROTOCOL_WITHIN,
    PROTOCOL_BETWEEN,
)
