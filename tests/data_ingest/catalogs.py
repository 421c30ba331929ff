"""Catalogs made by hand, for tests that read no images."""

from collections.abc import Mapping, Sequence

import numpy as np

from data_ingest.records.catalog import Catalog, LocatedIndex, Rejected
from data_ingest.sampling.index import ImageIndex


def located(index: ImageIndex, *, size: int = 100) -> LocatedIndex:
    """All images in block 0, in the order of their rows, of `size` bytes each."""
    rows = np.arange(len(index))
    return LocatedIndex(index, np.full_like(rows, size), rows, np.zeros_like(rows), rows)


def catalog_of(
    sources: Mapping[str, LocatedIndex], *, rejected: Sequence[Rejected] = ()
) -> Catalog:
    read = {
        source: len(found.index) + sum(reject.source == source for reject in rejected)
        for source, found in sources.items()
    }
    return Catalog(sources, tuple(rejected), read)
