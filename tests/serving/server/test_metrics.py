"""What Prometheus reads."""

from prometheus_client.parser import text_string_to_metric_families

from serving.errors import Code
from serving.server.metrics import LATENCY_BUCKETS, UNKNOWN_MODEL, ServingMetrics


def samples(metrics: ServingMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def request(metrics: ServingMetrics, *, model: str = "m", code: Code = Code.OK) -> None:
    metrics.request(model=model, method="Predict", entry_point="REST", code=code, seconds=20e-6)


def test_requests_are_counted_under_tf_servings_names() -> None:
    metrics = ServingMetrics(["m"])
    request(metrics)
    request(metrics)
    request(metrics, code=Code.INVALID_ARGUMENT)
    found = samples(metrics)
    count = ":tensorflow:serving:request_count"
    ok = frozenset({("model_name", "m"), ("status", "OK")})
    bad = frozenset({("model_name", "m"), ("status", "INVALID_ARGUMENT")})
    assert found[count, ok] == 2
    assert found[count, bad] == 1
    about = frozenset({("model_name", "m"), ("API", "Predict"), ("entrypoint", "REST")})
    latency = ":tensorflow:serving:request_latency"
    assert found[f"{latency}_count", about] == 3
    assert round(found[f"{latency}_sum", about]) == 60
    assert found[f"{latency}_bucket", about | {("le", "18")}] == 0
    assert found[f"{latency}_bucket", about | {("le", "32.4")}] == 3
    assert found[f"{latency}_bucket", about | {("le", "+Inf")}] == 3


def test_the_buckets_are_those_of_tf_serving() -> None:
    assert LATENCY_BUCKETS[0] == 10
    assert 15 * 60e6 < LATENCY_BUCKETS[-1] < 25 * 60e6


def test_batches_are_counted_by_size() -> None:
    metrics = ServingMetrics(["m"])
    metrics.batch(model="m", signature="embed", size=5, padding=3, seconds=0.001)
    found = samples(metrics)
    about = frozenset({("model_name", "m"), ("op_name", "embed")})
    batches = ":tensorflow:serving:batching:processed_batch_size"
    assert found[batches, about | {("batch_size", "8")}] == 1
    assert found[":tensorflow:serving:batching:padding_size_sum", about] == 3
    runtime = frozenset({("model_name", "m"), ("API", "Predict"), ("runtime", "TF1")})
    assert found[":tensorflow:serving:runtime_latency_count", runtime] == 1


def test_names_that_clients_make_up_are_one_model() -> None:
    metrics = ServingMetrics()
    for number in range(50):
        request(metrics, model=f"no such model {number}", code=Code.NOT_FOUND)
    request(metrics, model='quoted "m"\n', code=Code.OK)
    request(metrics, model='quoted "m"\n', code=Code.NOT_FOUND)
    names = {dict(labels).get("model_name") for _, labels in samples(metrics)}
    assert names - {None} == {UNKNOWN_MODEL, 'quoted "m"\n'}


def test_the_process_is_measured_too() -> None:
    assert samples(ServingMetrics())["process_resident_memory_bytes", frozenset()] > 0
