"""Runs the parts of a set-up one after the other, and says how they went."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from host import SetupError

Share = Callable[[], float]
Run = Callable[[Sequence[str], Mapping[str, str]], None]
SECONDS_A_LINE = 10
AGAIN = "then run the same command again: what was downloaded is kept."
CHECK_NETWORK = (
    "Check the network and the free disk space (behind a mirror or proxy set UV_DEFAULT_INDEX, "
    f"HTTPS_PROXY, SSL_CERT_FILE as uv needs them), {AGAIN}"
)
WRONG_FILE = (
    "The package index, or a mirror of it, gave a file that is not the file that the lock was made "
    "of.\nFind out why before you trust it; `make lock` makes the lock of what the index has."
)


def run_quietly(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Runs a command and shows what it printed only if it fails.

    Raises:
        SetupError: the command failed; the message holds its last lines.
    """
    done = subprocess.run(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.decode(errors="replace").strip().splitlines()[-25:])
        shown = " ".join(command).strip().partition("\n")[0]
        raise SetupError(f"{tail}\n`{shown}` failed with exit code {done.returncode}.")


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Holds a lock that the kernel releases when the process ends, however it ends."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another set-up of this folder is running; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def step(name: str, *, remedy: str = "", share: Share | None = None) -> Iterator[None]:
    """Says how far a part of the set-up is, and how long it took or how to go on if it fails.

    Args:
        name: what is done.
        remedy: what to do if it fails.
        share: asked now and then how much of it is done, from 0 to 1.
    """
    started = time.monotonic()
    write(f"  {name}: ")
    try:
        with told_meanwhile(name, share):
            yield
    except SetupError as error:
        say("failed")
        if "Hash mismatch" in str(error):
            remedy = WRONG_FILE
        raise SetupError(f"{error}\n{remedy}".rstrip()) from error
    say(f"{time.monotonic() - started:.0f} s")


@contextmanager
def told_meanwhile(name: str, share: Share | None) -> Iterator[None]:
    """Every second on a terminal, where the line is replaced; else every ten, behind the name."""
    over = threading.Event()
    terminal = sys.stderr.isatty()
    started = time.monotonic()

    def tell() -> None:
        first = None if share is None else share()
        while not over.wait(1 if terminal else SECONDS_A_LINE):
            seconds = time.monotonic() - started
            told = f"{seconds:.0f} s so far"
            if share is not None and (done := share()) > (first or 0):
                left = seconds * (1 - done) / (done - (first or 0))
                told = f"{done:.0%}, {left:.0f} s left"
            write(f"\r  {name}: {told:<20}" if terminal else f"{told}; ")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        if terminal:
            write(f"\r  {name}: {'':<20}\r  {name}: ")


def exit_code(set_up: Callable[[], None]) -> int:
    """Runs a set-up; 0 it is done, 1 it is not, and the message says what to do."""
    try:
        set_up()
    except SetupError as error:
        say(f"Set-up failed.\n{error}")
    except OSError as error:
        say(f"Set-up failed: {error}")
        say(f"Check that this folder is writable and its disk is not full, {AGAIN}")
    except KeyboardInterrupt:
        say("\nSet-up interrupted; the same command starts it again.")
    else:
        return 0
    return 1


def say(text: str) -> None:
    write(f"{text}\n")


def write(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
