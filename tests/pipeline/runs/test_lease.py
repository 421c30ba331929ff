"""The lease: one holder among processes and hosts, in a shared folder and in PostgreSQL."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.runs.lease import Holder, Lease, LeaseBusyError, LeaseLostError, Watch
from pipeline.runs.lease_store import FileLeaseStore, LeaseStoreError
from pipeline.runs.metadata_store import parse_url
from pipeline.runs.processes import Process

# Holds the lease until its stdin ends; says its token. With a second argument it pretends to be
# on a host of that name.
_HOLD = """
import socket, sys
from pipeline.runs.metadata_store import parse_url
if len(sys.argv) > 2:
    socket.gethostname = lambda: sys.argv[2]
with parse_url(sys.argv[1]).lease(ttl=30).held(run_id="theirs", command="retrain") as hold:
    print(hold.token, flush=True)
    sys.stdin.read()
"""
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["file", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("empty_database"))
    return f"sqlite:///{tmp_path}/metadata.db"


@pytest.fixture
def lease(url: str) -> Lease:
    """Long enough for a busy machine; `expire` is for tests that need its end."""
    return parse_url(url).lease(ttl=30)


def expire(lease: Lease) -> None:
    """As if its term had passed without a renewal."""

    def end(token: int, holder: Holder | None, now: float) -> tuple[int, Holder]:
        assert holder is not None
        return token, replace(holder, expires=now)

    lease.change(end)


@pytest.fixture
def elsewhere(url: str) -> Iterator[Hold]:
    """Starts processes that hold the lease; returns when they have it."""
    started: list[subprocess.Popen[str]] = []

    def hold(*host: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, url, *host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_it(lease: Lease, elsewhere: Hold) -> None:
    holder = elsewhere()
    with (
        pytest.raises(LeaseBusyError, match=f"retrain` theirs .process {holder.pid} on"),
        lease.held(run_id="ours", command="run"),
    ):
        pass
    holder.communicate("")
    with lease.held(run_id="ours", command="run"):
        found = lease.holder()
        assert found is not None
        assert (found.run_id, found.command, found.owner) == ("ours", "run", Process.this())
    assert lease.holder() is None


def test_one_that_died_on_this_host_is_taken_over_at_once(lease: Lease, elsewhere: Hold) -> None:
    holder = elsewhere()
    holder.kill()
    # Not waited for: a dead process that nobody has asked about counts as dead, too.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with lease.held(run_id="ours", command="run") as hold:
        assert hold.token == 2


def test_one_that_died_on_another_host_is_taken_over_when_it_has_expired(
    lease: Lease, elsewhere: Hold
) -> None:
    holder = elsewhere("another-host")
    holder.kill()
    holder.wait()
    with pytest.raises(LeaseBusyError, match="another-host"), lease.held(run_id="", command="run"):
        pass
    expire(lease)
    with lease.held(run_id="ours", command="run") as hold:
        assert hold.token == 2


def test_a_living_holder_keeps_it_beyond_its_first_expiry(lease: Lease, elsewhere: Hold) -> None:
    elsewhere("another-host")
    first = lease.holder()
    assert first is not None
    deadline = time.monotonic() + 60
    while (found := lease.holder()) is not None and found.expires == first.expires:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert found is not None
    assert found.expires > first.expires


def test_a_holder_that_stood_still_too_long_is_ended_on_the_host_and_stops_elsewhere(
    lease: Lease, elsewhere: Hold
) -> None:
    for host in ((), ("another-host",)):
        holder = elsewhere(*host)
        holder.send_signal(signal.SIGSTOP)
        expire(lease)
        with lease.held(run_id="ours", command="run"):
            holder.send_signal(signal.SIGCONT)
            # kill -9 here; there it notices the moment it goes on.
            assert holder.wait(timeout=60) == (1 if host else -signal.SIGKILL)
            assert lease.holder() is not None


def test_what_the_worker_of_a_dead_holder_does_is_ended_before_it_is_taken_over(
    lease: Lease, url: str
) -> None:
    worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
    code = """
import os, sys
from pipeline.runs.metadata_store import parse_url
lease = parse_url(sys.argv[1]).lease(ttl=30)
with lease.held(run_id="theirs", command="retrain") as hold:
    hold.set_worker(int(sys.argv[2]))
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code, url, str(worker.pid)], check=False)
    with lease.held(run_id="ours", command="retrain"):
        assert worker.wait(timeout=60) == -signal.SIGKILL


def test_the_holder_is_told_when_the_lease_is_anothers(lease: Lease) -> None:
    lost = threading.Event()
    with lease.held(run_id="ours", command="run", on_lost=lambda reason: lost.set()) as hold:
        lease.check(hold.token)
        lease._store.update(lambda text, now: '{"token": 9, "holder": null}')
        assert lost.wait(60)
        assert hold.lost.startswith("the lease was taken over")
        with pytest.raises(LeaseLostError):
            hold.check()
        with pytest.raises(LeaseLostError):
            hold.set_run_id("second")
    # Not given back: it was not ours any more.
    with lease.held(run_id="ours", command="run") as hold:
        assert hold.token == 10


def test_a_store_that_does_not_answer_loses_the_lease_in_the_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = threading.Event()
    reasons: list[str] = []

    def fails(change: object) -> None:
        raise LeaseStoreError("no answer")

    def note(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    lease = parse_url(url).lease(ttl=5)
    with lease.held(run_id="ours", command="run", on_lost=note) as hold:
        with monkeypatch.context() as patch:
            patch.setattr(lease._store, "update", fails)
            assert lost.wait(60)
        assert hold.lost == reasons[0] == "the lease was not renewed in time (no answer)"


def test_the_holder_learns_who_wants_it(lease: Lease) -> None:
    with lease.held(run_id="ours", command="retrain") as hold:
        found = lease.holder()
        assert found is not None
        lease.ask_to_stop(found, wanted_by="another run")
        hold.set_run_id("second")
        assert hold.wanted_by == "another run"
        assert (lease.holder() or found).run_id == "second"


def test_of_many_at_once_one_gets_it(lease: Lease) -> None:
    barrier = threading.Barrier(8)
    inside: list[int] = []
    most: list[int] = []

    def try_once(number: int) -> None:
        barrier.wait()
        try:
            with lease.held(run_id=str(number), command="run"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.2)
                inside.remove(number)
        except LeaseBusyError:
            pass

    threads = [threading.Thread(target=try_once, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most
    assert set(most) == {1}


def test_process_numbers_mean_nothing_on_another_boot_or_in_another_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = Process.this()
    assert here.is_here()
    assert here.is_alive()
    assert not Process("other", here.pid, here.started).is_here()
    monkeypatch.setattr("socket.gethostname", lambda: "other")
    assert not here.is_here()


def test_who_works_under_anothers_lease_ends_before_it_is_free() -> None:
    free = time.monotonic() + 4
    lost: list[float] = []
    watch = Watch(
        ask=lambda: free - time.monotonic(),
        ttl=15,
        on_lost=lambda reason: lost.append(time.monotonic()),
    )
    watch.start()
    while not lost:
        time.sleep(0.01)
    assert watch.lost
    assert lost[0] < free


def test_a_damaged_lease_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("{")
    with pytest.raises(Exception, match=r"delete lease\.json"):
        Lease(FileLeaseStore(tmp_path / "lease.json")).holder()
