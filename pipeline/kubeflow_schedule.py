"""Definitions of recurring runs: Kubeflow's API and Vertex AI's."""

import re
from typing import TYPE_CHECKING, Any, Final

from data_ingest.errors import InputError

if TYPE_CHECKING:
    from pipeline.kubeflow import CompiledPipeline

_FIELDS: Final = ("minute", "hour", "day of the month", "month", "day of the week")
_FIELD: Final = re.compile(r"[0-9A-Za-z*,/-]+")


def recurring_run(compiled: "CompiledPipeline", cron: str, *, name: str) -> dict[str, Any]:
    """Body of `POST /apis/v2beta1/recurringruns` of open-source Kubeflow Pipelines.

    One run at a time, and none for the times at which the cluster was away.

    Args:
      compiled: what is run; it is part of the definition, nothing is uploaded before.
      cron: five fields, in the cluster's time zone.
      name: shown in the list of recurring runs.

    Raises:
      InputError: `cron` has not five fields.
    """
    body: dict[str, Any] = {
        "display_name": name,
        "mode": "ENABLE",
        "max_concurrency": "1",
        "no_catchup": True,
        # Kubeflow's first field is the second.
        "trigger": {"cron_schedule": {"cron": f"0 {checked_cron(cron)}"}},
        "pipeline_spec": (
            {"pipeline_spec": compiled.spec, "platform_spec": compiled.platform}
            if compiled.platform
            else compiled.spec
        ),
    }
    root = compiled.spec.get("defaultPipelineRoot")
    if root:
        body["runtime_config"] = {"pipeline_root": root}
    return body


def vertex_schedule(
    compiled: "CompiledPipeline", cron: str, *, name: str, project: str, location: str
) -> dict[str, Any]:
    """Body of `POST …/projects/PROJECT/locations/LOCATION/schedules` of Vertex AI.

    One run at a time; a time at which the last one still runs is left out.

    Raises:
      InputError: `cron` has not five fields.
    """
    return {
        "displayName": name,
        "cron": checked_cron(cron),
        "maxConcurrentRunCount": "1",
        "allowQueueing": False,
        "createPipelineJobRequest": {
            "parent": f"projects/{project}/locations/{location}",
            "pipelineJob": compiled.job,
        },
    }


def checked_cron(cron: str) -> str:
    """The five fields of a cron line, one space apart.

    Raises:
      InputError: there are more or fewer, or one holds characters that have no meaning there.
    """
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        raise InputError(
            f"--schedule {cron!r}: give five fields ({', '.join(_FIELDS)}), e.g. '0 3 * * *'"
        )
    for name, field in zip(_FIELDS, fields, strict=True):
        if not _FIELD.fullmatch(field):
            raise InputError(f"--schedule {cron!r}: {field!r} is no {name}")
    return " ".join(fields)
