import itertools
from pathlib import Path

import numpy as np
import pytest

from data_ingest.errors import InputError
from data_ingest.records.catalog import BACKGROUND, EVALUATION, IMAGES, Rejected
from data_ingest.records.plan import Plan, make_plan
from data_ingest.records.read import expected_protocols, list_inputs
from data_ingest.sampling.protocols import ONE_SHOT_SPLIT, SPLITS
from data_ingest.settings import PairSettings
from tests.data_ingest.catalogs import catalog_of, located
from tests.data_ingest.sampling_strategies import index_of, omniglot_like, signatures
from tests.data_ingest.tiny_images import omniglot_tree, png, runs_tree, write_zip

SETTINGS = PairSettings(
    train_pairs=60,
    eval_pairs=20,
    verification_pairs=20,
    ways=(5, 3),
    within_trials=17,
    between_trials=9,
)


def plan_of(*, size: int = 100) -> Plan:
    return make_plan(
        catalog_of(
            {
                BACKGROUND: located(omniglot_like(groups=5, classes=6, writers=3), size=size),
                EVALUATION: located(
                    index_of({f"new{at}": [[1, 2, 3]] * 6 for at in range(3)}), size=size
                ),
            }
        ),
        SETTINGS,
    )


def test_shards_cover_every_record_of_every_stream_once() -> None:
    for size in (100, 2**20, 2**25):
        plan = plan_of(size=size)
        for number, stream in enumerate(plan.streams):
            ranges = [(s.start, s.stop) for s in plan.shards if s.stream == number]
            assert ranges[0][0] == 0
            assert ranges[-1][1] == stream.pairs
            assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))


def test_files_of_a_split_are_numbered_without_gaps() -> None:
    plan = plan_of(size=2**20)
    for split in SPLITS:
        files = [shard for shard in plan.shards if shard.split == split]
        assert [shard.file for shard in files] == list(range(len(files)))
        assert {shard.files for shard in files} == {len(files)}


def test_large_images_make_smaller_shards_but_do_not_cut_a_trial() -> None:
    plan = plan_of(size=2**20)
    assert max(shard.stop - shard.start for shard in plan.shards) <= 16
    for shard in plan.shards:
        stream = plan.streams[shard.stream]
        if stream.way:
            assert shard.start % stream.way == 0
            assert shard.stop % stream.way == 0


def test_a_stream_is_the_same_drawn_in_one_go_or_in_pieces() -> None:
    for stream in plan_of().streams:
        whole = stream.draw(0, stream.pairs)
        for start in range(0, stream.pairs, 7):
            stop = min(start + 7, stream.pairs)
            piece = stream.draw(start, stop)
            for column, all_of_it in zip(piece, whole, strict=True):
                assert list(column) == list(all_of_it[start:stop])


def test_a_trial_has_one_right_answer_and_as_many_pairs_as_candidates() -> None:
    for stream in plan_of().streams:
        if stream.way:
            drawn = stream.draw(0, stream.pairs)
            trials = np.array(drawn.trial).reshape(-1, stream.way)
            assert (trials == trials[:, :1]).all()
            assert (drawn.label.reshape(-1, stream.way).sum(axis=1) == 1).all()


def test_no_class_is_in_two_splits() -> None:
    classes = {
        split: {
            name
            for stream in plan_of().streams
            if stream.split == split
            for name in stream.located.index.classes
        }
        for split in SPLITS
    }
    assert not classes["train"] & classes["eval"]
    assert not (classes["train"] | classes["eval"]) & classes[ONE_SHOT_SPLIT]


def test_too_many_rejected_images_are_a_problem_that_names_the_first_ten() -> None:
    rejected = [Rejected(IMAGES, f"/data/{at:02d}.png", "truncated") for at in range(12)]
    catalog = catalog_of(
        {IMAGES: located(omniglot_like(groups=3, classes=4, writers=3))}, rejected=rejected
    )
    assert make_plan(catalog, SETTINGS, max_rejected_share=0.3).problem == ""
    plan = make_plan(catalog, SETTINGS, max_rejected_share=0.2)
    assert plan.streams == ()
    assert "12 of 48 images (25.0%)" in plan.problem
    assert "/data/00.png (truncated)" in plan.problem
    assert "/data/09.png (truncated)" in plan.problem
    assert "/data/10.png" not in plan.problem
    assert "and 2 more" in plan.problem


def test_spans_with_too_many_rejected_images_are_named() -> None:
    rejected = [
        Rejected(
            BACKGROUND, f"/out/windows/1-9/background/span-{number}.zip/a/b/1.png", "truncated"
        )
        for number in (3, 9, 3)
    ]
    catalog = catalog_of({IMAGES: located(index_of({"a": [[1, 2]] * 4}))}, rejected=rejected)
    problem = make_plan(catalog, SETTINGS, max_rejected_share=0.1).problem
    assert "leave their spans (3 9) out by `oneshot spans exclude`" in problem


def test_what_cannot_be_sampled_is_a_problem_and_not_an_exception() -> None:
    plan = make_plan(catalog_of({IMAGES: located(index_of({"a": [[1]] * 9}))}), SETTINGS)
    assert plan.streams == ()
    assert "two different images" in plan.problem


def test_the_expected_protocols_are_those_of_the_plan(tmp_path: Path) -> None:
    containers = {
        "background": [
            write_zip(tmp_path / "b.zip", omniglot_tree("old", groups=4, classes=5, writers=3))
        ],
        "evaluation": [
            write_zip(tmp_path / "e.zip", omniglot_tree("new", groups=2, classes=4, writers=3))
        ],
        "runs": [write_zip(tmp_path / "r.zip", runs_tree(runs=2, way=3))],
    }
    assert expected_protocols(containers, SETTINGS) == {
        ("verification", 0),
        ("official", 3),
        ("within", 4),
        ("within", 3),
        ("between", 5),
        ("between", 3),
    }
    assert len(list_inputs(containers).official.trials) == 6


@pytest.mark.parametrize(
    "name", ["n{0:06}/{1:04}_01.jpg", "set/dog{0}/{1}_03.png", "set/{0}/{1:04}_01.png"]
)
def test_numbers_in_the_names_of_ones_own_images_are_no_writers(tmp_path: Path, name: str) -> None:
    names = [name.format(klass, 2000 + image) for klass in range(16) for image in range(3)]
    images = write_zip(tmp_path / "own.zip", {one: png(one) for one in names})
    assert {("within", 5), ("within", 3)} <= expected_protocols({"images": [images]}, SETTINGS)


def test_a_pattern_makes_writers_known_and_one_that_finds_none_is_refused(tmp_path: Path) -> None:
    names = [
        f"{group}/{klass}/{hand}{image}.png"
        for group in "xyz"
        for klass in range(4)
        for image, hand in enumerate(("ann", "ann", "bob"))
    ]
    containers = {"images": [write_zip(tmp_path / "own.zip", {one: png(one) for one in names})]}
    inputs = list_inputs(containers, writer_pattern=r"^([a-z]+)")
    writers = [image.writer for portion in inputs.portions for image in portion.images]
    assert len(set(writers)) == 2
    assert 0 not in writers
    found = expected_protocols(containers, SETTINGS, writer_pattern=r"^([a-z]+)")
    assert ("within", 4) in found
    with pytest.raises(InputError, match=r"writer pattern \^\(\\d\+\): none of 36 images"):
        list_inputs(containers, writer_pattern=r"^(\d+)")


def test_pairs_of_signatures_are_apart_by_the_kind_of_forgery() -> None:
    plan = make_plan(catalog_of({IMAGES: located(signatures(writers=12))}), SETTINGS)
    streams = {(stream.split, stream.protocol): stream for stream in plan.streams}
    pairs = {key: stream.pairs for key, stream in streams.items() if not stream.way}
    assert pairs == {
        ("train", "train"): 60,
        ("eval", "verification"): 20,
        ("one_shot", "random"): 10,
        ("one_shot", "skilled"): 10,
    }
    for protocol in ("random", "skilled"):
        stream = streams["one_shot", protocol]
        index, drawn = stream.located.index, stream.draw(0, stream.pairs)
        forged = index.class_forged[index.row_class[drawn.row_b[drawn.label == 0]]]
        assert set(forged) == {protocol == "skilled"}
    assert {stream.protocol for stream in plan.streams if stream.way} == {"between"}
