import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_ingest.durable import (
    copy_durably,
    locked,
    process_started,
    rename_durably,
    replacing,
    write_atomically,
)
from data_ingest.errors import InputError


def test_a_file_is_made_with_its_folders_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomically(path, "Grüße\n")
    assert path.read_bytes() == "Grüße\n".encode()
    write_atomically(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert list(path.parent.iterdir()) == [path]


def test_new_files_have_the_modes_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(TypeError), replacing(path) as stream:
        stream.writelines([b"aft", "er"])  # type: ignore[list-item]
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*/file'") as caught:
        write_atomically(tmp_path / "file", "x")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_files_and_folders_reach_the_disk_before_their_new_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "from" / "inner").mkdir(parents=True)
    (tmp_path / "from" / "inner" / "file").write_text("x")
    synchronized = []

    def note(descriptor: int) -> None:
        synchronized.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", note)
    copy_durably(tmp_path / "from", tmp_path / "staged")
    rename_durably(tmp_path / "staged", tmp_path / "to")
    assert synchronized == ["file", "inner", "staged", tmp_path.name]
    assert (tmp_path / "to" / "inner" / "file").read_text() == "x"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_folder_without_locks_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        pytest.raises(InputError, match=rf"^{tmp_path}: .* has no locks .*NFS 4"),
        locked(tmp_path / "lock"),
    ):
        pass


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from data_ingest.durable import locked\n"
        "with locked(Path(sys.argv[1])): print('held')\n"
    )
    with locked(tmp_path / "lock"):
        waiting = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=1)
    assert waiting.communicate(timeout=60)[0] == b"held\n"


def test_a_process_that_has_ended_does_not_run() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert process_started(os.getpid()) != "0"
    ended.wait()
    assert process_started(ended.pid) == "0"
