"""Loads an exported model the way TF Serving does: the TF1 loader and a Session."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

_WILDCARDS: Final = frozenset("*?[\\")


class LoadedModel:
    """An exported model in a Session of its own.

    `tf.saved_model.load` accepts exports that TF Serving cannot: those of
    `tf.saved_model.save(keras_model)` load there, and here fail with "Could not find variable" at
    the first request. So this is the loader to check an export with.

    Example:
      with LoadedModel(Path("output/serving_model/siamese/1700000000")) as model:
          embedding = model.run("embed", {"image": np.array([png])})["embedding"]
    """

    def __init__(self, directory: Path) -> None:
        """Loads the graph and its variables.

        Raises:
          OSError: there is no SavedModel in `directory`.
          tf.errors.OpError: it is damaged.
        """
        self.directory = directory
        graph = tf.Graph()
        with graph.as_default(), _loadable(directory) as path:
            self._session = tf.compat.v1.Session(graph=graph)
            try:
                meta_graph = tf.compat.v1.saved_model.loader.load(
                    self._session, [tf.saved_model.SERVING], str(path)
                )
            except BaseException:
                self._session.close()
                raise
        # With types, shapes and method names, and with what initialises the model.
        self.signature_defs: dict[str, Any] = dict(meta_graph.signature_def)
        self.signatures = {
            name: definition
            for name, definition in self.signature_defs.items()
            if not name.startswith("__")
        }

    def run(
        self, signature: str, inputs: Mapping[str, npt.ArrayLike]
    ) -> dict[str, npt.NDArray[Any]]:
        """Calls a signature.

        Args:
          signature: one of `signatures`.
          inputs: by input name; strings as `bytes` in an object array or a list.

        Raises:
          KeyError: there is no such signature, or the input names are not its own.
          tf.errors.InvalidArgumentError: the graph refuses the values.
          tf.errors.OpError: anything else that the graph raises.
        """
        if signature not in self.signatures:
            raise KeyError(f"no signature {signature!r}; there are {sorted(self.signatures)}")
        definition = self.signatures[signature]
        if set(inputs) != set(definition.inputs):
            raise KeyError(f"{signature} takes {sorted(definition.inputs)}, not {sorted(inputs)}")
        fed = {definition.inputs[name].name: _as_array(value) for name, value in inputs.items()}
        fetched = {name: info.name for name, info in definition.outputs.items()}
        outputs: dict[str, npt.NDArray[Any]] = self._session.run(fetched, fed)
        return outputs

    def close(self) -> None:
        """Frees the session; the model cannot be used afterwards."""
        self._session.close()

    def __enter__(self) -> "LoadedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _loadable(directory: Path) -> Iterator[Path]:
    """The folder under a path that TensorFlow does not take for a pattern."""
    if not _WILDCARDS & set(str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "model")
        link.symlink_to(directory.absolute(), target_is_directory=True)
        yield link


def _as_array(value: npt.ArrayLike) -> npt.NDArray[Any]:
    # numpy's fixed-width bytes would lose trailing zero bytes of an image.
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return np.array(value, dtype=object)
    return np.asarray(value)
