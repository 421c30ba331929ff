"""Checkpoints of an interrupted fit."""

import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.checkpoints import FitCheckpoint, StopSignals


def checkpoint(folder: Path, *, key: str = "settings") -> tuple[FitCheckpoint, tf.Variable]:
    variable = tf.Variable([0.0, 0.0])
    return FitCheckpoint(folder, key=key, variables={"weights": [variable]}), variable


def saved(folder: Path, *, steps: int = 1) -> None:
    writer, variable = checkpoint(folder)
    for step in range(1, steps + 1):
        variable.assign([step, 2.0])
        writer.save(step, {"step": step, "note": "ä"})


def test_variables_and_state_come_back(tmp_path: Path) -> None:
    saved(tmp_path, steps=5)
    reader, variable = checkpoint(tmp_path)
    assert reader.restore() == {"step": 5, "note": "ä"}
    np.testing.assert_array_equal(variable, [5.0, 2.0])


def test_a_checkpoint_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    saved(tmp_path)
    reader, variable = checkpoint(tmp_path, key="other settings")
    assert reader.restore() is None
    np.testing.assert_array_equal(variable, [0.0, 0.0])


def test_a_kill_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    saved(tmp_path, steps=1)
    (folder,) = tmp_path.iterdir()
    (folder / "ckpt-2.data-00000-of-00001").write_bytes(b"half")
    (folder / "ckpt-2.index").write_bytes(b"")
    reader, variable = checkpoint(tmp_path)
    assert reader.restore() == {"step": 1, "note": "ä"}
    np.testing.assert_array_equal(variable, [1.0, 2.0])


def test_a_second_ctrl_c_is_not_put_off() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert stop.came
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert not stop.came
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.came
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_damaged_checkpoint_is_dropped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path)
    (folder,) = tmp_path.iterdir()
    (data,) = folder.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:-4])
    reader, variable = checkpoint(tmp_path)
    assert reader.restore() is None
    np.testing.assert_array_equal(variable, [0.0, 0.0])
    assert not folder.exists()
    assert "damaged" in caplog.text


def test_remove_leaves_other_fits_alone(tmp_path: Path) -> None:
    saved(tmp_path)
    other, _ = checkpoint(tmp_path, key="other")
    other.save(1, {})
    other.remove()
    assert checkpoint(tmp_path, key="other")[0].restore() is None
    assert checkpoint(tmp_path)[0].restore() is not None


def test_without_a_folder_nothing_is_saved_or_restored() -> None:
    nowhere = FitCheckpoint(None, key="", variables={})
    nowhere.save(1, {"step": 1})
    assert nowhere.restore() is None
    nowhere.remove()
