"""The images of a run in a cluster: which they are, and under which path it sees them."""

from dataclasses import dataclass, replace
from pathlib import Path

from data_ingest.dataset import Dataset
from data_ingest.errors import InputError
from data_ingest.span_store import SpanStore


@dataclass(frozen=True)
class PathMap:
    """A folder here, and what the containers see it as."""

    here: Path
    there: Path

    @classmethod
    def parse(cls, text: str | None) -> "PathMap":
        """Reads `HERE=THERE`; None: paths are the same there.

        Raises:
          InputError: the text is not of that form, or THERE is not absolute.
        """
        if text is None:
            return cls(Path("/"), Path("/"))
        here, _, there = text.partition("=")
        if not here or not there.startswith("/"):
            raise InputError(
                f"--map {text}: write it as HERE=THERE, a folder here and the absolute path under "
                "which the containers see it"
            )
        return cls(Path(here).absolute(), Path(there))

    def to_cluster(self, dataset: Dataset) -> Dataset:
        """The same images as the containers see them.

        Raises:
          InputError: they are not in the folder here.
        """
        if dataset.base == self.here.parent and [*dataset.inputs.values()] == [self.here.name]:
            # The folder here is all there is: images of one's own.
            inputs = dict.fromkeys(dataset.inputs, self.there.name)
            return replace(dataset, base=self.there.parent, inputs=inputs)
        if not dataset.base.is_relative_to(self.here):
            raise InputError(
                f"{dataset.base} is not in {self.here}: --map has to name a folder that the "
                "images are in"
            )
        return replace(dataset, base=self.there / dataset.base.relative_to(self.here))

    def from_cluster(self, path: Path) -> Path:
        """Where a folder of the cluster's is here.

        Raises:
          InputError: it is not in the folder there.
        """
        if not path.is_relative_to(self.there):
            raise InputError(f"--map: {path} is not in {self.there}")
        return self.here / path.relative_to(self.there)


def newest_window(folder: Path, length: int) -> Dataset:
    """The images to train on when the newest span has landed.

    Args:
      folder: of the spans that `oneshot ingest` landed.
      length: newest spans to train on; 0: all.

    Raises:
      InputError: there is no span to train on.
    """
    store = SpanStore(folder)
    numbers = [span.number for span in store.spans() if span.excluded is None]
    if not numbers:
        raise InputError(f"{folder}: no span to train on; `oneshot ingest` lands one")
    return store.window(max(numbers), length)
