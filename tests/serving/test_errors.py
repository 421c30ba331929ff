"""What remains of TensorFlow's messages."""

import pytest

from serving.errors import reason_of

NODE = "\n\t [[{{node map/while/Assert_1/Assert}}]]"
REFUSED = "assertion failed: [image refused: neither PNG nor JPEG]"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (f"Graph execution error:\n\n{REFUSED}{NODE}", "image refused: neither PNG nor JPEG"),
        (f"{REFUSED}{NODE}{NODE}", "image refused: neither PNG nor JPEG"),
        (
            f"Graph execution error:\n\n2 root error(s) found.\n  (0) INVALID_ARGUMENT: {REFUSED}"
            f"{NODE}\n\t [[map/while/LoopCond/_9]]\n  (1) INVALID_ARGUMENT: other{NODE}",
            "image refused: neither PNG nor JPEG",
        ),
        (
            f"assertion failed: [image refused: sides must be 1 to 9 pixels, not] [30] [40]{NODE}",
            "image refused: sides must be 1 to 9 pixels, not 30 40",
        ),
        (f"Invalid PNG data, size 100{NODE}", "Invalid PNG data, size 100"),
        ("Incompatible shapes: [2] vs. [3]", "Incompatible shapes: [2] vs. [3]"),
        ("", ""),
    ],
)
def test_tensorflows_own_words_are_left_out(message: str, reason: str) -> None:
    assert reason_of(message) == reason
