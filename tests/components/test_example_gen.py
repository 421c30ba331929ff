import errno
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tfx.v1 as tfx
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from PIL import Image
from tfx.orchestration import metadata

from components.example_gen import PairExampleGen, make_input_config
from data_ingest.errors import InputError, ReadError
from data_ingest.records import write
from data_ingest.records.features import read_pairs
from data_ingest.records.plan import Shard
from data_ingest.settings import PairSettings
from data_ingest.sources.faces import SIDE
from data_ingest.spans.store import SpanStore
from tests.data_ingest.tiny_images import omniglot_tree, png, write_folder, write_zip
from tests.drawn_face import drawn_face

BEAM_ARGS = [
    "--runner=FnApiRunner",
    "--sdk_container_image=none",
]
SETTINGS = PairSettings(
    train_pairs=40,
    eval_pairs=10,
    verification_pairs=10,
    ways=(3,),
    within_trials=3,
    between_trials=3,
)


class Runs:
    """Runs of a pipeline of PairExampleGen alone, with one metadata store and caching on."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "artifacts"
        self._database = str(folder / "metadata.db")

    def run(
        self,
        base: Path,
        inputs: Mapping[str, str],
        *,
        source_hash: str = "code",
        share: float = 0.0,
        mode: str = "in_memory",
        **options: Any,
    ) -> None:
        node = PairExampleGen(
            input_base=str(base),
            input_config=make_input_config(inputs),
            pair_settings=SETTINGS,
            max_rejected_share=share,
            source_hash=source_hash,
            **options,
        )
        tfx.orchestration.LocalDagRunner().run(
            tfx.dsl.Pipeline(
                pipeline_name="pairs",
                pipeline_root=str(self.root),
                components=[node],
                enable_cache=True,
                metadata_connection_config=metadata.sqlite_metadata_connection_config(
                    self._database
                ),
                beam_pipeline_args=[*BEAM_ARGS, f"--direct_running_mode={mode}"],
            )
        )

    def states(self) -> list[str]:
        state = metadata_store_pb2.Execution.State
        return [
            state.Name(execution.last_known_state) for execution in self._store().get_executions()
        ]

    def artifacts(self) -> list[metadata_store_pb2.Artifact]:
        found: list[metadata_store_pb2.Artifact] = self._store().get_artifacts_by_type("Examples")
        return found

    def _store(self) -> MetadataStore:
        return MetadataStore(metadata.sqlite_metadata_connection_config(self._database))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


TREE = omniglot_tree("letters", groups=4, classes=3, writers=3)


def test_the_artifact_has_the_three_splits_and_nothing_else_in_their_folders(
    runs: Runs, tmp_path: Path
) -> None:
    write_zip(tmp_path / "data/images.zip", TREE)
    runs.run(tmp_path / "data", {"images": "images.zip"})
    (artifact,) = runs.artifacts()
    assert artifact.properties["split_names"].string_value == '["train", "eval", "one_shot"]'
    assert artifact.custom_properties["payload_format"].string_value == "FORMAT_TF_EXAMPLE"
    assert artifact.custom_properties["file_format"].string_value == "tfrecords_gzip"
    found = sorted(path.relative_to(artifact.uri).as_posix() for path in files(Path(artifact.uri)))
    assert found == [
        "Split-eval/data_tfrecord-00000-of-00001.gz",
        "Split-one_shot/data_tfrecord-00000-of-00002.gz",
        "Split-one_shot/data_tfrecord-00001-of-00002.gz",
        "Split-train/data_tfrecord-00000-of-00001.gz",
        "copies.jsonl",
        "rejected.jsonl",
        "sampling.json",
    ]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_unchanged_images_are_served_from_the_cache_even_if_copied_afresh(
    runs: Runs, tmp_path: Path
) -> None:
    archive = write_zip(tmp_path / "data/images.zip", TREE)
    runs.run(tmp_path / "data", {"images": "images.zip"})
    os.utime(archive, (1, 1))
    runs.run(tmp_path / "data", {"images": "images.zip"})
    assert runs.states() == ["COMPLETE", "CACHED"]
    assert len(runs.artifacts()) == 1


def test_an_image_changed_deep_in_a_folder_or_changed_code_is_read_again(
    runs: Runs, tmp_path: Path
) -> None:
    """TFX's own fingerprint of a folder does not see a change in a folder inside it."""
    folder = write_folder(tmp_path / "data/images", TREE)
    changed = folder / sorted(TREE)[0]
    runs.run(tmp_path / "data", {"images": "images"})
    before = folder.stat().st_mtime
    changed.write_bytes(TREE[sorted(TREE)[0]] + b"\0")
    os.utime(changed, (2, 2))
    assert folder.stat().st_mtime == before
    runs.run(tmp_path / "data", {"images": "images"})
    runs.run(tmp_path / "data", {"images": "images"}, source_hash="other code")
    assert runs.states() == ["COMPLETE"] * 3


def test_the_latest_span_and_version_are_read_however_they_are_padded(
    runs: Runs, tmp_path: Path
) -> None:
    for span, version in (("01", "1"), ("9", "1"), ("010", "1"), ("010", "02")):
        tree = omniglot_tree(f"span{span}v{version}-", groups=4, classes=3, writers=2)
        write_folder(tmp_path / f"data/span-{span}/v{version}/images", tree)
    runs.run(tmp_path / "data", {"images": "span-{SPAN}/v{VERSION}/images"})
    (artifact,) = runs.artifacts()
    assert artifact.custom_properties["span"].int_value == 10
    assert artifact.custom_properties["version"].int_value == 2
    assert "span010v02-0" in (Path(artifact.uri) / "sampling.json").read_text()


def photo_file(root: Path, number: int) -> Path:
    """Where the photo of one of twelve people lies in `data/images`."""
    folder = root / f"data/images/person{number % 12}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{number}.jpg"


def test_photos_are_stored_reduced_and_the_artifact_says_that_they_are_photos(
    runs: Runs, tmp_path: Path
) -> None:
    for number in range(48):
        Image.effect_noise((500, 300), 50 + number).save(photo_file(tmp_path, number))
    runs.run(tmp_path / "data", {"images": "images"}, kind="photo", max_side=100)
    (artifact,) = runs.artifacts()
    assert json.loads((Path(artifact.uri) / "sampling.json").read_text())["kind"] == "photo"
    pairs = list(read_pairs(Path(artifact.uri) / "Split-train"))
    images = [Image.open(io.BytesIO(pair.image_a)) for pair in pairs]
    assert {(image.format, max(image.size)) for image in images} == {("JPEG", 100)}


def test_of_photos_the_face_is_stored_and_those_without_one_are_listed(
    runs: Runs, tmp_path: Path
) -> None:
    for number in range(24):
        face = drawn_face(size=(400, 300), at=(150 + 5 * number, 150), radius=50.0 + number)
        face.save(photo_file(tmp_path, number))
    Image.effect_noise((400, 300), 60).save(photo_file(tmp_path, 35))
    runs.run(tmp_path / "data", {"images": "images"}, kind="photo", crop="face", share=0.1)
    (artifact,) = runs.artifacts()
    pairs = list(read_pairs(Path(artifact.uri) / "Split-train"))
    images = [Image.open(io.BytesIO(pair.image_a)) for pair in pairs]
    assert {image.size for image in images} == {(SIDE, SIDE)}
    (rejected,) = (Path(artifact.uri) / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["reason"] == "no face found"


def test_a_window_of_spans_is_read_and_then_served_from_the_cache(
    runs: Runs, tmp_path: Path
) -> None:
    store = SpanStore(tmp_path / "spans")
    for number in (1, 2, 3):
        tree = omniglot_tree(f"span{number}-", groups=4, classes=3, writers=2)
        source = write_zip(tmp_path / f"{number}.zip", tree)
        store.land(number, [source], pairs=SETTINGS, max_rejected_share=0.0)
        window = store.window(min(number, 2), 1)
        runs.run(window.base, window.inputs)
    assert runs.states() == ["COMPLETE", "COMPLETE", "CACHED"]
    report = json.loads((Path(runs.artifacts()[-1].uri) / "sampling.json").read_text())
    groups = {split: set(counts["groups"]) for split, counts in report["splits"].items()}
    assert all(name.startswith("span2-") for name in groups["train"] | groups["eval"])
    assert {name.split("-")[0] for name in groups["one_shot"]} == {"span1", "span2"}


def test_broken_images_over_the_share_fail_by_name_and_leave_nothing(
    runs: Runs, tmp_path: Path
) -> None:
    broken = dict.fromkeys(sorted(TREE)[:2], b"broken")
    write_zip(tmp_path / "data/images.zip", {**TREE, **broken})
    with pytest.raises(InputError, match=r"(?s)2 of 36 images .*letters0/character01/0001_01\.png"):
        runs.run(tmp_path / "data", {"images": "images.zip"}, share=0.05)
    assert runs.states() == ["FAILED"]
    assert files(runs.root) == []


def test_broken_images_below_the_share_are_told_and_listed_beside_the_splits(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, *_, last = sorted(TREE)
    bad = {first: b"", f"{first}.xcf": b"gimp xcf"}
    stray = "letters0/character02/stray.png"
    twice = {stray: TREE[last], f"{last}.png": TREE[last], "letters1/alone/1.png": png("alone")}
    again = {"letters1/character01/again.png": TREE["letters1/character01/0001_01.png"]}
    zipped = write_zip(tmp_path / "data/images.zip", {**TREE, **bad, **twice, **again})
    runs.run(tmp_path / "data", {"images": "images.zip"}, share=0.2)
    (artifact,) = runs.artifacts()
    listed = Path(artifact.uri) / "rejected.jsonl"
    assert len(listed.read_text().splitlines()) == 5
    (told,) = (line for line in caplog.messages if line.startswith("Images left out"))
    assert "1 empty" in told
    assert "1 not an image: .xcf" in told
    assert f"; listed in {listed}" in told
    # Label noise and copies with the names of both.
    noise = [line for line in caplog.messages if line.startswith("Label noise")]
    assert noise == [
        f"Label noise: {zipped}/{stray} is the same image as {zipped}/{name}"
        for name in (last, f"{last}.png")
    ]
    (told,) = (line for line in caplog.messages if line.startswith("Copies left out"))
    assert f"the same as {zipped}/letters1/character01/again.png; listed in" in told
    assert any("classes of the" in line and "single image" in line for line in caplog.messages)


@pytest.mark.parametrize("mode", ["in_memory", "multi_threading"])
@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (
            errno.EIO,
            ReadError,
            r"^/\S+\.zip/\S+\.png: Input/output error: .* run the command again$",
        ),
        (errno.EACCES, InputError, r"^/\S+\.zip/\S+\.png may not be read: .*, or take it away$"),
    ],
)
def test_what_keeps_an_image_from_being_read_is_told_without_what_beam_adds(
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    number: int,
    kind: type[Exception],
    message: str,
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    write_zip(tmp_path / "data/images.zip", TREE)
    with pytest.raises(kind, match=message):
        runs.run(tmp_path / "data", {"images": "images.zip"}, share=1.0, mode=mode)
    assert files(runs.root) == []


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (omniglot_tree("lone", groups=1, classes=1, writers=3), "there are 1 classes in 1 groups"),
        (omniglot_tree("once", groups=4, classes=3, writers=1), "0 of them with two images"),
    ],
    ids=["an alphabet with one character", "no character drawn twice"],
)
def test_too_little_to_sample_from_fails_by_name_and_leaves_nothing(
    runs: Runs, tmp_path: Path, tree: dict[str, bytes], message: str
) -> None:
    write_zip(tmp_path / "data/images.zip", tree)
    with pytest.raises(InputError, match=message):
        runs.run(tmp_path / "data", {"images": "images.zip"})
    assert files(runs.root) == []


def test_a_pattern_that_matches_nothing_fails_by_name(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.zip"):
        runs.run(tmp_path, {"images": "gone.zip"})
    with pytest.raises(InputError, match=r"span-\{SPAN\}"):
        runs.run(tmp_path, {"images": "span-{SPAN}/images"})


def test_a_full_disk_is_told_plainly_and_leaves_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(directory: str, shard: Shard, records: Iterable[bytes]) -> None:
        if shard.split == "one_shot":
            raise tf.errors.ResourceExhaustedError(None, None, "x.gz; No space left on device")
        write_file(directory, shard, records)

    write_file = write.write_file
    monkeypatch.setattr(write, "write_file", fail)
    write_zip(tmp_path / "data/images.zip", TREE)
    with pytest.raises(OSError, match="the disk is full"):
        runs.run(tmp_path / "data", {"images": "images.zip"})
    assert files(runs.root) == []


def test_a_crash_while_writing_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    def records() -> Iterator[bytes]:
        yield b"first"
        raise KeyboardInterrupt

    shard = Shard(number=0, split="train", file=0, files=1, stream=0, start=0, stop=2)
    with pytest.raises(KeyboardInterrupt):
        write.write_file(str(tmp_path), shard, records())
    assert files(tmp_path) == []
