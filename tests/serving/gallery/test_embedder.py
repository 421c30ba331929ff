"""What an embedder is asked first."""

import hashlib

from serving.gallery.embedder import probe_image


def test_the_probe_has_the_same_bytes_for_ever() -> None:
    digest = "cb9d6141723395a40566c234764e9119dcbe84dda38d1ec9985779c52a45bbfd"
    assert hashlib.sha256(probe_image()).hexdigest() == digest
