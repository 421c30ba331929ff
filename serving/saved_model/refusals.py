"""Reads what an exported model says of a request that it refuses."""

import re
from typing import Final

IMAGE_REFUSED: Final = "image refused: "
"""How the model's own words about an image begin, see `serving.saved_model.preprocessing`."""

_PREAMBLE: Final = re.compile(
    r"Graph execution error:\s+|\d+ root error\(s\) found\.\s+\(0\) [\w ]+: "
)
_NODES: Final = re.compile(r"\s*\[\[\{\{node .*", re.DOTALL)
_ASSERTION: Final = re.compile(r"assertion failed: \[(.*)\]", re.DOTALL)


def reason_of(message: str) -> str:
    """The words of a `tf.errors.OpError` without TensorFlow's: its preamble and names of nodes."""
    while (preamble := _PREAMBLE.match(message)) is not None:
        message = message[preamble.end() :]
    message = _NODES.sub("", message)
    assertion = _ASSERTION.fullmatch(message)
    return message if assertion is None else assertion[1].replace("] [", " ")
