"""A client's requests and answers in TF Serving's REST API, as bytes."""

import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from serving.client_errors import ClientError, ServerError, error_of_http
from serving.client_types import (
    Floats,
    GetMetadata,
    GetStatus,
    Predict,
    Request,
    Target,
    VersionStatus,
)
from serving.errors import Code

LONGEST_ERROR = 1024


class HttpRequest(NamedTuple):
    """What to send; the path begins with a slash."""

    method: str
    path: str
    body: bytes | None


def write_request(request: Request) -> HttpRequest:
    """The request in the API's column format, images in base64."""
    if isinstance(request, Predict):
        body = {
            "signature_name": request.signature,
            "inputs": {name: _column(value) for name, value in request.inputs.items()},
        }
        path = f"{_path(request.target)}:predict"
        return HttpRequest("POST", path, json.dumps(body, separators=(",", ":")).encode())
    if isinstance(request, GetMetadata):
        return HttpRequest("GET", f"{_path(request.target)}/metadata", None)
    # Statuses know versions, not labels.
    unlabelled = Target(request.target.model, version=request.target.version)
    return HttpRequest("GET", _path(unlabelled), None)


def read_answer(request: Request, status: int, headers: Mapping[str, str], body: bytes) -> Any:
    """What `request` is answered by.

    Raises:
      ClientError: the status is not 200, or the body is not what the request asks for.
    """
    if status != 200:
        raise _read_error(status, headers, body)
    try:
        answer = json.loads(body)
        if isinstance(request, Predict):
            return _read_outputs(request, answer["outputs"])
        if isinstance(request, GetStatus):
            return [_read_status(entry) for entry in answer["model_version_status"]]
        return int(answer["model_spec"]["version"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ServerError(
            f"the answer is not one of TF Serving's: {type(error).__name__}: {error}"
        ) from error


def _path(target: Target) -> str:
    path = f"/v1/models/{quote(target.model, safe='')}"
    if target.version is not None:
        return f"{path}/versions/{target.version}"
    if target.label is not None:
        return f"{path}/labels/{quote(target.label, safe='')}"
    return path


def _column(value: list[bytes] | Floats) -> list[Any]:
    if isinstance(value, np.ndarray):
        column: list[Any] = value.tolist()
        return column
    return [{"b64": base64.b64encode(image).decode("ascii")} for image in value]


def _read_outputs(request: Predict, outputs: Any) -> dict[str, Floats]:
    # A single output comes without its name.
    if len(request.outputs) == 1 and not isinstance(outputs, dict):
        outputs = {request.outputs[0]: outputs}
    return {name: np.array(outputs[name], np.float32) for name in request.outputs}


def _read_status(entry: Mapping[str, Any]) -> VersionStatus:
    status = entry.get("status", {})
    name = status.get("error_code", "OK")
    code = Code[name] if name in Code.__members__ else Code.UNKNOWN
    return VersionStatus(
        int(entry["version"]), str(entry["state"]), code, str(status.get("error_message", ""))
    )


def _read_error(status: int, headers: Mapping[str, str], body: bytes) -> ClientError:
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        # A proxy's page, not TF Serving's answer.
        message = body[:LONGEST_ERROR].decode("utf-8", "replace").strip() or "no explanation"
    try:
        retry_after = max(0.0, float(headers.get("retry-after", "")))
    except ValueError:  # absent, or a date
        retry_after = None
    return error_of_http(status, message, retry_after=retry_after)
