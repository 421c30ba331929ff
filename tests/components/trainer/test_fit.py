"""The training loop, its validation, and the steps prepared ahead."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.trainer.checkpoints import FitCheckpoint
from components.trainer.devices import Accelerator, choose_accelerator
from components.trainer.fit import Fit, OneShotValidation, TrainingDiverged, fit, prefetched
from components.trainer.model import IMAGES_A_BATCH, embed_all, embedding_function
from components.trainer.pair_data import PairData
from components.trainer.recipe import Recipe
from components.trainer.step import StepInput, TrainingStep
from tests.pair_records import tiny_data, tiny_recipe


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    return tiny_data(tmp_path_factory.mktemp("train"), groups=4, classes=5, pairs=300)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    return tiny_data(tmp_path_factory.mktemp("eval"), first=7)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return choose_accelerator(mixed_precision="off", xla="off")


class Killed(BaseException):
    """Stands in for SIGKILL: nothing in the code under test handles it."""


def weights_of(fitted: Fit) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in fitted.model.get_weights()])


@pytest.mark.parametrize("loss", ["batch", "pair"])
def test_a_killed_fit_goes_on_and_ends_with_the_same_weights(
    train: PairData,
    held_out: PairData,
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
) -> None:
    recipe = tiny_recipe(steps=12, validate_every=4, loss=loss)
    whole = fit(recipe, train, held_out, accelerator=accelerator)

    save = FitCheckpoint.save
    arguments = {
        "accelerator": accelerator,
        "checkpoint_dir": tmp_path,
        "checkpoint_every": 5,
    }
    with monkeypatch.context() as patched:

        def save_and_die(self: FitCheckpoint, step: int, state: dict[str, object]) -> None:
            save(self, step, state)
            raise Killed

        patched.setattr(FitCheckpoint, "save", save_and_die)
        with pytest.raises(Killed):
            fit(recipe, train, held_out, **arguments)
    resumed = fit(recipe, train, held_out, **arguments)

    assert resumed.facts.resumed_from_step == 5
    assert whole.facts.resumed_from_step is None
    np.testing.assert_allclose(weights_of(resumed), weights_of(whole), atol=1e-5)
    for name in ("steps", "best_step", "best_validation_accuracy"):
        assert getattr(resumed.facts, name) == getattr(whole.facts, name)
    assert [entry["step"] for entry in resumed.facts.history] == [4, 8, 12]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_fit_after_a_step_and_a_checkpoint(
    train: PairData,
    held_out: PairData,
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    recipe = tiny_recipe(steps=12, validate_every=4)
    whole = fit(recipe, train, held_out, accelerator=accelerator)
    arguments = {"accelerator": accelerator, "checkpoint_dir": tmp_path}
    step, steps = TrainingStep.run, []

    def run(self: TrainingStep, data: StepInput) -> object:
        steps.append(data)
        if len(steps) == 7:
            signal.raise_signal(number)
        return step(self, data)

    def die(_number: int, _frame: object) -> None:
        raise Killed

    before = signal.signal(number, die)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(TrainingStep, "run", run)
            with pytest.raises(Killed):
                fit(recipe, train, held_out, **arguments)
        assert signal.getsignal(number) is die
    finally:
        signal.signal(number, before)
    resumed = fit(recipe, train, held_out, **arguments)
    assert resumed.facts.resumed_from_step == 7
    np.testing.assert_allclose(weights_of(resumed), weights_of(whole), atol=1e-5)
    assert [entry["step"] for entry in resumed.facts.history] == [4, 8, 12]


def test_a_fit_killed_after_its_last_step_does_not_train_again(
    train: PairData, held_out: PairData, accelerator: Accelerator, tmp_path: Path
) -> None:
    recipe = tiny_recipe()
    arguments = {"accelerator": accelerator, "checkpoint_dir": tmp_path}
    first = fit(recipe, train, held_out, **arguments)
    again = fit(recipe, train, held_out, **arguments)
    assert again.facts.resumed_from_step == recipe.steps
    np.testing.assert_array_equal(weights_of(first), weights_of(again))
    assert again.facts.history == first.facts.history


def test_other_settings_data_or_code_never_continue_a_checkpoint(
    train: PairData, held_out: PairData, accelerator: Accelerator, tmp_path: Path
) -> None:
    arguments = {"accelerator": accelerator, "checkpoint_dir": tmp_path}
    one, other = tiny_recipe(steps=1), tiny_recipe(steps=1, seed=2)
    fit(one, train, held_out, **arguments)
    assert fit(one, train, held_out, **arguments).facts.resumed_from_step == 1
    for fitted in (
        fit(other, train, held_out, **arguments),
        fit(one, held_out, train, **arguments),
        fit(one, train, held_out, code_version="edited", **arguments),
    ):
        assert fitted.facts.resumed_from_step is None


def test_training_learns_to_tell_unseen_classes_apart(
    train: PairData, held_out: PairData, accelerator: Accelerator, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        steps=80,
        widths=(8, 16),
        embedding_size=16,
        classes_per_batch=8,
        images_per_class=3,
        validate_every=40,
        augmentation=0.3,
    )
    fitted = fit(recipe, train, held_out, accelerator=accelerator, log_dir=tmp_path)
    assert fitted.facts.best_validation_accuracy > 0.6  # chance is 0.2
    assert (np.asarray(fitted.model.get_layer("head").w) >= 0).all()
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_the_weights_of_the_best_validation_are_returned(
    train: PairData,
    held_out: PairData,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracies = iter([0.2, 0.9, 0.3])
    embeddings = []

    def accuracy(self: OneShotValidation, embed: Callable[[np.ndarray], np.ndarray]) -> float:
        embeddings.append(embed(held_out.images))
        return next(accuracies)

    monkeypatch.setattr(OneShotValidation, "accuracy", accuracy)
    recipe = tiny_recipe(steps=9, validate_every=3, ema=0.0)
    fitted = fit(recipe, train, held_out, accelerator=accelerator)
    assert (fitted.facts.best_step, fitted.facts.best_validation_accuracy) == (6, 0.9)
    returned = embedding_function(fitted.model)(held_out.images)
    np.testing.assert_allclose(returned, embeddings[1], rtol=1e-5)
    assert np.abs(returned - embeddings[2]).max() > 1e-3


def test_where_nothing_is_held_out_the_last_weights_are_kept(
    train: PairData,
    held_out: PairData,
    accelerator: Accelerator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = tiny_recipe(steps=4, validate_every=4)
    alone = fit(recipe, train, held_out.take(np.empty(0, np.int64)), accelerator=accelerator)
    assert alone.facts.best_validation_accuracy is None
    assert alone.facts.history == []
    assert "Held-out" not in caplog.text
    validated_at_the_end = fit(recipe, train, held_out, accelerator=accelerator)
    np.testing.assert_array_equal(weights_of(alone), weights_of(validated_at_the_end))


def test_training_stops_when_patience_is_over(
    train: PairData,
    held_out: PairData,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracies = iter([0.5, 0.4, 0.4])
    monkeypatch.setattr(OneShotValidation, "accuracy", lambda self, embed: next(accuracies))
    recipe = tiny_recipe(steps=50, validate_every=2, patience=2)
    fitted = fit(recipe, train, held_out, accelerator=accelerator)
    assert (fitted.facts.steps, fitted.facts.stopped_early) == (6, True)
    assert fitted.facts.best_step == 2


def test_a_loss_that_is_no_number_is_an_error_that_names_the_step(
    train: PairData, held_out: PairData, accelerator: Accelerator
) -> None:
    initial = fit(tiny_recipe(steps=1), train, held_out, accelerator=accelerator)
    poisoned = [np.full_like(weight, np.nan) for weight in initial.model.get_weights()]
    with pytest.raises(TrainingDiverged, match=r"step \d+.*learning_rate"):
        fit(
            tiny_recipe(),
            train,
            held_out,
            accelerator=accelerator,
            initial_weights=poisoned,
        )


def test_bfloat16_and_xla_train_to_a_float32_model(train: PairData, held_out: PairData) -> None:
    accelerator = choose_accelerator(mixed_precision="on", xla="on")
    fitted = fit(tiny_recipe(steps=4), train, held_out, accelerator=accelerator)
    assert fitted.facts.mixed_precision
    assert fitted.facts.xla
    assert {weight.dtype for weight in fitted.model.get_weights()} == {np.dtype("float32")}
    assert np.isfinite(weights_of(fitted)).all()


def test_two_devices_train_together() -> None:
    script = Path(__file__).parent / "two_devices.py"
    ran = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_everything_random_follows_the_seed(
    train: PairData, held_out: PairData, accelerator: Accelerator
) -> None:
    def trained(recipe: Recipe) -> np.ndarray:
        return weights_of(fit(recipe, train, held_out, accelerator=accelerator))

    one = trained(tiny_recipe(steps=2, seed=1))
    np.testing.assert_allclose(one, trained(tiny_recipe(steps=2, seed=1)), atol=1e-5)
    assert np.abs(one - trained(tiny_recipe(steps=2, seed=2))).max() > 0.01


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    return tiny_data(tmp_path_factory.mktemp("pairs"), groups=2, classes=5)


def test_trials_have_as_many_candidates_as_the_largest_group_allows(data: PairData) -> None:
    validation = OneShotValidation(data, trials=50)
    assert (validation.protocol, validation.way) == ("within", 5)


def test_a_collapsed_embedding_scores_chance(data: PairData) -> None:
    validation = OneShotValidation(data, trials=50)
    accuracy = validation.accuracy(lambda images: np.zeros((len(images), 4), np.float32))
    assert accuracy == pytest.approx(1 / 5)


def test_an_embedding_that_knows_the_classes_scores_one(data: PairData) -> None:
    classes = {
        image.tobytes(): np.eye(10, dtype=np.float32)[number]
        for image, number in zip(data.images, data.index.row_class, strict=True)
    }
    validation = OneShotValidation(data, trials=50)
    accuracy = validation.accuracy(
        lambda images: np.stack([classes[image.tobytes()] for image in images])
    )
    assert accuracy == 1


def test_groups_of_one_class_are_compared_with_each_other(tmp_path: Path) -> None:
    validation = OneShotValidation(tiny_data(tmp_path, groups=4, classes=1), trials=20)
    assert (validation.protocol, validation.way) == ("between", 4)


def test_a_single_class_allows_no_trial(tmp_path: Path) -> None:
    assert OneShotValidation(tiny_data(tmp_path, groups=1, classes=1, pairs=1), trials=9).way == 0


def test_images_are_embedded_in_order_whatever_their_number() -> None:
    for count in (1, IMAGES_A_BATCH, 2 * IMAGES_A_BATCH + 3):
        images = np.random.default_rng(1).integers(0, 256, (count, 2, 2), np.uint8)
        embeddings = embed_all(lambda batch: batch.reshape(-1, 4).astype(np.float32), images)
        np.testing.assert_array_equal(embeddings, images.reshape(count, 4))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
def test_all_items_come_in_order(count: int) -> None:
    assert list(prefetched(lambda number: number * number, range(count))) == [
        number * number for number in range(count)
    ]


def test_the_next_items_are_made_while_one_is_in_use_and_no_more() -> None:
    made = []
    enough = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 2:
            enough.set()
        return number

    items = prefetched(make, range(100), ahead=2)
    assert next(items) == 0
    assert enough.wait(10)
    items.close()
    assert made == [0, 1, 2]


def test_an_error_comes_where_its_item_would() -> None:
    items = prefetched(lambda number: 1 // (2 - number), range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_nothing_is_made_once_it_was_closed() -> None:
    made = []
    items = prefetched(made.append, range(100))
    next(items)
    items.close()
    count = len(made)
    assert count <= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
