"""Reads and replaces `models.config`, from which servers learn versions and labels."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data_ingest.durable import write_atomically
from data_ingest.errors import InputError
from pipeline.runs.workspace import Workspace
from pipeline.settings import PushSettings
from serving.deploy.models_config import STABLE, ModelEntry, models_config, read_entry
from serving.saved_model.versions import versions

_log = logging.getLogger(__name__)


class LabelFile:
    """What the file says about one model; each change replaces the file as a whole."""

    def __init__(
        self,
        workspace: Workspace,
        settings: PushSettings,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Touches nothing yet; `settings` say what servers see, and how often they look."""
        self.path = workspace.models_config
        self._name = workspace.model_name
        self._base_path = settings.server_base_path or str(workspace.serving_model)
        self._poll_seconds = settings.server_poll_seconds
        self._clock = clock
        self._sleep = sleep

    def entry(self) -> ModelEntry:
        """Labels and listed versions; empty where the file, or the model in it, is missing.

        Raises:
          InputError: it cannot be read.
        """
        try:
            return read_entry(self._text(), self._name) or ModelEntry()
        except ValueError as error:
            raise InputError(f"{self.path}: {error}; correct or delete it") from error

    def write(
        self, labels: Mapping[str, int], *, loaded: Iterable[int], there: Sequence[int]
    ) -> None:
        """Replaces what the file says about the model.

        Args:
          labels: versions by label; those that are not there are left out.
          loaded: versions to load besides, as far as they are there.
          there: the versions that can be served, not empty.
        """
        text = models_config(
            self._name,
            base_path=self._base_path,
            versions=there,
            labels={label: version for label, version in labels.items() if version in there},
            loaded=set(loaded).intersection(there),
            before=self._text(),
        )
        write_atomically(self.path, text)

    def make_loadable(self, version: int, *, there: Sequence[int]) -> None:
        """Waits until servers had the chance to load a version, so that a label can move to it.

        TF Serving refuses a file that moves a label to a version that is not loaded, as a whole:
        it would never load it (ServerCore::ReloadConfig). It gets the version first.
        """
        entry = self.entry()
        if version not in entry.loaded:
            self.write(entry.labels, loaded=entry.loaded | {version}, there=there)
        self.wait_until_read()

    def wait_until_read(self) -> None:
        """Waits until every server has read the file as it is now."""
        age = self._clock() - self.path.stat().st_mtime
        left = self._poll_seconds - max(0.0, age)
        if left > 0:
            _log.info("Waiting %.0f s, until servers have read %s", left, self.path.name)
            self._sleep(left)

    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8") if self.path.exists() else ""


def served_model(workspace: Workspace, settings: PushSettings) -> Path | None:
    """Folder of the stable version, or of the newest where none is stable; None: no versions yet.

    Raises:
      InputError: `models.config` cannot be read.
    """
    newest = max(versions(workspace.serving_model), default=None)
    version = LabelFile(workspace, settings).entry().labels.get(STABLE, newest)
    return None if version is None else workspace.serving_model / str(version)
