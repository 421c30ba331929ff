"""Checks an export as TF Serving will load it and as clients, friendly or not, will use it."""

import io
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from components.evaluator.settings import GateSettings
from data_ingest.records.features import Pair, serialize_pair
from serving.saved_model.contract import (
    EMBED,
    EXAMPLES,
    EXTRA,
    MATCH,
    SERVING,
    SIGNATURES,
    WARMUP,
)
from serving.saved_model.loader import LoadedModel

HUGE_SIDE = 11_000
WARMUP_LIMIT = 1000
LATENCY_BATCHES = (1, 32)
HOSTILE_SECONDS = 5.0
TENSORFLOW_PREAMBLE = re.compile(
    r"Graph execution error|Detected at node|<stack traces|\d+ root error|File \"|\(0\) "
)

Floats = npt.NDArray[np.float32]
PairScorer = Callable[[Sequence[bytes], Sequence[bytes]], Floats]


class GateFailure(Exception):
    """An export does not do what its clients rely on; the message says what."""


def check_export(
    directory: Path, pairs: Sequence[Pair], trained: PairScorer, settings: GateSettings
) -> dict[str, Any]:
    """Loads an export as TF Serving does and runs every check on it.

    Args:
      directory: the SavedModel.
      pairs: at least one; the images that scores, warm-up and latency are checked with.
      trained: the trained model's scores, `float[N]` of `bytes[N]` twice.
      settings: limits.

    Returns:
      A report that JSON can hold: `reasons` (empty: it passed), and what was measured.
    """
    report: dict[str, Any] = {"reasons": []}
    checks: list[Callable[[LoadedModel], dict[str, Any]]] = [
        check_signatures,
        replay_warmup,
        lambda model: compare_scores(model, pairs, trained, settings.max_score_difference),
        lambda model: refuse_hostile_images(model, pairs[0]),
        lambda model: measure_latency(model, pairs, settings),
    ]
    start = time.perf_counter()
    try:
        with LoadedModel(directory) as model:
            report["load_seconds"] = time.perf_counter() - start
            for check in checks:
                try:
                    report |= check(model)
                except GateFailure as failure:
                    report["reasons"].append(str(failure))
                except (tf.errors.OpError, KeyError, ValueError) as error:
                    report["reasons"].append(f"a request failed: {_first_line(error)}")
    except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
        report["reasons"].append(f"TF Serving's loader refuses it: {_first_line(error)}")
    report["reasons"] = list(dict.fromkeys(report["reasons"]))
    return report


def check_signatures(model: LoadedModel) -> dict[str, Any]:
    """Every signature of the contract is there, with the agreed inputs and outputs."""
    for name, contract in SIGNATURES.items():
        inputs, outputs = set(contract["inputs"]), set(contract["outputs"])
        if name not in model.signatures:
            raise GateFailure(f"it has no signature {name!r}, only {sorted(model.signatures)}")
        found = model.signatures[name]
        if (set(found.inputs), set(found.outputs)) != (inputs, outputs):
            raise GateFailure(
                f"signature {name!r} maps {sorted(found.inputs)} to {sorted(found.outputs)}, not "
                f"{sorted(inputs)} to {sorted(outputs)}"
            )
    return {"signatures": sorted(model.signatures)}


def replay_warmup(model: LoadedModel) -> dict[str, Any]:
    """Replays the warm-up requests; TF Serving refuses to load a model when one of them fails."""
    path = model.directory / EXTRA / WARMUP
    if not path.is_file():
        raise GateFailure(f"there are no warm-up requests in {EXTRA}/{WARMUP}")
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(path))
    ]
    if not 0 < len(logs) <= WARMUP_LIMIT:
        raise GateFailure(f"{len(logs)} warm-up requests; TF Serving takes 1 to {WARMUP_LIMIT}")
    for number, log in enumerate(logs):
        request = log.predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        try:
            model.run(request.model_spec.signature_name or SERVING, inputs)
        except (tf.errors.OpError, KeyError) as error:
            raise GateFailure(f"warm-up request {number} fails: {_first_line(error)}") from error
    return {"warmup_requests": len(logs)}


def compare_scores(
    model: LoadedModel, pairs: Sequence[Pair], trained: PairScorer, allowed: float
) -> dict[str, Any]:
    """Each way to a score (images, records, stored embeddings) gives the trained model's."""
    images_a = [pair.image_a for pair in pairs]
    images_b = [pair.image_b for pair in pairs]
    expected = trained(images_a, images_b)
    found = {
        SERVING: model.run(SERVING, {"image_a": images_a, "image_b": images_b}),
        EXAMPLES: model.run(EXAMPLES, {"examples": [serialize_pair(pair) for pair in pairs]}),
        "embed and match": model.run(
            MATCH,
            {
                "embedding_a": model.run(EMBED, {"image": images_a})["embedding"],
                "embedding_b": model.run(EMBED, {"image": images_b})["embedding"],
            },
        ),
    }
    differences = {
        name: float(np.max(np.abs(outputs["score"].astype(np.float64) - expected)))
        for name, outputs in found.items()
    }
    for name, difference in differences.items():
        # Not `difference > allowed`: NaN must not pass.
        if not difference <= allowed:
            raise GateFailure(
                f"scores of {name} differ from the trained model's by up to {difference:.2g}; "
                f"{allowed:g} is allowed"
            )
    return {"compared_pairs": len(pairs), "score_differences": differences}


def refuse_hostile_images(model: LoadedModel, pair: Pair) -> dict[str, Any]:
    """Bad images get InvalidArgument, soon, and good ones are answered as before afterwards."""
    good = {"image_a": [pair.image_a], "image_b": [pair.image_b]}
    before = model.run(SERVING, good)["score"]
    answers: dict[str, dict[str, Any]] = {}
    for name, image in hostile_images(pair.image_a).items():
        for signature, inputs in {
            SERVING: {"image_a": [pair.image_a], "image_b": [image]},
            EMBED: {"image": [image]},
        }.items():
            start = time.perf_counter()
            try:
                model.run(signature, inputs)
            except tf.errors.InvalidArgumentError as error:
                seconds = time.perf_counter() - start
                answers[name] = {"error": _first_line(error), "seconds": round(seconds, 4)}
            except tf.errors.OpError as error:
                raise GateFailure(
                    f"{signature} answers {name} with {type(error).__name__} instead of "
                    f"InvalidArgumentError: {_first_line(error)}"
                ) from error
            else:
                raise GateFailure(f"{signature} accepts {name}")
            if seconds > HOSTILE_SECONDS:
                raise GateFailure(f"{signature} takes {seconds:.1f} s to refuse {name}")
    after = model.run(SERVING, good)["score"]
    if not np.allclose(before, after, rtol=0, atol=1e-6):
        raise GateFailure("scores change after a bad request")
    return {"hostile_images": answers}


def hostile_images(good: bytes) -> dict[str, bytes]:
    """Broken, blank and absurd uploads, by a description.

    Args:
      good: an encoded image that the model accepts; the truncated ones are made of it.
    """
    huge = huge_png(HUGE_SIDE)
    return {
        "an empty upload": b"",
        "a text file": b"this is not an image\n" * 40,
        "a PNG signature and nothing more": b"\x89PNG\r\n\x1a\n",
        "an image cut off in its header": good[:20],
        "an image cut off in the middle": good[: len(good) // 2],
        f"a {HUGE_SIDE}x{HUGE_SIDE} PNG": huge,
        f"a {HUGE_SIDE}x{HUGE_SIDE} PNG cut off": huge[:200],
        "a white page": _page("L"),
        "a transparent page": _page("LA"),
        "a PNG that claims 2 GiB of text": _page("L")[:33] + b"\x7f\xff\xff\xfftEXt" + bytes(99),
    }


def _page(mode: str) -> bytes:
    """A PNG without ink."""
    stream = io.BytesIO()
    Image.new(mode, (32, 32), (255, 0)[: len(mode)]).save(stream, "PNG")
    return stream.getvalue()


def huge_png(side: int) -> bytes:
    """A valid white 1-bit PNG, `side` x `side` pixels: a few kB that decode to `side`² bytes."""
    stream = io.BytesIO()
    Image.new("1", (side, side), color=1).save(stream, "PNG")
    return stream.getvalue()


def measure_latency(
    model: LoadedModel, pairs: Sequence[Pair], settings: GateSettings
) -> dict[str, Any]:
    """Milliseconds of `embed` for one image and for a batch, in this process, without a network."""
    latency = {}
    for batch in LATENCY_BATCHES:
        images = [pairs[n % len(pairs)].image_a for n in range(batch)]
        model.run(EMBED, {"image": images})
        requests = max(10, settings.latency_requests // batch)
        times = []
        for _ in range(requests):
            start = time.perf_counter()
            model.run(EMBED, {"image": images})
            times.append(1000 * (time.perf_counter() - start))
        p50, p99 = np.percentile(times, [50, 99])
        latency[f"embed_{batch}"] = {
            "p50": round(float(p50), 3),
            "p99": round(float(p99), 3),
            "requests": requests,
        }
    p99 = latency["embed_1"]["p99"]
    if settings.max_p99_ms is not None and p99 > settings.max_p99_ms:
        raise GateFailure(
            f"embedding one image takes {p99:.1f} ms (99th percentile); "
            f"{settings.max_p99_ms:g} ms are allowed"
        )
    return {"latency_ms": latency}


def _first_line(error: BaseException) -> str:
    """The line of an error that says what happened, without TensorFlow's preamble and traces."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if isinstance(error, tf.errors.OpError):
        text = error.message
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not TENSORFLOW_PREAMBLE.match(line)]
    return ([*telling, *lines] or [type(error).__name__])[0][:300]
