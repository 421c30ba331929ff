"""Benchmarks of training: what they make of what they measured, on tiny data."""

from pathlib import Path

import pytest

from benchmarks import bench_gpu, bench_train
from benchmarks.gpu_training import averages, seconds_to, watched
from benchmarks.step_profile import breakdown, products
from benchmarks.training_rounds import BareSteps, Round, Timing, official_accuracy, rounds_of
from components.trainer.devices import Accelerator, choose_accelerator
from components.trainer.model import build_model
from components.trainer.pair_data import PairData
from tests.pair_records import drawing, png, tiny_data, tiny_recipe


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return choose_accelerator(mixed_precision="off", xla="off")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    return tiny_data(tmp_path_factory.mktemp("train"), groups=4)


def test_every_round_but_the_one_that_compiles_counts(
    data: PairData, accelerator: Accelerator, tmp_path: Path
) -> None:
    held_out = tiny_data(tmp_path, first=7)
    found = rounds_of(tiny_recipe(), (data, held_out), accelerator, rounds=3)
    assert len(found) == 3
    assert all(one.loop.clock > 0 and one.bare.clock > 0 for one in found)


def test_the_ratio_is_that_of_the_speeds_and_the_cores_decide_on_a_cpu() -> None:
    # A round of the loop takes 10 core-seconds where bare steps take 9; the clock says otherwise.
    found = [Round(Timing(5.0, 10.0), Timing(20.0, 9.0))] * 3
    rated = bench_train.rates(found, images=90, on_cpu=True)
    assert rated["ratio_by_cores"]["median"] == pytest.approx(0.9)
    assert rated["loop_images_per_core_second"] == pytest.approx(9.0)
    assert rated["bare_images_per_core_second"] == pytest.approx(10.0)
    assert not rated["target_met"]
    assert bench_train.rates(found, images=90, on_cpu=False)["target_met"]


def test_the_parts_of_a_step_add_up_to_it() -> None:
    found = {
        "whole step": 100.0,
        "augmentation": 5.0,
        "forward": 30.0,
        "forward and loss": 32.0,
        "forward, loss and backward": 80.0,
        "optimiser": 4.0,
        "averaged weights": 1.0,
    }
    split = breakdown(found)
    assert split["loss"] == 2.0
    assert split["backward"] == 48.0
    assert sum(split.values()) == pytest.approx(100.0)


def test_all_products_of_the_network_are_counted(data: PairData, accelerator: Accelerator) -> None:
    recipe = tiny_recipe()
    found = products(BareSteps(recipe, data, accelerator))
    # By hand, for 8 images of 16x16: stem 1→4; at 8x8 two of 3x3 and one of 1x1 to 8 channels;
    # 4x4x8→8 dense. The stem has no gradient of its input.
    stem = 8 * 16 * 16 * 9 * 1 * 4
    block = 8 * 8 * 8 * (9 * 4 * 8 + 9 * 8 * 8 + 4 * 8)
    dense = 8 * 128 * 8
    assert sum(one.operations for one in found) == 2 * (2 * stem + 3 * block + 3 * dense)
    for one in found:
        one.call()


def test_ties_share_the_credit_of_official_trials(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = build_model(recipe)
    model.get_layer("head").w.assign([0.0] * recipe.embedding_size)
    for name in ("training", "test"):
        (tmp_path / "run01" / name).mkdir(parents=True)
    for number in (1, 2):
        (tmp_path / "run01" / "training" / f"class{number:02d}.png").write_bytes(
            png(drawing(number, 1))
        )
        (tmp_path / "run01" / "test" / f"item{number:02d}.png").write_bytes(png(drawing(number, 2)))
    (tmp_path / "run01" / "class_labels.txt").write_text(
        "run01/test/item01.png run01/training/class01.png\n"
        "run01/test/item02.png run01/training/class02.png\n"
    )
    assert official_accuracy(model, tmp_path, recipe) == (0.5, 2)


def test_without_a_gpu_the_gpu_benchmark_says_so_in_one_line_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_gpu, "gpus", lambda: 0)
    assert bench_gpu.main([]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "finds no GPU" in printed.err


def test_what_nvidia_smi_prints_is_averaged_and_what_it_does_not_know_left_out() -> None:
    lines = ["50, 1000, [N/A]", "100, 3000, [N/A]", "70, 20"]
    assert averages(lines) == {"utilization.gpu": 75.0, "memory.used": 2000.0}


def test_nvidia_smi_is_watched_until_the_work_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        "#!/bin/sh\n"
        'test "$1" = --query-gpu=utilization.gpu,memory.used,power.draw || exit 1\n'
        "echo 80, 1000, 200.5\n"
        f"touch {tmp_path}/printed\n"
        "exec sleep 60\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found: dict[str, float] = {}
    with watched(found):
        while not (tmp_path / "printed").exists():
            pass
    assert found == {"utilization.gpu": 80.0, "memory.used": 1000.0, "power.draw": 200.5}


def test_without_nvidia_smi_utilisation_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found: dict[str, float] = {}
    with watched(found):
        pass
    assert found == {}


def test_the_time_to_an_accuracy_is_that_of_the_first_validation_that_has_it() -> None:
    history = [
        {"accuracy": 0.5, "seconds": 10.0},
        {"accuracy": 0.9, "seconds": 20.0},
        {"accuracy": 0.8, "seconds": 30.0},
        {"accuracy": 0.95, "seconds": 40.0},
    ]
    assert seconds_to(history, 0.9) == 20.0
    assert seconds_to(history, 0.93) == 40.0
    assert seconds_to(history, 0.99) is None
