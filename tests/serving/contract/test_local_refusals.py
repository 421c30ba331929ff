"""The local server says which image of a request is refused, and why."""

import io
import re
import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.image_variants import variants
from tests.pair_records import drawing, png
from tests.serving.contract.api import Api, Refused, opened
from tests.serving.contract.images import BAD, drawings, encoded
from tests.serving.contract.local import Served

TENSORFLOWS = re.compile(
    r"\{\{|root error|assertion failed|Graph execution|jpeg::|Invalid (PNG|JPEG)"
)


def jpeg(*, mode: str = "L", **options: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(drawing(5, 1)).convert(mode).save(target, "jpeg", **options)
    return target.getvalue()


def refused(api: Api, signature: str, **inputs: np.ndarray) -> str:
    with pytest.raises(Refused) as caught:
        api.predict(signature, inputs)
    assert caught.value.status == 400
    assert not TENSORFLOWS.search(caught.value.message)
    return caught.value.message


def having(bad: bytes, *, at: int, count: int = 5) -> np.ndarray:
    images = drawings(count)
    images[at] = bad
    return images


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (BAD["text"], "neither PNG nor JPEG"),
        (b"", "neither PNG nor JPEG"),
        (BAD["too_wide"], "sides must be 1 to 4096 pixels, not 1 4097"),
        (BAD["png_cut"], "truncated PNG"),
        (jpeg()[:-60], "truncated; the end of the file is missing: get it again"),
        (encoded("L", "png").replace(b"IHDR", b"IHAR"), "unreadable; the file is damaged: "),
        (jpeg(mode="CMYK"), "CMYK JPEG: convert it to RGB"),
        (png(np.full((20, 20), 255, np.uint8)), "nothing is drawn on it (contrast 0.00"),
    ],
    ids=["text", "empty", "too_wide", "png_cut", "jpeg_cut", "header", "cmyk", "blank"],
)
def test_the_image_is_named_with_what_is_wrong_with_it(api: Api, bad: bytes, why: str) -> None:
    message = refused(api, "embed", image=having(bad, at=3))
    assert message.startswith(f"image of instance 3: image refused: {why}")
    pair = {"image_a": drawings(5), "image_b": having(bad, at=2)}
    message = refused(api, "", **pair)
    assert message.startswith(f"image_b of instance 2: image refused: {why}")


def test_a_single_pair_is_told_which_of_the_two(api: Api) -> None:
    good, bad = drawings(1), having(BAD["png_cut"], at=0, count=1)
    assert refused(api, "", image_a=bad, image_b=good).startswith("image_a of instance 0: ")
    assert refused(api, "", image_a=good, image_b=bad).startswith("image_b of instance 0: ")
    assert refused(api, "", image_a=bad, image_b=bad).startswith("image_a of instance 0: ")


def test_the_instance_is_that_of_a_request_larger_than_a_batch(api: Api) -> None:
    images = having(BAD["jpeg_cut"], at=70, count=90)
    assert refused(api, "embed", image=images).startswith("image of instance 70: ")


def test_images_in_examples_are_named_too(api: Api) -> None:
    def record(*images: bytes) -> bytes:
        example = tf.train.Example()
        for name, image in zip(("image_a", "image_b"), images, strict=True):
            example.features.feature[name].bytes_list.value.append(image)
        return bytes(example.SerializeToString())

    good = drawings(1)[0]
    records = np.array([record(good, good), record(good, BAD["text"])], object)
    message = refused(api, "examples", examples=records)
    assert message == "image_b of instance 1: image refused: neither PNG nor JPEG"
    records[1] = b"\xff\xff"
    assert "instance" not in refused(api, "examples", examples=records)


def test_damaged_images_of_every_kind_are_refused_by_name_if_at_all(served: Served) -> None:
    client = opened("grpc", served.target)
    damaged = [variant for variant in variants() if variant.broken]
    messages = {}
    for variant in damaged:
        try:
            client.predict("embed", {"image": having(variant.data, at=1, count=3)})
        except Refused as error:
            messages[variant.name] = error.message
    client.close()
    assert len(messages) > 10
    for name, message in messages.items():
        assert message.startswith("image of instance 1: image refused: "), name
        assert not TENSORFLOWS.search(message), name


def test_each_of_many_requests_at_once_is_told_of_its_own_image(served: Served) -> None:
    client = opened("grpc", served.target)
    messages: dict[int, str] = {}

    def ask(number: int) -> None:
        images = having(BAD["png_cut"], at=number % 5) if number % 2 else drawings(5)
        try:
            client.predict("embed", {"image": images})
            messages[number] = "answered"
        except Refused as error:
            messages[number] = error.message

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    for number in range(24):
        expected = f"image of instance {number % 5}: image refused: trunc" if number % 2 else "answ"
        assert messages[number].startswith(expected), number
