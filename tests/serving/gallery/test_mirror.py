"""The search in memory is exact, whatever came and went."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.gallery.sqlite.mirror import Mirror

changes = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 700)),
        st.tuples(st.just("discard"), st.integers(0, 3000)),
    ),
    max_size=25,
)


@settings(max_examples=50)
@given(changes=changes, seed=st.integers(0, 99), count=st.integers(1, 20))
def test_the_nearest_are_those_of_a_full_search(
    changes: list[tuple[str, int]], seed: int, count: int
) -> None:
    random = np.random.default_rng(seed)
    mirror = Mirror(5)
    known: dict[int, np.ndarray] = {}
    newest = 0
    for kind, number in changes:
        if kind == "add":
            images = list(range(newest, newest + number))
            newest += number
            vectors = random.normal(size=(number, 5)).astype(np.float32)
            mirror.add(images, vectors)
            known |= dict(zip(images, vectors, strict=True))
        else:
            mirror.discard(number)
            known.pop(number, None)
    assert len(mirror) == len(known)
    query = random.normal(size=5).astype(np.float32)
    nearest = mirror.nearest(query, count)
    keys, found = [key for key, _ in nearest], [distance for _, distance in nearest]
    distances = {image: float(np.abs(vector - query).sum()) for image, vector in known.items()}
    np.testing.assert_allclose(found, sorted(distances.values())[:count], rtol=1e-4)
    np.testing.assert_allclose(found, [distances[key] for key in keys], rtol=1e-4)
    assert len(set(keys)) == len(keys)


def test_memory_of_removed_vectors_is_cleared() -> None:
    mirror = Mirror(3)
    mirror.add([1, 2], np.array([[1, 1, 1], [2, 2, 2]], np.float32))
    mirror.discard(1)
    mirror.discard(2)
    assert not mirror._vectors.any()
    assert not mirror._keys.any()
