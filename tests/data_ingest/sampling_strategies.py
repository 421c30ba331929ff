"""Indexes for tests of sampling: by hand, and drawn by hypothesis."""

from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from data_ingest.sampling.index import ImageIndex, ImageRef


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


def divisible_layouts() -> st.SearchStrategy[dict[str, list[list[int]]]]:
    """Layouts that three splits of up to 0.3, 0.5 of the rest and the rest can share.

    Either three groups or more, each of which can be a split of its own, with any gaps besides; or
    fewer, and six classes or more of several drawings.
    """
    drawn = st.lists(st.integers(0, 4), min_size=2, max_size=5)
    gaps = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), max_size=3)
    group = st.builds(lambda own, more: own + more, st.lists(drawn, min_size=2, max_size=3), gaps)
    few = st.integers(1, 2).flatmap(
        lambda groups: st.lists(
            st.lists(drawn, min_size=6 // groups, max_size=8), min_size=groups, max_size=groups
        )
    )
    return st.one_of(st.lists(group, min_size=3, max_size=8), few).map(
        lambda groups: {f"group{number}": classes for number, classes in enumerate(groups)}
    )


def signatures(*, writers: int, genuine: int = 4, forged: int = 3) -> ImageIndex:
    """Every writer's own signatures, and the forgeries of all but the last."""
    return ImageIndex.build(
        ImageRef(f"w{writer:02d}", f"w{writer:02d}/{kind}", 0, f"image{at:03d}")
        for writer in range(writers)
        for kind, images in (("genuine", genuine), ("forged", forged))
        for at in range(images)
        if kind == "genuine" or writer < writers - 1
    )
