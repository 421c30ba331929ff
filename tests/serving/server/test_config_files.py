"""TF Serving's configuration files."""

from pathlib import Path

import pytest

from serving.server.batching import BatchingOptions
from serving.server.config_files import ConfigError, read_batching_parameters, read_model_config
from serving.server.models import ModelSetup
from serving.server.versions import HostOptions, Policy

MODELS = """
model_config_list {
  config {
    name: 'siamese'
    base_path: '/models/siamese'
    model_platform: 'tensorflow'
    model_version_policy { specific { versions: 3 versions: 5 } }
    version_labels { key: 'stable' value: 3 }
    version_labels { key: 'canary' value: 5 }
  }
  config { name: 'all' base_path: '/models/all' model_version_policy { all {} } }
  config { name: 'two' base_path: '/m' model_version_policy { latest { num_versions: 2 } } }
  config { name: 'plain' base_path: '/models/plain' }
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.config"


def test_models_with_policies_and_labels(file: Path) -> None:
    file.write_text(MODELS)
    defaults = HostOptions(poll_seconds=7, warmup=False)
    models = read_model_config(file, defaults=defaults)
    assert models["siamese"] == ModelSetup(
        Path("/models/siamese"),
        HostOptions(
            policy=Policy(specific=frozenset({3, 5})),
            labels={"stable": 3, "canary": 5},
            poll_seconds=7,
            warmup=False,
        ),
    )
    policies = {name: setup.options.policy for name, setup in models.items()}
    assert policies["all"] == Policy(latest=None)
    assert policies["two"] == Policy(latest=2)
    assert policies["plain"] == Policy(latest=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list { config { base_path: '/m' } }", "has no name"),
        ("model_config_list { config { name: 'a' } }", "model a has no base_path"),
        (
            "model_config_list { config { name: 'a' base_path: '/m' }"
            " config { name: 'a' base_path: '/m' } }",
            "Duplicate model name: a",
        ),
        (
            "model_config_list { config { name: 'a' base_path: '/m' model_platform: 'pt' } }",
            "not 'pt'",
        ),
        (
            "model_config_list { config { name: 'a' base_path: '/m'"
            " model_version_policy { specific {} } } }",
            "names no versions",
        ),
        ("custom_model_config { }", "Only ModelConfigList"),
        ("", "Only ModelConfigList"),
        ("model_config_list { confg { } }", "confg"),
        ("\x00\xff", "models.config"),
    ],
)
def test_what_is_wrong_with_a_list_of_models_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message) as error:
        read_model_config(file, defaults=HostOptions())
    assert str(file) in str(error.value)


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.config"):
        read_model_config(file, defaults=HostOptions())


def test_batching_parameters_replace_the_defaults_that_they_name(file: Path) -> None:
    file.write_text(
        "max_batch_size { value: 16 }\n"
        "batch_timeout_micros { value: 0 }\n"
        "num_batch_threads { value: 3 }\n"
        "allowed_batch_sizes: 1\nallowed_batch_sizes: 16\n"
        "pad_variable_length_inputs: true\n"
        "thread_pool_name { value: 'here' }\n"
    )
    defaults = BatchingOptions(max_enqueued_batches=9, batch_timeout_micros=5)
    assert read_batching_parameters(file, defaults=defaults) == BatchingOptions(
        max_batch_size=16,
        batch_timeout_micros=0,
        max_enqueued_batches=9,
        num_batch_threads=3,
        allowed_batch_sizes=(1, 16),
    )


def test_split_batches_have_the_size_that_is_executed(file: Path) -> None:
    file.write_text(
        "max_batch_size { value: 1000 } enable_large_batch_splitting { value: true }\n"
        "max_execution_batch_size { value: 32 } allowed_batch_sizes: 8 allowed_batch_sizes: 32\n"
    )
    options = read_batching_parameters(file, defaults=BatchingOptions())
    assert (options.max_batch_size, options.allowed_batch_sizes) == (32, (8, 32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size: at least 1"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "ending with max_batch_size"),
        ("max_batch { value: 8 }", "max_batch"),
        ("max_batch_size: 8", "max_batch_size"),
    ],
)
def test_what_is_wrong_with_batching_parameters_is_named(
    file: Path, text: str, message: str
) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_batching_parameters(file, defaults=BatchingOptions())
