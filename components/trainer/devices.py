"""Chooses the devices that training runs on, their precision, and whether XLA compiles."""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tensorflow as tf

from components.trainer.recipe import Switch

BFLOAT16_CAPABILITY: Final = (8, 0)
"""CUDA compute capability from which bfloat16 is fast (Ampere)."""
BFLOAT16_INSTRUCTIONS: Final = ("avx512_bf16", "amx_bf16")
"""With either of them a CPU multiplies bfloat16 about twice as fast as float32."""
CPU_INFO: Final = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Accelerator:
    """Attributes:
    strategy: the default one for a single device, MirroredStrategy for several GPUs.
    mixed_precision: compute in bfloat16.
    xla: compile the step with XLA.
    description: for people, as "2 CPU cores" or "1 x NVIDIA L4".
    gpus: how many GPUs; 0 is the CPU.
    """

    strategy: tf.distribute.Strategy
    mixed_precision: bool
    xla: bool
    description: str
    gpus: int = 0

    @property
    def replicas(self) -> int:
        return int(self.strategy.num_replicas_in_sync)


def choose_accelerator(*, mixed_precision: Switch = "auto", xla: Switch = "auto") -> Accelerator:
    """All GPUs that TensorFlow sees, or else the CPU.

    Left at auto, bfloat16 is on where every device computes it fast, and XLA on a single GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # The Evaluator and the ServingGate run in the same process and need some of it too. Once
        # TensorFlow has started on the device it is too late to ask.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    fast = (
        all(detail.get("compute_capability", (0, 0)) >= BFLOAT16_CAPABILITY for detail in details)
        if gpus
        else _cpu_has_bfloat16()
    )
    names = sorted({str(detail.get("device_name", "GPU")) for detail in details})
    return Accelerator(
        strategy=(
            tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()
        ),
        mixed_precision=fast if mixed_precision == "auto" else mixed_precision == "on",
        xla=len(gpus) == 1 if xla == "auto" else xla == "on",
        description=(
            f"{len(gpus)} x {', '.join(names)}"
            if gpus
            else f"{len(os.sched_getaffinity(0))} CPU cores"
        ),
        gpus=len(gpus),
    )


def _cpu_has_bfloat16() -> bool:
    """Whether Linux says so; oneDNN would compute it without such instructions, too, but slowly."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not set(BFLOAT16_INSTRUCTIONS).isdisjoint(flags[1].split())
