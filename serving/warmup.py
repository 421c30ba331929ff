"""Replays the warm-up requests of a version before it is served."""

from pathlib import Path
from typing import Final

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.errors import Code, ServingError
from serving.loader import LoadedModel
from serving.tensors import array_from_proto

WARMUP_FILE: Final = Path("assets.extra/tf_serving_warmup_requests")
MAX_RECORDS: Final = 1000


def replay_warmup(model: LoadedModel, folder: Path) -> int:
    """Runs every request of `assets.extra/tf_serving_warmup_requests`.

    Returns:
      How many there were; 0 without the file.

    Raises:
      ServingError: as in TF Serving the version cannot be served: more than 1,000 requests, one
        that is not a Predict request, or one that the model refuses.
    """
    path = folder / WARMUP_FILE
    if not path.is_file():
        return 0
    count = 0
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        if count == MAX_RECORDS:
            raise ServingError(
                Code.INVALID_ARGUMENT,
                f"Number of warmup records exceeds the maximum ({MAX_RECORDS}): {WARMUP_FILE.name}",
            )
        log = prediction_log_pb2.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind != "predict_log":
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
        request = log.predict_log.request
        inputs = {
            name: array_from_proto(tensor, name=name) for name, tensor in request.inputs.items()
        }
        model.run(request.model_spec.signature_name or "serving_default", inputs)
        count += 1
    return count
