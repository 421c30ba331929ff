"""What training runs on."""

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from components.trainer import devices
from components.trainer.devices import choose_accelerator

L4: dict[str, Any] = {"device_name": "NVIDIA L4", "compute_capability": (8, 9)}
T4: dict[str, Any] = {"device_name": "Tesla T4", "compute_capability": (7, 5)}


def pretend(monkeypatch: pytest.MonkeyPatch, *gpus: dict[str, Any]) -> list[str]:
    """TensorFlow sees these GPUs; returns those whose memory is asked for bit by bit."""
    grown: list[str] = []
    devices = {f"GPU:{number}": details for number, details in enumerate(gpus)}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(devices))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", devices.__getitem__)
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, on: grown.append(gpu)
    )
    return grown


def test_a_gpu_gets_bfloat16_and_xla_without_being_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grown = pretend(monkeypatch, L4)
    accelerator = choose_accelerator()
    assert (accelerator.mixed_precision, accelerator.xla) == (True, True)
    assert (accelerator.gpus, accelerator.replicas) == (1, 1)
    assert accelerator.description == "1 x NVIDIA L4"
    assert grown == ["GPU:0"]


def test_a_gpu_that_is_slow_in_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, T4)
    accelerator = choose_accelerator()
    assert (accelerator.mixed_precision, accelerator.xla) == (False, True)


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx2 avx512f avx512_bf16 fma", True),
        ("fpu avx512f amx_bf16 amx_tile", True),
        ("fpu avx2 avx512f avx512_vnni not_avx512_bf16", False),
        (None, False),
    ],
)
def test_a_cpu_gets_bfloat16_where_it_has_instructions_for_it_and_never_xla(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str | None, fast: bool
) -> None:
    pretend(monkeypatch)
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor\t: 0\nmodel name\t: CPU\nflags\t\t: {flags}\nbugs\t\t:\n")
    monkeypatch.setattr(devices, "CPU_INFO", info)
    accelerator = choose_accelerator()
    assert (accelerator.mixed_precision, accelerator.xla, accelerator.gpus) == (fast, False, 0)
    assert accelerator.description.endswith("CPU cores")


def test_what_is_configured_goes_before_what_the_gpu_can(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, L4)
    accelerator = choose_accelerator(mixed_precision="off", xla="off")
    assert (accelerator.mixed_precision, accelerator.xla) == (False, False)
    pretend(monkeypatch)
    accelerator = choose_accelerator(mixed_precision="on", xla="on")
    assert (accelerator.mixed_precision, accelerator.xla) == (True, True)


def test_several_gpus_share_a_strategy_and_one_that_is_slow_in_bfloat16_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirrored = tf.distribute.get_strategy()
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: mirrored)
    grown = pretend(monkeypatch, L4, T4)
    accelerator = choose_accelerator()
    assert accelerator.strategy is mirrored
    assert (accelerator.mixed_precision, accelerator.gpus) == (False, 2)
    assert accelerator.description == "2 x NVIDIA L4, Tesla T4"
    assert grown == ["GPU:0", "GPU:1"]
