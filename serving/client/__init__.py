"""Clients of a served model, over REST and gRPC, blocking and for asyncio.

`from serving.client import Client` needs httpx, numpy and Pillow, and imports neither TensorFlow
nor gRPC; the same over gRPC is in `serving.client.grpc`.
"""

from serving.client.images import Image, Images
from serving.client.rest import AsyncClient, Client
from serving.client.types import (
    ClientError,
    DeadlineExceeded,
    InvalidImage,
    InvalidRequest,
    InvalidSetting,
    Limits,
    NotFound,
    Overloaded,
    Retries,
    Scores,
    ServerError,
    Target,
    Tls,
    Unauthorized,
    Unavailable,
    VersionStatus,
)

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "Image",
    "Images",
    "InvalidImage",
    "InvalidRequest",
    "InvalidSetting",
    "Limits",
    "NotFound",
    "Overloaded",
    "Retries",
    "Scores",
    "ServerError",
    "Target",
    "Tls",
    "Unauthorized",
    "Unavailable",
    "VersionStatus",
]
