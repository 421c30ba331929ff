"""Saves and restores a fit, so that a killed training goes on where it was."""

import hashlib
import json
import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import tensorflow as tf

_log = logging.getLogger(__name__)


class StopSignals:
    """Puts off signals that end the process, so that a checkpoint can be written before they do.

    A second Ctrl-C is not put off. Threads other than the main one get no signals.
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                # None is a handler that was not set from Python.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def came(self) -> bool:
        """Whether it is time to stop."""
        return self._number != 0

    def obey(self) -> None:
        """Lets the signal that came do what it would have done."""
        number, self._number = self._number, 0
        signal.signal(number, self._before[number])
        signal.raise_signal(number)

    def _note(self, number: int, _frame: object) -> None:
        again = self._number == number == signal.SIGINT
        self._number = number
        if again:
            self.obey()


class FitCheckpoint:
    """Variables and a JSON state, saved together and restored together.

    A save becomes visible by an atomic rename of the folder's `checkpoint` file after all data
    are written, so a kill at any moment leaves the previous one. The folder is named after the
    key: a checkpoint of other settings or other data is never picked up.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        *,
        key: str,
        variables: Mapping[str, Sequence[tf.Variable]],
    ) -> None:
        """
        Args:
          directory: stable folder, local or `gs://…`, the same for the interrupted and the
            continuing run; None turns checkpoints off.
          key: text of whatever the fit depends on.
          variables: by name; the same names, numbers and shapes when restored.
        """
        self._folder: str | None = None
        if directory is None:
            return
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        self._folder = f"{os.fspath(directory).rstrip('/')}/{name}"
        self._state = tf.Variable("{}", dtype=tf.string, trainable=False)
        held = {name: list(listed) for name, listed in variables.items()}
        self._checkpoint = tf.train.Checkpoint(state=self._state, **held)
        self._manager = tf.train.CheckpointManager(self._checkpoint, self._folder, max_to_keep=2)

    def restore(self) -> dict[str, Any] | None:
        """Sets the variables to those of the last save and returns its state; None without one.

        A damaged checkpoint (a full disk, a power cut) is deleted, with a warning, and counts as
        none.
        """
        if self._folder is None or self._manager.latest_checkpoint is None:
            return None
        try:
            # All of it is read before any variable is touched, so that none is half restored.
            # (tf.train.load_checkpoint asks for a glob, which not every file system has.)
            reader = tf.compat.v1.train.NewCheckpointReader(self._manager.latest_checkpoint)
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
        except (tf.errors.OpError, ValueError, LookupError, RuntimeError):
            _log.warning(f"The checkpoint in {self._folder} is damaged: training starts anew.")
            self.remove()
            return None
        self._checkpoint.restore(self._manager.latest_checkpoint).assert_consumed()
        state: dict[str, Any] = json.loads(self._state.numpy())
        return state

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Writes the variables and the JSON-able state."""
        if self._folder is not None:
            self._state.assign(json.dumps(state))
            self._manager.save(checkpoint_number=step)

    def remove(self) -> None:
        """Deletes this fit's folder."""
        if self._folder is not None:
            with suppress(tf.errors.OpError):
                tf.io.gfile.rmtree(self._folder)
