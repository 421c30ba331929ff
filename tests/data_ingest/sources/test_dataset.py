from pathlib import Path

import pytest
from tfx.components.example_gen import utils
from tfx.proto import example_gen_pb2

from data_ingest.errors import InputError
from data_ingest.sources.dataset import has_span, latest, split_at_span


def make(base: Path, *names: str) -> None:
    for name in names:
        (base / name).mkdir(parents=True)


def test_a_path_is_split_before_its_first_token() -> None:
    path = Path("/data/{SPAN:3}/v{VERSION}/images")
    assert has_span(path)
    assert split_at_span(path) == (Path("/data"), "{SPAN:3}/v{VERSION}/images")
    assert not has_span(Path("/data/SPAN/{other}"))


@pytest.mark.parametrize(
    ("pattern", "names", "newest"),
    [
        ("span-{SPAN}", ["span-2", "span-10", "span-x", "other-99"], "span-10"),
        ("{SPAN:3}/images", ["002/images", "010/images", "999/elsewhere"], "010/images"),
        ("{SPAN}/v{VERSION}/i", ["1/v9/i", "2/v2/i", "2/v11/i"], "2/v11/i"),
        ("{YYYY}-{MM}-{DD}", ["2023-12-31", "2024-01-02", "2024-01-01"], "2024-01-02"),
    ],
)
def test_the_latest_span_is_the_one_that_tfx_takes(
    tmp_path: Path, pattern: str, names: list[str], newest: str
) -> None:
    make(tmp_path, *names)
    assert latest(tmp_path, pattern) == tmp_path / newest
    if "span-x" not in names:
        split = example_gen_pb2.Input.Split(name="images", pattern=pattern)
        _, span, version = utils.calculate_splits_fingerprint_span_and_version(
            f"{tmp_path}/", [split]
        )
        chosen = utils.get_pattern_for_span_version(
            pattern, "{SPAN" in pattern, "{YYYY}" in pattern, "{VERSION" in pattern, span, version
        )
        assert chosen == newest


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{SPAN}/{SPAN}", "twice"),
        ("{VERSION}", "needs a {SPAN}"),
        ("{YYYY}-{MM}", "all of {YYYY}"),
        ("{SPAN}-{YYYY}-{MM}-{DD}", "either {SPAN}"),
        ("nothing-{SPAN}", "nothing matches"),
        ("[1]*-{SPAN}", "has [*] [\\[] [\\]] besides, which would be taken for wildcards"),
    ],
)
def test_an_impossible_pattern_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    make(tmp_path, "span-1")
    with pytest.raises(InputError, match=message):
        latest(tmp_path, pattern)
