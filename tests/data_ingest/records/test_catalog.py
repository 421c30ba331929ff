import random

from data_ingest.records.catalog import (
    BACKGROUND,
    EVALUATION,
    RUNS,
    TWO_CLASSES,
    CatalogPart,
    Copy,
    Found,
    Rejected,
    build_catalog,
    count_reasons,
    in_two_classes,
    told_reasons,
)
from data_ingest.sampling.index import ImageRef


def found(class_name: str, key: str, content: str, *, block: int = 0, position: int = 0) -> Found:
    ref = ImageRef(class_name.split("/")[0], class_name, 0, key)
    return Found(
        ref, content.encode(), f"/data/{class_name}/{key}", 10, 0, block=block, position=position
    )


def test_rows_lead_to_the_block_and_place_of_their_image_whatever_the_order_of_the_parts() -> None:
    images = [
        found(f"g{at % 3}/c{at % 6}", f"{at:02d}", f"content{at}", block=at // 8, position=at % 8)
        for at in range(24)
    ]
    parts = [
        CatalogPart(BACKGROUND, tuple(images[8 * block : 8 * block + 8]), ()) for block in range(3)
    ]
    for seed in range(3):
        random.Random(seed).shuffle(parts)
        located = build_catalog(parts).sources[BACKGROUND]
        for row in range(len(located.index)):
            at = 8 * int(located.block[row]) + int(located.position[row])
            assert located.index.class_name(row) == images[at].ref.class_name


def test_of_copies_in_one_class_one_is_kept() -> None:
    """Omniglot's Braille character01 has one drawing twice (drawers 03 and 19)."""
    part = CatalogPart(
        BACKGROUND, (found("a/x", "19", "same"), found("a/x", "03", "same", position=1)), ()
    )
    catalog = build_catalog([part])
    assert len(catalog.sources[BACKGROUND].index) == 1
    assert catalog.sources[BACKGROUND].position.tolist() == [1]
    assert catalog.duplicates == {BACKGROUND: 1}
    assert catalog.copies == (Copy(BACKGROUND, "/data/a/x/19", "/data/a/x/03"),)
    assert catalog.rejected == ()


def test_an_image_that_lies_in_two_classes_is_rejected_in_both() -> None:
    part = CatalogPart(
        BACKGROUND,
        (found("a/x", "1", "same"), found("a/y", "2", "same"), found("a/y", "3", "own")),
        (),
    )
    catalog = build_catalog([part])
    assert len(catalog.sources[BACKGROUND].index) == 1
    assert catalog.rejected == (
        Rejected(BACKGROUND, "/data/a/x/1", f"{TWO_CLASSES}: /data/a/y/2"),
        Rejected(BACKGROUND, "/data/a/y/2", f"{TWO_CLASSES}: /data/a/x/1"),
    )
    assert in_two_classes(bad[1:] for bad in catalog.rejected) == [("/data/a/x/1", "/data/a/y/2")]
    assert catalog.duplicates == {BACKGROUND: 0}


def test_an_image_to_train_on_and_to_be_judged_on_is_rejected_in_both() -> None:
    parts = [
        CatalogPart(EVALUATION, (found("e/x", "1", "same"), found("e/x", "2", "own")), ()),
        CatalogPart(BACKGROUND, (found("a/x", "1", "same"), found("a/x", "2", "other")), ()),
        CatalogPart(RUNS, (found("run01/a", "1", "own"),), ()),
    ]
    catalog = build_catalog(parts)
    assert {source: len(one.index) for source, one in catalog.sources.items()} == {
        BACKGROUND: 1,
        EVALUATION: 1,
        RUNS: 1,
    }
    assert in_two_classes(bad[1:] for bad in catalog.rejected) == [("/data/a/x/1", "/data/e/x/1")]


def test_two_images_of_one_name_in_two_archives_are_both_kept() -> None:
    parts = [
        CatalogPart(BACKGROUND, (found("a/x", "1", "one"),), ()),
        CatalogPart(BACKGROUND, (found("a/x", "1", "other"),), ()),
    ]
    assert len(build_catalog(parts).sources[BACKGROUND].index) == 2


def test_official_runs_are_left_as_they_are() -> None:
    part = CatalogPart(RUNS, (found("run01/a", "1", "same"), found("run02/b", "2", "same")), ())
    assert len(build_catalog([part]).sources[RUNS].index) == 2


def test_the_rejected_are_counted_over_all_sources() -> None:
    parts = [
        CatalogPart(BACKGROUND, (found("a/x", "1", "one"),), (Rejected(BACKGROUND, "f", "b"),)),
        CatalogPart(EVALUATION, (found("e/x", "1", "two"),), (Rejected(EVALUATION, "g", "b"),)),
        CatalogPart(EVALUATION, (), (Rejected(EVALUATION, "a", "c"),)),
    ]
    catalog = build_catalog(parts)
    assert catalog.read == {BACKGROUND: 2, EVALUATION: 3}
    assert catalog.rejected_share == 0.6
    assert count_reasons(bad[1:] for bad in catalog.rejected) == {"b": 2, "c": 1}
    assert [reject.file for reject in catalog.rejected] == ["f", "a", "g"]


def test_files_that_are_no_images_are_counted_by_ending() -> None:
    names = ["a/1.XCF", "a/2.xcf", "a/3", "a/4.png"]
    counts = count_reasons([*((name, "not an image") for name in names), ("b/5.png", "empty")])
    assert count_reasons([("a", f"{TWO_CLASSES}: b"), ("b", f"{TWO_CLASSES}: a")]) == {
        TWO_CLASSES: 2
    }
    assert counts == {
        "not an image: .xcf": 2,
        "not an image: no ending": 1,
        "not an image: .png": 1,
        "empty": 1,
    }
    assert told_reasons(counts).startswith("2 not an image: .xcf, 1 not an image: no ending")


def test_what_reads_heic_is_told() -> None:
    told = told_reasons(count_reasons([("a/1.heic", "needs the heic extra")]))
    assert told.startswith("1 needs the heic extra (`pip install 'siamese-oneshot[heic]'`")


def test_however_many_reasons_there_are_the_line_is_short() -> None:
    told = told_reasons(count_reasons((f"{at}.{at}", "not an image") for at in range(1000)))
    assert told.endswith("and 992 more reasons")
    assert len(told) < 300
