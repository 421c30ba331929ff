"""Whom the demo begins with."""

from pathlib import Path

from serving.demo.pictures import ENROLLED, IMAGES, OUTSIDERS, recorded_pictures
from tests.pair_records import make_pairs, write_records


def test_recorded_classes_are_enrolled_or_outsiders(tmp_path: Path) -> None:
    pairs = make_pairs(groups=4, classes=30, pairs=1500)
    pairs = [pair._replace(protocol="verification") for pair in pairs]
    other = pairs[0]._replace(class_a="run01/class01", class_b="run01/class02", protocol="official")
    write_records(tmp_path, [other, *pairs])
    pictures = recorded_pictures(tmp_path)
    assert len(pictures.enrolled) == ENROLLED
    assert 50 <= len(pictures.outsiders) <= OUTSIDERS
    assert not pictures.enrolled.keys() & pictures.outsiders.keys()
    assert {name[:7] for name in pictures.enrolled} == {f"group0{number}" for number in range(4)}
    every = [*pictures.enrolled.values(), *pictures.outsiders.values()]
    assert all(1 <= len(images) == len({*images}) <= IMAGES for images in every)


def test_of_two_classes_one_is_enrolled(tmp_path: Path) -> None:
    pairs = make_pairs(groups=1, classes=2, pairs=20)
    write_records(tmp_path, [pair._replace(protocol="verification") for pair in pairs])
    pictures = recorded_pictures(tmp_path)
    assert (len(pictures.enrolled), len(pictures.outsiders)) == (1, 1)
