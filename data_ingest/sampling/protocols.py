"""Names of splits and protocols, free of TensorFlow."""

from typing import Final

TRAIN_SPLIT: Final = "train"
EVAL_SPLIT: Final = "eval"
ONE_SHOT_SPLIT: Final = "one_shot"
SPLITS: Final = (TRAIN_SPLIT, EVAL_SPLIT, ONE_SHOT_SPLIT)

PROTOCOL_TRAIN: Final = "train"
PROTOCOL_VERIFICATION: Final = "verification"
PROTOCOL_OFFICIAL: Final = "official"
PROTOCOL_WITHIN: Final = "within"
PROTOCOL_BETWEEN: Final = "between"
PROTOCOLS: Final = (
    PROTOCOL_TRAIN,
    PROTOCOL_VERIFICATION,
    PROTOCOL_OFFICIAL,
    PROTOCOL_WITHIN,
    PROTOCOL_BETWEEN,
)
