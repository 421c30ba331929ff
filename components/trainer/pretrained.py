"""Names the pretrained networks that can be a backbone, and finds the files of others.

Without Keras, for the configuration and the graph of the pipeline.
"""

import hashlib
from pathlib import Path
from typing import Final, Literal, NamedTuple

from data_ingest.errors import InputError
from serving.saved_model.contract import EXTRA, KERAS_MODEL

Scaling = Literal["included", "tf", "torch", "caffe"]
"""Where pixels of [0, 255] are scaled: by the network itself, or before it, to [-1, 1], by mean and
deviation of ImageNet's colours, or as BGR less their mean (the modes of Keras's
`imagenet_utils.preprocess_input`)."""

SMALLEST_SIDE: Final = 32
"""Of the images that an Application takes, pixels."""


class Application(NamedTuple):
    """One of Keras Applications, without its classifier.

    Attributes:
      scaling: how it wants pixels.
      licence: of the weights, as those say who published them; Keras's code is Apache-2.0.
    """

    scaling: Scaling
    licence: str


APPLICATIONS: Final = {
    "MobileNetV3Small": Application("included", "Apache-2.0 (TensorFlow Models)"),
    "MobileNetV3Large": Application("included", "Apache-2.0 (TensorFlow Models)"),
    "EfficientNetV2B0": Application("included", "Apache-2.0 (google/automl)"),
    "DenseNet121": Application("torch", "BSD-3-Clause (liuzhuang13/DenseNet)"),
    "ResNet50": Application("caffe", "MIT (KaimingHe/deep-residual-networks)"),
    "ResNet50V2": Application("tf", "BSD (facebook/fb.resnet.torch)"),
    "ConvNeXtTiny": Application("included", "MIT (facebookresearch/ConvNeXt)"),
}
"""By the name that Keras has for it."""


def is_path(backbone: str) -> bool:
    """Whether `train.backbone` is written as a path, and not as a name."""
    return "/" in backbone or backbone.endswith(".keras")


def model_file(backbone: str) -> Path:
    """The Keras file of a backbone that `is_path`.

    Args:
      backbone: the file, or the folder of an exported model, which has one.

    Raises:
      InputError: there is none.
    """
    path = Path(backbone)
    found = path / EXTRA / KERAS_MODEL if path.is_dir() else path
    if not found.is_file():
        raise InputError(
            f"train.backbone: {found} does not exist; name a .keras file or the folder of a pushed "
            "model (<output>/serving_model/siamese/<version>)"
        )
    return found


def exported_folder(backbone: str) -> Path | None:
    """The folder of the exported model that a backbone is of; None: it is of none of ours."""
    if not is_path(backbone):
        return None
    folder = model_file(backbone).parent
    return folder.parent if folder.name == EXTRA else None


def fingerprint(backbone: str | None) -> str:
    """What tells a backbone from others: for cache keys, which do not hold the contents of files.

    It is the name where there is no such file here; a cluster may have one.
    """
    if backbone is None or not is_path(backbone):
        return backbone or ""
    try:
        return hashlib.sha256(model_file(backbone).read_bytes()).hexdigest()
    except InputError:
        return backbone
