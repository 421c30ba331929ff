"""Times the parts of a training step, and its products against what the machine can do.

A part's time is that of the part alone, compiled like the step, on the step's own tensors. The
machine's peak is the best rate of any large matrix product or convolution, measured here.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import keras
import tensorflow as tf

from benchmarks.training_rounds import BareSteps, Timing
from components.trainer.model import EMBEDDER

LONG_ENOUGH: Final = 0.15
"""Seconds for which a part is repeated each time it is measured."""
PEAK_MATRICES: Final = (1024, 2048)
PEAK_CONVOLUTIONS: Final = ((96, 32, 64), (96, 16, 128), (64, 16, 256))
"""Images, side, channels; kernels are 3x3."""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Product:
    """A convolution or dense layer, forward or one of its two gradients, alone.

    Attributes:
      operations: multiplications and additions of one call.
    """

    layer: str
    shape: str
    direction: str
    operations: float
    call: Call


def timing(call: Call) -> Timing:
    """Of one call, once it is compiled."""
    _wait(call())
    count = 0
    start = Timing.now()
    while not count or time.perf_counter() - start.clock < LONG_ENOUGH:
        result = call()
        count += 1
        if count % 4 == 0:
            _wait(result)
    _wait(result)
    spent = Timing.now().since(start)
    return Timing(spent.clock / count, spent.cores / count)


def timings(calls: Mapping[str, Call], *, rounds: int) -> dict[str, Timing]:
    """Of each, measured in turn, round after round: shortest by the clock, median of the cores."""
    found: dict[str, list[Timing]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(timing(call))
    return {
        name: Timing(min(one.clock for one in own), statistics.median(one.cores for one in own))
        for name, own in found.items()
    }


def parts(bare: BareSteps, *, xla: bool) -> dict[str, Call]:
    """Parts of a single device's step; 'forward' is in 'forward and loss', and so on."""
    step = bare.step
    images, labels, *styles = bare.ready.replicas[0]
    momentum = bare.ready.momentum
    embedder = step.student.get_layer(EMBEDDER)
    ink = step.distort(images, *styles)
    _, gradients = step.loss_and_gradients(ink, labels)
    return {
        "whole step": lambda: step.run(bare.ready),
        # As arguments: what depends on constants alone would be computed once.
        "augmentation": _function(step.distort, images, *styles),
        "forward": _function(lambda ink: embedder(ink, training=True), ink, xla=xla),
        "forward and loss": _function(step.loss, ink, labels, xla=xla),
        "forward, loss and backward": _function(step.loss_and_gradients, ink, labels, xla=xla),
        "optimiser": _function(step.apply, gradients, xla=xla),
        "averaged weights": _function(step.average, momentum, xla=xla),
    }


def breakdown(found: Mapping[str, float]) -> dict[str, float]:
    """Time by part, none of which holds another; 'rest' is what no part accounts for."""
    split = {
        "augmentation": found["augmentation"],
        "forward": found["forward"],
        "loss": found["forward and loss"] - found["forward"],
        "backward": found["forward, loss and backward"] - found["forward and loss"],
        "optimiser": found["optimiser"],
        "averaged weights": found["averaged weights"],
    }
    return split | {"rest": found["whole step"] - sum(split.values())}


def products(bare: BareSteps) -> list[Product]:
    """Every convolution and dense layer of the network at the step's shapes."""
    embedder = bare.step.student.get_layer(EMBEDDER)
    batch = int(bare.ready.replicas[0][0].shape[0])
    found: list[Product] = []
    for layer in embedder.layers:
        if isinstance(layer, keras.layers.Conv2D):
            found += _convolution(layer, batch)
        elif isinstance(layer, keras.layers.Dense):
            found += _dense(layer, batch)
    return found


def large_products(dtype: str) -> dict[str, tuple[float, Call]]:
    """Operations and call of what should come near the machine's peak."""
    found: dict[str, tuple[float, Call]] = {}
    for size in PEAK_MATRICES:
        a, b = _random((size, size), dtype), _random((size, size), dtype)
        found[f"matrices {size}x{size}"] = (2.0 * size**3, _function(tf.matmul, a, b))
    for images, side, channels in PEAK_CONVOLUTIONS:
        x = _random((images, side, side, channels), dtype)
        kernel = _random((3, 3, channels, channels), dtype)
        call = _function(lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"), x, kernel)
        name = f"3x3, {channels} channels of {side}x{side}"
        found[name] = (2.0 * images * side**2 * 9 * channels**2, call)
    return found


def _convolution(layer: keras.layers.Conv2D, batch: int) -> list[Product]:
    dtype = layer.compute_dtype
    height, width, channels_in = layer.input.shape[1:]
    x = _random((batch, height, width, channels_in), dtype)
    kernel = _random(tuple(layer.kernel.shape), dtype)
    padding = layer.padding.upper()
    y = tf.nn.conv2d(x, kernel, layer.strides, padding)
    strides = [1, *layer.strides, 1]
    shape = f"{channels_in}→{layer.filters}, {layer.kernel_size[0]}x{layer.kernel_size[1]}"
    shape += f", {y.shape[1]}x{y.shape[2]}"
    operations = 2.0 * batch * y.shape[1] * y.shape[2] * int(tf.size(kernel))
    forward = _function(lambda x, k: tf.nn.conv2d(x, k, layer.strides, padding), x, kernel)
    by_kernel = _function(
        lambda x, y: tf.raw_ops.Conv2DBackpropFilter(
            input=x,
            filter_sizes=tuple(kernel.shape),
            out_backprop=y,
            strides=strides,
            padding=padding,
        ),
        x,
        y,
    )
    by_input = _function(
        lambda k, y: tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tuple(x.shape), filter=k, out_backprop=y, strides=strides, padding=padding
        ),
        kernel,
        y,
    )
    made = [
        Product(layer.name, shape, "forward", operations, forward),
        Product(layer.name, shape, "gradient of kernel", operations, by_kernel),
    ]
    if channels_in > 1:  # Nobody asks for the gradient of the drawings.
        made.append(Product(layer.name, shape, "gradient of input", operations, by_input))
    return made


def _dense(layer: keras.layers.Dense, batch: int) -> list[Product]:
    dtype = layer.compute_dtype
    inputs, units = layer.kernel.shape
    x, kernel = _random((batch, inputs), dtype), _random((inputs, units), dtype)
    y = _random((batch, units), dtype)
    shape, operations = f"{inputs}→{units}", 2.0 * batch * inputs * units
    pairs = (
        ("forward", _function(tf.matmul, x, kernel)),
        ("gradient of kernel", _function(lambda x, y: tf.matmul(x, y, transpose_a=True), x, y)),
        ("gradient of input", _function(lambda y, k: tf.matmul(y, k, transpose_b=True), y, kernel)),
    )
    return [Product(layer.name, shape, name, operations, call) for name, call in pairs]


def _function(body: Callable[..., Any], *arguments: Any, xla: bool = False) -> Call:
    compiled = tf.function(body, jit_compile=xla)
    return lambda: compiled(*arguments)


def _random(shape: Sequence[int], dtype: str) -> tf.Tensor:
    return tf.cast(tf.random.stateless_normal(shape, [1, 2]), dtype)


def _wait(result: Any) -> None:
    """Until the device is done."""
    for tensor in tf.nest.flatten(result)[-1:]:
        if tensor is not None:
            tf.reduce_sum(tf.reshape(tensor, [-1])[:1]).numpy()
