"""The tables of a gallery: the logic that SQLite and PostgreSQL share, and what each fills in.

Statements are written once, with `?` for values and `oneshot.` before tables; a `Session` puts
them into the words of its database.
"""

import hashlib
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from operator import attrgetter, itemgetter
from typing import Any, Final

import numpy as np

from data_ingest.sources.kinds import Crop
from serving.gallery.records import (
    AlreadyEnrolled,
    CohortImage,
    Counts,
    GalleryModel,
    Identity,
    ModelChanged,
    ModelFacts,
    Template,
    Unembedded,
    Vectors,
)
from serving.gallery.threshold import Impostors

_MODEL: Final = "SELECT id, version, bias, probe, impostors FROM oneshot.model"
_ACTIVE: Final = "SELECT id FROM oneshot.model WHERE state = 'active'"
_CROP: Final = "crop"
"""Key of the setting."""
_SCATTERED: Final = "(identity % 1000003 * 2654435761) & 4294967295, identity"
"""An order of identities: those enrolled one after the other may be of one kind."""


class Session(ABC):
    """A connection of a store."""

    @abstractmethod
    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Runs a statement; gives all rows, as tuples. Nothing of it is left open."""

    def value(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The only value of the only row, None if there is no row."""
        found = self.rows(sql, values)
        return found[0][0] if found else None


class Store(ABC):
    """Identities, images, and vectors by model version. Thread-safe, and shared by processes.

    What a method has done when it returns survives a crash of process or machine. All of them
    raise ServingError with UNAVAILABLE when the database cannot be reached or stays locked, and
    those that take a model raise ModelChanged when its vectors are gone.
    """

    _for_share = ""
    """Ends a SELECT whose rows others may read but not change until the transaction ends."""
    _for_update = ""
    """Ends a SELECT whose rows are this transaction's alone."""

    def active(self) -> GalleryModel | None:
        """The version whose vectors answer; None before the first enrolment."""
        with self._read() as session:
            found = session.rows(f"{_MODEL} WHERE state = 'active'")
        return _model(found[0]) if found else None

    def crop(self) -> Crop | None:
        """What is cut out of all images of this gallery; None: they are whole."""
        with self._read() as session:
            found: Crop | None = session.value(
                "SELECT value FROM oneshot.setting WHERE key = ?", [_CROP]
            )
        return found

    def set_crop(self, crop: Crop) -> None:
        """Remembers what is cut out of the images of a gallery that has none yet."""
        with self._write() as session:
            session.rows(
                "INSERT INTO oneshot.setting (key, value) VALUES (?, ?)"
                " ON CONFLICT (key) DO NOTHING",
                [_CROP, crop],
            )

    def begin(self, facts: ModelFacts) -> GalleryModel:
        """Makes room for vectors of this version, or finds what is there of it already.

        Raises:
          ServingError: FAILED_PRECONDITION: the database cannot hold such vectors.
        """
        with self._layout() as session:
            known = session.rows(
                f"{_MODEL} WHERE version = ? AND state <> 'retired'", [facts.version]
            )
            if known:
                return _model(known[0])
            # What another rebuild began for yet another version is of no use any more.
            session.rows("UPDATE oneshot.model SET state = 'retired' WHERE state = 'building'")
            key = session.value(
                "INSERT INTO oneshot.model (version, bias, probe, state, created)"
                " VALUES (?, ?, ?, 'building', ?) RETURNING id",
                [facts.version, facts.bias, facts.probe.tobytes(), time.time()],
            )
            self._create_vectors(session, key, dimensions=facts.dimensions)
            return GalleryModel(key, facts, None)

    def activate(
        self, model: GalleryModel, *, instead_of: GalleryModel | None, impostors: Impostors | None
    ) -> bool:
        """Lets this version answer from now on; the one before is retired in the same moment.

        Returns:
          False, and nothing has changed, where an identity's images are not all in a vector of
          this version, or another version than `instead_of` has become active.
        """
        with self._layout() as session:
            # Waits for enrolments under way, which share this row, and keeps new ones waiting.
            active = session.value(_ACTIVE + self._for_update)
            if active != (None if instead_of is None else instead_of.key):
                return False
            self._check_there(session, model)
            if session.rows(self._incomplete(model), [0, 1]):
                return False
            session.rows("UPDATE oneshot.model SET state = 'retired' WHERE state = 'active'")
            activated = session.value(
                "UPDATE oneshot.model SET state = 'active', impostors = ?"
                " WHERE id = ? AND state = 'building' RETURNING id",
                [impostors and impostors.to_json(), model.key],
            )
            if activated is None:
                raise ModelChanged
            return True

    def drop_retired(self) -> None:
        """Deletes the vectors of versions that do not answer any more."""
        with self._layout() as session:
            for (key,) in session.rows("SELECT id FROM oneshot.model WHERE state = 'retired'"):
                session.rows(f"DROP TABLE {vector_table(key)}")
                session.rows("DELETE FROM oneshot.model WHERE id = ?", [key])

    def set_impostors(self, model: GalleryModel, impostors: Impostors | None) -> None:
        """Replaces what the thresholds of a version rest on."""
        with self._write() as session:
            session.rows(
                "UPDATE oneshot.model SET impostors = ? WHERE id = ?",
                [impostors and impostors.to_json(), model.key],
            )

    def add(
        self,
        enrolments: Sequence[tuple[str, Sequence[tuple[bytes, Vectors]]]],
        *,
        model: GalleryModel,
    ) -> int:
        """Enrols images, with their vectors, under names, all or none.

        Those that are there already are left alone.

        Returns:
          How many were new.

        Raises:
          ModelChanged: `model` is not the active one.
          AlreadyEnrolled: one of them is enrolled under another name.
        """
        now = time.time()
        added = 0
        with self._write() as session:
            if session.value(_ACTIVE + self._for_share) != model.key:
                raise ModelChanged
            # In one order everywhere, so that two who add the same names do not lock each other.
            for name, images in sorted(enrolments, key=itemgetter(0)):
                identity = session.value(
                    "INSERT INTO oneshot.identity (name, created) VALUES (?, ?)"
                    # An update, if of nothing, keeps the row from being removed meanwhile.
                    " ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id",
                    [name, now],
                )
                new = _add_images(session, identity, name, images, now)
                if new:
                    self._fold(session, model, identity, new)
                added += len(new)
        return added

    def remove(self, name: str) -> int:
        """Deletes a name with its images and its vectors of every version.

        Returns:
          How many images were deleted, 0 if there is no such name.
        """
        with self._write() as session:
            identity = session.value(
                f"SELECT id FROM oneshot.identity WHERE name = ?{self._for_update}", [name]
            )
            if identity is None:
                return 0
            images = session.rows(
                "DELETE FROM oneshot.image WHERE identity = ? RETURNING id", [identity]
            )
            self._forget(session, identity)
            session.rows("DELETE FROM oneshot.identity WHERE id = ?", [identity])
            return len(images)

    @abstractmethod
    def erase(self, *, thorough: bool) -> bool:
        """Makes what was deleted unreadable in the database's files too.

        Args:
          thorough: whether it may take long and keep others waiting.

        Returns:
          Whether that was possible now.
        """

    @abstractmethod
    def nearest(
        self, query: Vectors, count: int, *, model: GalleryModel
    ) -> list[tuple[str, float]]:
        """Names of the `count` nearest identities, and Manhattan distances to their means."""

    def mean_of(self, name: str, *, model: GalleryModel) -> Vectors | None:
        """`[D]`, the mean vector of a name; None if there is no such name."""
        with self._read() as session:
            self._check_there(session, model)
            vector = session.value(
                f"SELECT vector FROM {self._stored(model)} AS v WHERE identity ="
                " (SELECT id FROM oneshot.identity WHERE name = ?)",
                [name],
            )
        return None if vector is None else self._array(vector)

    def sample(self, count: int, *, model: GalleryModel) -> tuple[list[int], list[int], Vectors]:
        """Of up to `count` identities, the same at each call: keys, how many images, and the mean
        vectors of these, `[N, D]`."""
        stored = self._stored(model)
        with self._read() as session:
            self._check_there(session, model)
            found = session.rows(
                f"SELECT identity, images, vector FROM {stored} AS v WHERE identity IN"
                f" (SELECT identity FROM {stored} AS w ORDER BY {_SCATTERED} LIMIT ?)"
                " ORDER BY identity",
                [count],
            )
        vectors = np.array([self._array(vector) for *_, vector in found], np.float32)
        keys, images = [key for key, *_ in found], [images for _, images, _ in found]
        return keys, images, vectors.reshape(-1, model.facts.dimensions)

    def images(self, key: int, *, limit: int) -> list[bytes]:
        """The first images of an identity."""
        with self._read() as session:
            found = session.rows(
                "SELECT content FROM oneshot.image WHERE identity = ? ORDER BY id LIMIT ?",
                [key, limit],
            )
        return [content for (content,) in found]

    def scattered(self, count: int, *, several: bool) -> list[int]:
        """Keys of up to `count` identities with two images or more, or with one; see `sample`."""
        having = "count(*) > 1" if several else "count(*) = 1"
        with self._read() as session:
            found = session.rows(
                "SELECT identity FROM oneshot.image GROUP BY identity"
                f" HAVING {having} ORDER BY {_SCATTERED} LIMIT ?",
                [count],
            )
        return [key for (key,) in found]

    def missing(self, model: GalleryModel, *, after: int, limit: int) -> list[Unembedded]:
        """Identities with images that are not in their vector of this version, in order of keys."""
        with self._read() as session:
            found = session.rows(
                f"SELECT i.id, i.name, content FROM ({self._incomplete(model)}) AS i"
                " JOIN oneshot.image ON identity = i.id ORDER BY i.id, image.id",
                [after, limit],
            )
        return [
            Unembedded(key, name, tuple(content for *_, content in rows))
            for (key, name), rows in itertools.groupby(found, key=itemgetter(0, 1))
        ]

    def put_templates(self, model: GalleryModel, templates: Sequence[Template]) -> None:
        """Stores vectors of a version that is being built.

        Left out are those of identities that are gone, or have got more images since: they are
        missing still.
        """
        with self._write() as session:
            self._check_there(session, model)
            for template in sorted(templates, key=attrgetter("key")):
                # A lock keeps enrolments and removals of this identity waiting.
                lock = f"SELECT id FROM oneshot.identity WHERE id = ?{self._for_update}"
                session.rows(lock, [template.key])
                count = "SELECT count(*) FROM oneshot.image WHERE identity = ?"
                if session.value(count, [template.key]) == template.images:
                    self._put(session, model, template)

    @abstractmethod
    def counts(self) -> Counts:
        """Exactly; may take long where many are enrolled."""

    def names(self) -> int:
        """About how many names are enrolled; takes no time."""
        return self.counts().names

    def identities(self, *, after: str, limit: int) -> list[Identity]:
        """Those whose names come after `after` in order of code points."""
        return self._identities("name > ? ORDER BY name LIMIT ?", [after, limit])

    def namesakes(self, name: str) -> list[str]:
        """Other names that differ in nothing but upper and lower case, in order."""
        with self._read() as session:
            found = session.rows(
                "SELECT name FROM oneshot.identity"
                " WHERE lower(name) = lower(?) AND name <> ? ORDER BY name",
                [name, name],
            )
        return [found_name for (found_name,) in found]

    def identity(self, name: str) -> Identity | None:
        """What is enrolled under a name; None if there is no such name."""
        found = self._identities("name = ?", [name])
        return found[0] if found else None

    def cohort(self) -> list[CohortImage]:
        """The images of outsiders, in the order in which they were given."""
        with self._read() as session:
            found = session.rows("SELECT person, content FROM oneshot.cohort ORDER BY id")
        return [CohortImage(*row) for row in found]

    def set_cohort(self, images: Sequence[CohortImage]) -> None:
        """Replaces the cohort."""
        with self._write() as session:
            session.rows("DELETE FROM oneshot.cohort")
            for image in images:
                session.rows("INSERT INTO oneshot.cohort (person, content) VALUES (?, ?)", image)

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _read(self) -> AbstractContextManager[Session]:
        """For queries."""

    @abstractmethod
    def _write(self) -> AbstractContextManager[Session]:
        """A transaction, all or nothing."""

    def _layout(self) -> AbstractContextManager[Session]:
        """A transaction that no other process's change of models gets in between."""
        return self._write()

    def _check_there(self, session: Session, model: GalleryModel) -> None:  # noqa: B027
        """Raises ModelChanged where `model` is retired and queries of its vectors would not."""

    @abstractmethod
    def _create_vectors(self, session: Session, key: int, *, dimensions: int) -> None:
        """Makes the table `vector_table(key)`."""

    @abstractmethod
    def _stored(self, model: GalleryModel) -> str:
        """The table of a version's means: `identity`, `images` in its mean, and `vector`."""

    @abstractmethod
    def _array(self, stored: Any) -> Vectors:
        """`[D]`, from a `vector` of `_stored`."""

    @abstractmethod
    def _put(self, session: Session, model: GalleryModel, template: Template) -> None:
        """Stores an identity's mean in place of the one there was."""

    def _fold(
        self, session: Session, model: GalleryModel, identity: int, vectors: Sequence[Vectors]
    ) -> None:
        """Takes more vectors into the mean of an identity whose row is locked."""
        before = session.rows(
            f"SELECT images, vector FROM {self._stored(model)} AS v WHERE identity = ?", [identity]
        )
        total, count = np.sum(vectors, axis=0, dtype=np.float64), len(vectors)
        for images, mean in before:
            total += self._array(mean).astype(np.float64) * images
            count += images
        self._put(session, model, Template(identity, count, np.asarray(total / count, np.float32)))

    def _forget(self, session: Session, identity: int) -> None:  # noqa: B027
        """Deletes an identity's vectors that would not go with its row."""

    def _incomplete(self, model: GalleryModel) -> str:
        """Keys and names after a key, up to a limit, whose images are not all in their mean."""
        return (
            f"SELECT i.id, i.name FROM oneshot.identity AS i LEFT JOIN {self._stored(model)} AS v"
            " ON v.identity = i.id WHERE i.id > ? AND coalesce(v.images, 0) <>"
            " (SELECT count(*) FROM oneshot.image WHERE identity = i.id) ORDER BY i.id LIMIT ?"
        )

    def _identities(self, condition: str, values: Sequence[Any]) -> list[Identity]:
        with self._read() as session:
            found = session.rows(
                "SELECT i.name, i.created, image.created, sha256"
                f" FROM (SELECT * FROM oneshot.identity WHERE {condition}) AS i"
                " LEFT JOIN oneshot.image ON identity = i.id ORDER BY i.name, image.id",
                values,
            )
        identities = []
        for (name, created), rows in itertools.groupby(found, key=itemgetter(0, 1)):
            images = [(at, digest) for _, _, at, digest in rows if digest is not None]
            updated = max((at for at, _ in images), default=created)
            digests = tuple(digest.hex() for _, digest in images)
            identities.append(Identity(name, created, updated, digests))
        return identities


def vector_table(key: int) -> str:
    """The table of a model's vectors; the key is a number, so the name is safe in SQL."""
    return f"oneshot.vector_{int(key)}"


def _add_images(
    session: Session, identity: int, name: str, images: Sequence[tuple[bytes, Vectors]], now: float
) -> list[Vectors]:
    """Stores what is not there yet, and gives the vectors of that."""
    new = []
    for place, (content, vector) in enumerate(images):
        digest = hashlib.sha256(content).digest()
        key = session.value(
            "INSERT INTO oneshot.image (identity, sha256, created, content)"
            " VALUES (?, ?, ?, ?) ON CONFLICT (sha256) DO NOTHING RETURNING id",
            [identity, digest, now, content],
        )
        if key is not None:
            new.append(vector)
            continue
        owner = session.rows(
            "SELECT identity, name FROM oneshot.image JOIN oneshot.identity"
            " ON identity.id = image.identity WHERE sha256 = ?",
            [digest],
        )
        if not owner:  # removed in this very moment: again
            raise ModelChanged
        if owner[0][0] != identity:
            raise AlreadyEnrolled(
                f"image {place} (SHA-256 {digest.hex()[:16]}…) is already enrolled as "
                f"{owner[0][1]!r}; one image cannot have two names: remove it there first",
                name=name,
                place=place,
            )
    return new


def _model(row: Sequence[Any]) -> GalleryModel:
    key, version, bias, probe, impostors = row
    facts = ModelFacts(version, bias, np.frombuffer(probe, np.float32))
    return GalleryModel(key, facts, impostors and Impostors.from_json(impostors))
