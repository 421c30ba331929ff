"""gRPC's own rules: model specs, filters, ways to write a tensor, methods that REST has not."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
)

from tests.serving.contract.api import GrpcApi, Refused
from tests.serving.contract.images import drawings


def request(grpc_api: GrpcApi, signature: str = "") -> predict_pb2.PredictRequest:
    made = predict_pb2.PredictRequest(model_spec=grpc_api.spec(signature=signature))
    for name in ("image_a", "image_b"):
        made.inputs[name].CopyFrom(tf.make_tensor_proto(drawings(2)))
    return made


def code_of(grpc_api: GrpcApi, method: object, message: object) -> grpc.StatusCode | None:
    with pytest.raises(Refused) as caught:
        grpc_api.call(method, message)
    return caught.value.code


def test_the_reply_names_model_version_and_signature(grpc_api: GrpcApi) -> None:
    reply = grpc_api.call(grpc_api.predictions.Predict, request(grpc_api))
    assert reply.model_spec.name == request(grpc_api).model_spec.name
    assert reply.model_spec.signature_name == "serving_default"
    assert reply.model_spec.version.value in {entry.version for entry in grpc_api.status()}


def test_outputs_are_float32_with_a_shape(grpc_api: GrpcApi) -> None:
    reply = grpc_api.call(grpc_api.predictions.Predict, request(grpc_api))
    for name in ("score", "logit"):
        assert reply.outputs[name].dtype == tf.float32.as_datatype_enum
        assert [dim.size for dim in reply.outputs[name].tensor_shape.dim] == [2]


def test_a_filter_chooses_outputs(grpc_api: GrpcApi) -> None:
    message = request(grpc_api)
    message.output_filter.append("logit")
    assert list(grpc_api.call(grpc_api.predictions.Predict, message).outputs) == ["logit"]


@pytest.mark.parametrize("names", [["no_such_output"], ["logit", "logit"]])
def test_a_wrong_filter_is_an_invalid_argument(grpc_api: GrpcApi, names: list[str]) -> None:
    message = request(grpc_api)
    message.output_filter.extend(names)
    code = code_of(grpc_api, grpc_api.predictions.Predict, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_input_is_an_invalid_argument(grpc_api: GrpcApi) -> None:
    message = request(grpc_api)
    message.inputs["image_c"].CopyFrom(message.inputs["image_a"])
    code = code_of(grpc_api, grpc_api.predictions.Predict, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_numbers_may_be_bytes_or_fields(grpc_api: GrpcApi) -> None:
    vectors = grpc_api.predict("embed", {"image": drawings(2)})["embedding"]
    answers = []
    for as_bytes in (True, False):
        message = predict_pb2.PredictRequest(model_spec=grpc_api.spec(signature="match"))
        for name in ("embedding_a", "embedding_b"):
            proto = tf.make_tensor_proto(vectors)
            assert proto.tensor_content
            if not as_bytes:
                proto.tensor_content = b""
                proto.float_val.extend(vectors.ravel().tolist())
            message.inputs[name].CopyFrom(proto)
        reply = grpc_api.call(grpc_api.predictions.Predict, message)
        answers.append(tf.make_ndarray(reply.outputs["logit"]))
    np.testing.assert_allclose(answers[0], answers[1])


def test_a_tensor_that_contradicts_itself_is_an_invalid_argument(grpc_api: GrpcApi) -> None:
    message = predict_pb2.PredictRequest(model_spec=grpc_api.spec(signature="match"))
    for name in ("embedding_a", "embedding_b"):
        proto = tf.make_tensor_proto(np.zeros((2, 8), np.float32))
        proto.tensor_content = proto.tensor_content[:-3]
        message.inputs[name].CopyFrom(proto)
    code = code_of(grpc_api, grpc_api.predictions.Predict, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_request_without_a_model_is_an_invalid_argument(grpc_api: GrpcApi) -> None:
    for method, message in (
        (grpc_api.predictions.Predict, predict_pb2.PredictRequest()),
        (grpc_api.models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest()),
        (
            grpc_api.predictions.GetModelMetadata,
            get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"]),
        ),
    ):
        assert code_of(grpc_api, method, message) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("fields", [[], ["no_such_field"]])
def test_metadata_has_one_field_only(grpc_api: GrpcApi, fields: list[str]) -> None:
    message = get_model_metadata_pb2.GetModelMetadataRequest(
        model_spec=grpc_api.spec(), metadata_field=fields
    )
    code = code_of(grpc_api, grpc_api.predictions.GetModelMetadata, message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_multi_inference_finds_no_signature_for_its_methods(grpc_api: GrpcApi) -> None:
    message = inference_pb2.MultiInferenceRequest()
    message.tasks.add(model_spec=grpc_api.spec(), method_name="tensorflow/serving/classify")
    message.input.example_list.examples.add()
    code = code_of(grpc_api, grpc_api.predictions.MultiInference, message)
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)


def test_a_deadline_that_has_passed_is_noticed(grpc_api: GrpcApi) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        grpc_api.predictions.Predict(request(grpc_api), timeout=1e-6)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
