"""Spans: whole or not at all, for ever, and each group on one side."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_ingest.errors import InputError, ReadError
from data_ingest.records.catalog import BACKGROUND, EVALUATION, TWO_CLASSES
from data_ingest.records.read import list_inputs
from data_ingest.settings import PairSettings
from data_ingest.sources import layout
from data_ingest.spans.sides import Side
from data_ingest.spans.span import Span
from data_ingest.spans.store import SpanStore, window_name
from tests.data_ingest.tiny_images import omniglot_tree, png, write_folder, write_zip

PAIRS = PairSettings(ways=(2,))


def land(
    store: SpanStore,
    number: int | None,
    *sources: Path,
    share: float = 0.0,
    pairs: PairSettings = PAIRS,
) -> Span:
    return store.land(number, sources, pairs=pairs, max_rejected_share=share)


def alphabets(prefix: str, *, groups: int = 4) -> dict[str, bytes]:
    return omniglot_tree(prefix, groups=groups, classes=3, writers=2)


def names_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def groups_in(paths: list[Path]) -> set[str]:
    return {name.split("/")[0] for path in paths for name in names_in(path)}


def left_in(root: Path) -> list[str]:
    """Everything but the lock."""
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


def photos(root: Path, first: int) -> Path:
    for number in range(first, first + 24):
        folder = root / f"person{number % 12}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((600, 400), 90 + number).save(folder / f"{number}.jpg")
    return root


def landed_sizes(span: Span) -> set[int]:
    sizes = set()
    for path in span.containers:
        with zipfile.ZipFile(path) as archive:
            images = [Image.open(archive.open(name)) for name in archive.namelist()]
            sizes |= {max(image.size) for image in images}
    return sizes


def test_images_land_in_the_form_of_their_kind_which_later_spans_keep(
    store: SpanStore, tmp_path: Path, first: Path
) -> None:
    span = land(store, 1, photos(tmp_path / "photos", 0))
    assert (span.kind, landed_sizes(span)) == ("photo", {256})
    assert land(store, 1, tmp_path / "photos") == land(store, None, tmp_path / "photos") == span
    window = store.window(1, 0)
    assert (window.kind, window.description.endswith("; photographs")) == ("photo", True)
    assert store.window(1, 0, "drawing").kind == "drawing"
    more = photos(tmp_path / "more", 24)
    later = store.land(2, [more], pairs=PAIRS, max_rejected_share=0.0, max_side=300)
    assert (later.kind, landed_sizes(later)) == ("photo", {300})
    other = SpanStore(tmp_path / "other")
    asked = other.land(1, [first], pairs=PAIRS, max_rejected_share=0.0, kind="signature")
    assert (asked.kind, landed_sizes(asked)) == ("signature", {12})


def test_spans_of_earlier_releases_are_drawings(store: SpanStore, tmp_path: Path) -> None:
    record = land(store, 1, photos(tmp_path / "photos", 0)).path / "span.json"
    text = record.read_text()
    assert '"kind": "photo",' in text
    record.chmod(0o644)
    record.write_text(text.replace('"kind": "photo",', ""))
    assert store.span(1).kind == store.window(1, 0).kind == "drawing"


@pytest.fixture
def store(tmp_path: Path) -> SpanStore:
    return SpanStore(tmp_path / "output" / "spans")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "first.zip", alphabets("a"))


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "second", alphabets("b"))


def test_a_span_holds_what_came_divided_by_group(store: SpanStore, first: Path) -> None:
    span = land(store, 1, first)
    sides = {
        side: groups_in([path])
        for side in (BACKGROUND, EVALUATION)
        if (path := span.container(side))
    }
    assert sides[BACKGROUND] | sides[EVALUATION] == {"a0", "a1", "a2", "a3"}
    assert not sides[BACKGROUND] & sides[EVALUATION]
    assert {name for name, side in span.new.items() if side == EVALUATION} == sides[EVALUATION]
    with zipfile.ZipFile(first) as came:
        for path in span.containers:
            with zipfile.ZipFile(path) as kept:
                assert all(kept.read(name) == came.read(name) for name in kept.namelist())
    assert store.spans() == [span]


@pytest.fixture(scope="module")
def many_alphabets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("alphabets")
    return [
        write_zip(
            folder / f"{number}.zip", omniglot_tree(f"g{number}_", groups=1, classes=2, writers=2)
        )
        for number in range(7)
    ]


@settings(max_examples=15)
@given(
    spans=st.lists(st.sets(st.integers(0, 6), min_size=1), min_size=1, max_size=4),
    share=st.floats(0.1, 0.9),
)
def test_whatever_arrives_no_model_is_judged_on_a_class_it_was_trained_on(
    spans: list[set[int]],
    share: float,
    many_alphabets: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = SpanStore(tmp_path_factory.mktemp("store"))
    land(store, 1, *many_alphabets[:4])
    trained: set[str] = set()
    for number, chosen in enumerate(spans, start=2):
        pairs = PairSettings(ways=(2,), evaluation_share=share)
        land(store, number, *(many_alphabets[at] for at in sorted(chosen)), pairs=pairs)
        containers = store.window(number, 0).containers()
        trained |= groups_in(containers["background"])
        assert not trained & groups_in(containers["evaluation"])


def test_the_same_span_again_changes_nothing(store: SpanStore, first: Path, tmp_path: Path) -> None:
    landed = land(store, 1, first)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(first) as archive:
        archive.extractall(unpacked)
    before = [path.stat().st_mtime_ns for path in landed.containers]
    assert land(store, 1, unpacked) == landed
    assert [path.stat().st_mtime_ns for path in landed.containers] == before


def test_other_images_under_a_number_that_is_taken_are_refused(
    store: SpanStore, first: Path, second: Path
) -> None:
    landed = land(store, 1, first)
    with pytest.raises(InputError, match="span-1 has landed already with other images"):
        land(store, 1, second)
    assert store.spans() == [landed]
    landed.check()


def test_a_number_before_one_that_is_there_is_refused(
    store: SpanStore, first: Path, second: Path
) -> None:
    land(store, 5, first)
    with pytest.raises(InputError, match=r"span 5 has landed already.*greater"):
        land(store, 3, second)
    assert left_in(store.root) == ["span-5"]


def test_the_next_number_is_taken_unless_nothing_is_new(
    store: SpanStore, first: Path, second: Path
) -> None:
    assert land(store, None, first).number == 1
    assert land(store, None, first).number == 1
    assert land(store, None, second).number == 2
    assert land(store, None, second).number == 2
    assert [span.number for span in store.spans()] == [1, 2]


def test_a_landed_span_is_read_only_and_a_change_to_it_is_noticed(
    store: SpanStore, first: Path
) -> None:
    umask = os.umask(0o027)
    span = land(store, 1, first)
    os.umask(umask)
    assert [path.stat().st_mode & 0o777 for path in span.path.iterdir()] == [0o440] * 3
    (victim,) = [path for path in span.containers if path.stem == BACKGROUND]
    files = {name: png(f"other {name}") for name in names_in(victim)}
    victim.unlink()
    write_zip(victim, files)
    with pytest.raises(InputError, match="span-1 has changed since it landed"):
        store.window(1, 0)


@pytest.mark.parametrize("side", [BACKGROUND, EVALUATION])
def test_a_byte_that_changed_is_found_before_it_is_trained_on(
    store: SpanStore, first: Path, second: Path, side: Side
) -> None:
    land(store, 1, first)
    span = land(store, 2, second)
    victim = span.container(side)
    assert victim is not None
    with zipfile.ZipFile(victim) as archive:
        at = archive.infolist()[0].header_offset + 60
    content = bytearray(victim.read_bytes())
    content[at] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(content)
    span.check()  # its table of contents is as it was
    with pytest.raises(InputError, match=f"span 2: the bytes of {victim} .*spans exclude 2"):
        store.window(2, 0)
    store.window(1, 0)
    store.exclude(2, "its disk fails")
    land(store, 3, write_zip(first.with_name("third.zip"), alphabets("c")))
    store.window(3, 0)


def test_a_span_of_an_earlier_release_is_used_without_its_digests(
    store: SpanStore, first: Path
) -> None:
    span = land(store, 1, first)
    record = span.path / "span.json"
    document = json.loads(record.read_text())
    assert set(document.pop("sha256")) == {BACKGROUND, EVALUATION}
    record.unlink()
    record.write_text(json.dumps(document))
    assert store.span(1).sha256 == {}
    store.window(1, 0)


def test_a_span_that_was_taken_away_is_missed(store: SpanStore, first: Path, second: Path) -> None:
    gone = land(store, 1, first)
    land(store, 2, second)
    shutil.rmtree(gone.path)
    with pytest.raises(InputError, match="span-1 is gone"):
        store.spans()


def test_a_damaged_record_is_named(store: SpanStore, first: Path) -> None:
    span = land(store, 1, first)
    record = span.path / "span.json"
    record.unlink()
    record.write_text(json.dumps({"number": 1}))
    with pytest.raises(InputError, match=r"span-1/span\.json cannot be read"):
        store.spans()


@pytest.mark.parametrize("broken", [b"", b"GIF89a", png("x")[:-20]], ids=["empty", "gif", "cut"])
def test_broken_images_are_left_out_and_named_up_to_the_share_that_is_allowed(
    store: SpanStore, tmp_path: Path, broken: bytes
) -> None:
    files = {**alphabets("a"), "a0/character01/broken.png": broken}
    source = write_folder(tmp_path / "some", files)
    with pytest.raises(
        InputError, match=r"1 of 25 images \(4\.0%\) cannot be used(?s:.*)broken\.png"
    ):
        land(store, 1, source, share=0.03)
    assert left_in(store.root) == []
    span = land(store, 1, source, share=0.05)
    assert [bad.file for bad in span.rejected] == [str(source / "a0/character01/broken.png")]
    assert sum(span.images.values()) == 24


def test_a_zip_that_is_cut_off_leaves_nothing(store: SpanStore, first: Path) -> None:
    first.write_bytes(first.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"first\.zip cannot be read"):
        land(store, 1, first)
    assert left_in(store.root) == []


def test_copies_are_left_out_and_two_images_of_one_name_refused(
    store: SpanStore, tmp_path: Path, first: Path
) -> None:
    again = write_zip(tmp_path / "again.zip", alphabets("a"))
    span = land(store, 1, first, again)
    assert (sum(span.images.values()), span.duplicates) == (24, 24)
    other = write_zip(tmp_path / "other.zip", {"a0/character01/0001_01.png": png("other")})
    with pytest.raises(InputError, match=r"two different images are named a0/character01/0001_01"):
        land(store, 2, first, other)


def test_an_image_that_an_earlier_span_has_in_another_class_is_rejected(
    store: SpanStore, tmp_path: Path, first: Path
) -> None:
    land(store, 1, first)
    (landed,) = [path for path in store.span(1).containers if "a2" in groups_in([path])]
    known = png("a2/character02/0002_01.png")
    files = {**alphabets("b"), "b0/character01/copied.png": known}
    source = write_folder(tmp_path / "copied", files)
    span = land(store, 2, source, share=0.1)
    assert [(Path(bad.file).name, bad.reason) for bad in span.rejected] == [
        ("copied.png", f"{TWO_CLASSES}: {landed}/a2/character02/0002_01.png")
    ]


def test_an_earlier_span_whose_images_are_damaged_is_named(
    store: SpanStore, tmp_path: Path, first: Path
) -> None:
    known = png("a2/character02/0002_01.png")
    land(store, 1, first)
    (landed,) = [path for path in store.span(1).containers if "a2" in groups_in([path])]
    landed.chmod(0o644)
    landed.write_bytes(landed.read_bytes().replace(known, known[:-9] + b"x" + known[-8:]))
    source = write_folder(tmp_path / "copied", {**alphabets("b"), "b0/character01/c.png": known})
    with pytest.raises(InputError, match=rf"{landed}.*0002_01.*restore the span from a copy"):
        land(store, 2, source)


def test_a_group_keeps_its_side_in_another_spelling(
    store: SpanStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    monkeypatch.setattr(layout, "normal_form", str)  # as it was when the first span landed
    land(store, 1, write_folder(tmp_path / "macos", alphabets(decomposed)))
    monkeypatch.undo()
    assert f"{decomposed}0" in store.span(1).new
    tree = omniglot_tree(composed, groups=4, classes=4, writers=2)
    added = {name: data for name, data in tree.items() if "character04" in name}
    span = land(store, 2, write_folder(tmp_path / "linux", added))
    assert span.new == {}
    assert sum(span.images.values()) == 8


@pytest.mark.parametrize("reads", [5, 30], ids=["while checking", "while writing"])
def test_a_failing_disk_is_told_and_leaves_nothing(
    store: SpanStore, first: Path, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    done: list[int] = []
    original = zipfile.ZipExtFile.read

    def read(member: zipfile.ZipExtFile, size: int) -> bytes:
        done.append(size)
        if len(done) > reads:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(member, size)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    with pytest.raises(ReadError, match=r"first\.zip/.*\.png: Input/output error: .*again$"):
        land(store, 1, first, share=1.0)
    assert left_in(store.root) == []


def test_too_few_classes_to_train_and_to_judge_do_not_make_a_first_span(
    store: SpanStore, tmp_path: Path
) -> None:
    few = write_folder(tmp_path / "few", omniglot_tree("a", groups=1, classes=3, writers=2))
    with pytest.raises(InputError, match="too few classes"):
        land(store, 1, few)
    assert left_in(store.root) == []


def test_later_spans_may_be_as_small_as_one_class(
    store: SpanStore, tmp_path: Path, first: Path
) -> None:
    land(store, 1, first)
    small = write_folder(tmp_path / "small", {"a1/character09/one.png": png("one")})
    span = land(store, 2, small)
    assert span.new == {}
    assert sum(span.images.values()) == 1


def test_a_window_has_the_last_spans_to_train_on_and_all_to_judge(
    store: SpanStore, tmp_path: Path
) -> None:
    for number in (1, 2, 5, 6):
        land(store, number, write_zip(tmp_path / f"{number}.zip", alphabets(f"s{number}_")))
    window = store.window(5, 2)
    assert {side: [path.name for path in paths] for side, paths in window.containers().items()} == {
        "background": ["span-2.zip", "span-5.zip"],
        "evaluation": ["span-1.zip", "span-2.zip", "span-5.zip"],
    }
    assert len(store.window(6, 0).containers()["background"]) == 4
    listed = list_inputs(window.containers()).portions
    spans = {span.number: span for span in store.spans()}
    assert [len(portion.images) for portion in listed] == [
        sum(spans[number].images[BACKGROUND] for number in (2, 5)),
        sum(spans[number].images[EVALUATION] for number in (1, 2, 5)),
    ]


def test_a_window_stays_the_same_whatever_lands_later_and_wherever_it_is_moved(
    store: SpanStore, tmp_path: Path, first: Path, second: Path
) -> None:
    land(store, 1, first)
    before = store.window(1, 1)
    fingerprint = before.fingerprint()
    land(store, 2, second)
    assert store.window(1, 1) == before
    assert before.fingerprint() == fingerprint
    moved = SpanStore(store.root.rename(tmp_path / "moved"))
    assert moved.window(1, 1).fingerprint() == fingerprint


def test_a_window_that_was_tampered_with_is_made_again(store: SpanStore, first: Path) -> None:
    land(store, 1, first)
    window = store.window(1, 1)
    fingerprint = window.fingerprint()
    (window.base / "evaluation" / "span-1.zip").unlink()
    (window.base / "background" / "more.zip").symlink_to(first)
    assert store.window(1, 1).fingerprint() == fingerprint


def test_old_windows_do_not_pile_up(store: SpanStore, tmp_path: Path) -> None:
    land(store, 1, write_zip(tmp_path / "1.zip", alphabets("a")))
    for number in range(2, 30):
        source = write_folder(tmp_path / str(number), {"a0/character01/x.png": png(str(number))})
        land(store, number, source)
        store.window(number, 0)
    assert len(list((store.root / "windows").iterdir())) == 20
    assert (store.root / "windows" / "1-29").is_dir()


def test_a_window_without_images_to_train_on_is_refused(
    store: SpanStore, tmp_path: Path, first: Path
) -> None:
    span = land(store, 1, first)
    judged = next(name for name, side in span.new.items() if side == EVALUATION)
    source = write_folder(tmp_path / "judged", {f"{judged}/character01/new.png": png("new")})
    land(store, 2, source)
    with pytest.raises(InputError, match="longer window"):
        store.window(2, 1)
    assert len(store.window(2, 2).containers()["evaluation"]) == 2


def test_an_excluded_span_is_in_no_window_until_it_is_readmitted(
    store: SpanStore, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        land(store, number, write_zip(tmp_path / f"{number}.zip", alphabets(f"s{number}_")))
    whole = store.window(3, 2).fingerprint()
    store.exclude(2, "inverted images")
    assert [span.excluded for span in store.spans()] == [None, "inverted images", None]
    containers = store.window(3, 2).containers()
    assert [path.name for path in containers["background"]] == ["span-1.zip", "span-3.zip"]
    assert [path.name for path in containers["evaluation"]] == ["span-1.zip", "span-3.zip"]
    with pytest.raises(InputError, match="inverted images"):
        store.window(2, 1)
    store.readmit(2)
    assert store.window(3, 2).fingerprint() == whole
    assert [span.readmitted for span in store.spans()] == [False, True, False]


def test_the_groups_of_an_excluded_span_keep_their_sides(
    store: SpanStore, tmp_path: Path, first: Path, second: Path
) -> None:
    land(store, 1, first)
    landed = land(store, 2, second)
    store.exclude(2, "bad")
    more = {**alphabets("b"), "b0/character01/more.png": png("more")}
    assert land(store, 3, write_folder(tmp_path / "more", more)).new == {}
    assert set(landed.new) == {"b0", "b1", "b2", "b3"}


def test_a_span_that_is_not_there_is_asked_for_by_its_command(store: SpanStore) -> None:
    for ask in (store.span, lambda number: store.window(number, 1)):
        with pytest.raises(InputError, match=r"no span 4 .*spans here: none.*ingest --span 4"):
            ask(4)


def test_killed_at_any_step_a_landing_leaves_a_whole_span_or_none(tmp_path: Path) -> None:
    root = tmp_path / "spans"
    sources = [
        write_zip(tmp_path / f"{name}.zip", omniglot_tree(name, groups=3, classes=2, writers=2))
        for name in ("a", "b")
    ]
    command = [sys.executable, "-m", "tests.data_ingest.spans.killed_landing", str(root)]
    run = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True, check=True)
    states = [json.loads(line) for line in run.stdout.splitlines()]
    *killed, last = states
    assert len(killed) > 20
    assert all(state["killed"] for state in killed)
    assert {tuple(state["spans"]) for state in killed} == {(1,), (1, 2)}
    assert any(state["half_done"] for state in killed)
    # What the kills had left was swept away, and nothing is landed twice.
    assert last == {"killed": False, "spans": [1, 2], "half_done": []}


def test_two_landings_at_once_are_one_after_the_other(
    store: SpanStore, first: Path, second: Path
) -> None:
    threads = [
        threading.Thread(target=land, args=(SpanStore(store.root), None, source))
        for source in (first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(span.number, span.previous) for span in store.spans()] == [(1, None), (2, 1)]


def test_a_full_disk_is_told_and_leaves_nothing(
    store: SpanStore, first: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(store, 1, first)
    written: list[int] = []
    original = zipfile.ZipFile.writestr

    def writestr(archive: zipfile.ZipFile, name: zipfile.ZipInfo, data: bytes) -> None:
        if len(written) == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(len(data))
        original(archive, name, data)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", writestr)
    with pytest.raises(OSError, match=r"No space left on device.*\.zip"):
        land(store, 2, second)
    assert left_in(store.root) == ["span-1"]
    monkeypatch.undo()
    assert land(store, 2, second).number == 2


def test_an_image_that_changes_while_it_is_read_is_not_taken(
    store: SpanStore, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = second / "b0" / "character01" / "0001_01.png"
    original = Path.mkdir

    def mkdir(path: Path, *arguments: object, **options: object) -> None:
        original(path, *arguments, **options)  # type: ignore[arg-type]
        if path.name.startswith(".landing"):
            changing.write_bytes(png("changed"))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(InputError, match=r"0001_01\.png changed while it was being read"):
        land(store, 1, second)
    assert left_in(store.root) == []


def test_a_folder_whose_name_would_be_a_pattern_is_refused(tmp_path: Path, first: Path) -> None:
    with pytest.raises(InputError, match="wildcards"):
        land(SpanStore(tmp_path / "out[1]" / "spans"), 1, first)


def test_a_window_without_many_spans_has_a_name_of_bounded_length() -> None:
    names = {window_name(1, 900, without=range(2, last)) for last in range(3, 900)}
    assert len(names) == 897
    assert max(map(len, names)) < 100
