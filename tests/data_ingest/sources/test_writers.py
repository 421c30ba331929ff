"""Who drew an image: read from Omniglot's names and generated ones, else as the user says."""

import pytest

from data_ingest.sources.writers import checked_pattern, writer_of


@pytest.mark.parametrize("uri", ["Greek/character03/0394_07.png", "character03/0394_07.png"])
def test_omniglots_names_tell_of_the_drawer(uri: str) -> None:
    assert writer_of(uri) == 7


@pytest.mark.parametrize(
    "uri",
    [
        "n000001/0001_01.jpg",
        "n000001/0394_07.png",
        "cats/tom/2019_03.png",
        "Greek/character03/0394_07.jpg",
        "Greek/character03/394_07.png",
        "Greek/mycharacter03/0394_07.png",
        "Greek/character03/0394_07_b.png",
    ],
)
def test_other_names_tell_of_nobody(uri: str) -> None:
    assert writer_of(uri) == 0


def test_a_pattern_tells_writers_apart_by_the_text_of_its_group() -> None:
    pattern = checked_pattern(r"^form\d+_([^_.]+)_")
    ann, again, bob = (
        writer_of(f"eng/a/{name}", pattern)
        for name in ("form1_ann_01.png", "form27_ann_99.jpeg", "form1_bob_01.png")
    )
    assert ann == again != bob
    assert ann == 883729968872078, "the same on every machine and for ever"
    assert 0 < bob <= 2**52
    assert writer_of("eng/form1_ann_01/x.png", pattern) == 0, "folders are no names of files"


def test_a_pattern_takes_the_place_of_omniglots() -> None:
    assert writer_of("Greek/character03/0394_07.png", r"^(x)") == 0
    assert writer_of("a/0_07.png", r"_(\d*)") != writer_of("a/0_7.png", r"_(\d*)")
    assert writer_of("a/0_.png", r"_(\d*)") == 0, "an empty group is nobody"


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("[", "not a regular expression"), ("a+", "has 0"), ("(a)(b)", "has 2")],
)
def test_what_is_no_pattern_of_one_group_is_told(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_pattern(pattern)
