"""Which version folders are found and chosen, and what is remembered of them."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from serving.errors import Code
from serving.server.versions import (
    Policy,
    State,
    VersionStates,
    VersionStatus,
    fingerprint,
)

VERSIONS = st.sets(st.integers(0, 2**63 - 1), max_size=8)


@given(versions=VERSIONS, count=st.integers(1, 4))
def test_latest_chooses_the_highest_versions(versions: set[int], count: int) -> None:
    chosen = Policy(latest=count).choose(versions)
    assert chosen <= versions
    assert len(chosen) == min(count, len(versions))
    assert all(c > other for c in chosen for other in versions - chosen)


@given(versions=VERSIONS, wanted=VERSIONS)
def test_specific_chooses_what_is_there_of_what_is_wanted(
    versions: set[int], wanted: set[int]
) -> None:
    assert Policy(specific=frozenset(wanted)).choose(versions) == versions & wanted
    assert Policy(latest=None).choose(versions) == versions


def test_a_fingerprint_changes_with_the_files_of_a_version(tmp_path: Path) -> None:
    before = fingerprint(tmp_path)
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "data").write_bytes(b"a")
    between = fingerprint(tmp_path)
    (tmp_path / "variables" / "data").write_bytes(b"ab")
    assert len({before, between, fingerprint(tmp_path)}) == 3
    assert fingerprint(tmp_path) == fingerprint(tmp_path)
    assert fingerprint(tmp_path / "nowhere") == ()


def test_states_are_listed_newest_version_first() -> None:
    states = VersionStates()
    for version in (3, 10, 7):
        states.set(version, State.LOADING)
    states.set(7, State.END, code=Code.DATA_LOSS, message="torn")
    assert [status.version for status in states.of()] == [10, 7, 3]
    assert states.of(7) == [
        VersionStatus(
            version=7,
            state=State.END,
            status={"error_code": Code.DATA_LOSS, "error_message": "torn"},
        )
    ]
    assert states.of(8) == []


def test_of_the_versions_that_ended_only_the_newest_are_remembered() -> None:
    states = VersionStates()
    states.set(1, State.AVAILABLE)
    for version in range(2, 500):
        states.set(version, State.END)
    remembered = [status.version for status in states.of()]
    assert remembered[0] == 499
    assert remembered[-1] == 1
    assert len(remembered) == 101
