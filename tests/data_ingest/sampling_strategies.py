"""Indexes for tests of sampling: by hand, and drawn by hypothesis."""

from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from data_ingest.index import ImageIndex, ImageRef


def refs_of(groups: Mapping[str, Sequence[Sequence[int]]]) -> list[ImageRef]:
    """Groups by name, each a list of classes, each a list of its images' writers."""
    return [
        ImageRef(group, f"{group}/{number:02d}", writer, f"image{at:03d}")
        for group, classes in groups.items()
        for number, writers in enumerate(classes)
        for at, writer in enumerate(writers)
    ]


def index_of(groups: Mapping[str, Sequence[Sequence[int]]]) -> ImageIndex:
    return ImageIndex.build(refs_of(groups))


def omniglot_like(*, groups: int, classes: int, writers: int) -> ImageIndex:
    """Every class of every group drawn once by each of `writers` writers."""
    hands = list(range(1, writers + 1))
    return index_of({f"group{number:02d}": [hands] * classes for number in range(groups)})


def layouts(
    *, max_groups: int = 5, max_classes: int = 5, max_writer: int = 4
) -> st.SearchStrategy[dict[str, list[list[int]]]]:
    """Layouts with all kinds of gaps: lone classes, lone images, unknown and missing writers."""
    writers = st.lists(st.integers(0, max_writer), min_size=1, max_size=5)
    classes = st.lists(writers, min_size=1, max_size=max_classes)
    names = st.sampled_from([f"group{number}" for number in range(max_groups)])
    return st.dictionaries(names, classes, min_size=1, max_size=max_groups)
