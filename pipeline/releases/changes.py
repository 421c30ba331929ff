"""Records in ML Metadata what became of versions: labels given, versions rolled back."""

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal

from ml_metadata import MetadataStore
from ml_metadata.proto.metadata_store_pb2 import Artifact, Event, Execution, ExecutionType

from components.pusher.pushed_models import (
    MODEL_ID,
    ROLLED_BACK,
    custom_int,
    custom_text,
    is_pushed,
    pushed_version,
    rolled_back,
)

Action = Literal["promote", "rollback"]
_TYPE: Final = "oneshot.Promotion"
_MODEL: Final = "model_name"


@dataclass(frozen=True)
class Change:
    """One promotion or rollback.

    Attributes:
      id: unique; of two changes the later one has the greater id.
      action: `promote` or `rollback`.
      labels: those that were given to another version; a rollback may move several, or none.
      version: the one promoted, or rolled back.
      previous: which had the label before, or, of a rollback, which took the place of `version`.
      who: user and host.
      why: in that person's words.
      when: seconds since 1970.
    """

    id: str
    action: Action
    labels: tuple[str, ...]
    version: int
    previous: int | None
    who: str
    why: str
    when: float

    @property
    def serves(self) -> int | None:
        """The version that had the labels afterwards."""
        return self.version if self.action == "promote" else self.previous

    @property
    def withdrawn(self) -> int | None:
        """The version that was taken out of service; None: none."""
        return self.version if self.action == "rollback" else None

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Change":
        """Inverse of `dataclasses.asdict` after a trip through JSON."""
        return Change(**{**values, "labels": tuple(values["labels"])})

    def __str__(self) -> str:
        day = datetime.fromtimestamp(self.when, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        verb = "promoted" if self.action == "promote" else "rolled back"
        reason = f": {self.why}" if self.why else ""
        return f"version {self.version} was {verb} by {self.who} on {day}{reason}"


class PromotionHistory:
    """The changes of one served model. Each is an execution of type `oneshot.Promotion`."""

    def __init__(self, store: MetadataStore, name: str) -> None:
        """Reads and writes nothing yet.

        Args:
          store: ML Metadata, which may hold the history of models of other names too.
          name: of the model on the server, and of the folder of its versions.
        """
        self._store = store
        self._name = name

    def changes(self) -> list[Change]:
        """All changes, the oldest first."""
        found = []
        for execution in self._store.get_executions_by_type(_TYPE):
            values = execution.custom_properties
            if values[_MODEL].string_value == self._name:
                change = Change(
                    id=execution.name,
                    action=values["action"].string_value,
                    labels=tuple(values["labels"].string_value.split()),
                    version=values["version"].int_value,
                    previous=values["previous"].int_value or None,
                    who=values["who"].string_value,
                    why=values["why"].string_value,
                    when=values["when"].double_value,
                )
                found.append(change)
        return sorted(found, key=lambda change: change.id)

    def record(self, change: Change) -> None:
        """Writes a change; without effect where it is written already."""
        if self._store.get_execution_by_type_and_name(_TYPE, change.id) is not None:
            return
        execution = Execution(
            type_id=self._store.put_execution_type(ExecutionType(name=_TYPE)),
            name=change.id,
            last_known_state=Execution.COMPLETE,
        )
        values = {
            **asdict(change),
            "labels": " ".join(change.labels),
            "previous": change.previous or 0,
            _MODEL: self._name,
        }
        del values["id"]
        for name, value in values.items():
            kind = {int: "int_value", float: "double_value"}.get(type(value), "string_value")
            setattr(execution.custom_properties[name], kind, value)
        pushes = [
            (push, Event(artifact_id=push.id, type=Event.INPUT))
            for push in self._pushes(change.version)
        ]
        self._store.put_execution(execution, pushes, [])

    def mark_rolled_back(self, change: Change) -> None:
        """Notes on the Model artifacts of `change.version` that they no longer count."""
        ids = [custom_int(push, MODEL_ID) for push in self._pushes(change.version)]
        models = [model for model in self._store.get_artifacts_by_id(ids) if not rolled_back(model)]
        for model in models:
            model.custom_properties[ROLLED_BACK].string_value = str(change)
        if models:
            self._store.put_artifacts(models, [f"custom_properties.{ROLLED_BACK}"])

    def renew_marks(self) -> None:
        """Marks again what a run under way has written back as it had read it before."""
        for change in self.changes():
            if change.withdrawn is not None:
                self.mark_rolled_back(change)

    def _pushes(self, version: int) -> list[Artifact]:
        """The PushedModel artifacts of a version of this model, whatever their state."""
        return [
            artifact
            for artifact in self._store.get_artifacts_by_type("PushedModel")
            if is_pushed(artifact)
            and Path(custom_text(artifact, "pushed_destination")).parent.name == self._name
            and pushed_version(artifact) == version
        ]
