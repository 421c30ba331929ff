"""Set-up: any Python gets an answer, a second call is quick, an interrupted one is made good."""

import hashlib
import io
import json
import os
import pty
import py_compile
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import bootstrap
import environment
import host
import steps
import uv_download
from airflow_environment import LOCK_FILE
from environment import NEWER_GLIBC_WHEELS, Setup, compiled_share, split_pins
from host import SetupError, uv_environment
from steps import exit_code, only_one, run_quietly, step
from tests.scripts.elf_builder import shared_object

_SCRIPTS = Path(environment.__file__).parent
_NEWER = shared_object({"libc.so.6": {"GLIBC_2.2.5": ["abort"], "GLIBC_2.99": ["__isoc23_strtol"]}})


class KilledError(BaseException):
    """Stands for a kill: no handler of the set-up may catch it."""


class FakeMachine:
    """Does in a folder what the set-up's commands would do, and can be killed in any of them."""

    def __init__(self, venv: Path, *, killed_in: int | None = None) -> None:
        self.venv = venv
        self.killed_in = killed_in
        self.commands: list[str] = []
        self.environs: list[Mapping[str, str]] = []

    def run(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        words = " ".join(command)
        self._note(words, environ)
        site = self.venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        if "-m venv" in words:
            (self.venv / "bin").mkdir(parents=True)
            (self.venv / "bin" / "python").touch()
        elif " pip " in words and "--editable" not in words:
            for module in NEWER_GLIBC_WHEELS.values():
                (site / module).parent.mkdir(parents=True, exist_ok=True)
                (site / module).write_bytes(_NEWER)

    def download(self, program: Path, environ: Mapping[str, str]) -> None:
        self._note("download uv", environ)
        program.touch()

    def _note(self, words: str, environ: Mapping[str, str]) -> None:
        self.commands.append(words)
        self.environs.append(environ)
        if len(self.commands) - 1 == self.killed_in:
            raise KilledError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout on an old but good enough host."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "requirements.lock").write_text(
        "bird==1.0\n    # via fish\nml-metadata==1.21.0\ntensorflow-data-validation==1.21.0\n"
    )
    (checkout / "requirements-gpu.lock").write_text("cuda==1.0\n")
    (checkout / "setup.py").write_text("")
    monkeypatch.setattr(environment, "glibc_version", lambda: (2, 36))
    monkeypatch.setattr(environment, "check_host", lambda root, gpu: None)
    return checkout


def _set_up(root: Path, *, killed_in: int | None = None, gpu: bool = False) -> list[str]:
    """The commands that a set-up ran."""
    machine = FakeMachine(root / ".venv", killed_in=killed_in)
    try:
        Setup(root, gpu=gpu, run=machine.run, download=machine.download).ensure()
    except KilledError:
        assert killed_in is not None
    return machine.commands


def _stamp(root: Path) -> dict[str, object]:
    stamp: dict[str, object] = json.loads((root / ".venv" / environment.STAMP).read_text())
    return stamp


def test_a_set_up_installs_checks_and_says_what_it_adapted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = _set_up(root)
    kinds = ["-m venv", "download uv", "pip sync", "pip install", "--editable", "compileall", "-c "]
    assert [kind in command for kind, command in zip(kinds, commands, strict=True)] == [True] * 7
    assert _stamp(root)["state"] == "ready"
    assert _stamp(root)["adapted"] == {
        module: ["GLIBC_2.99"] for module in NEWER_GLIBC_WHEELS.values()
    }
    told = [
        line for line in capsys.readouterr().err.splitlines() if "GLIBC" in line or "newer" in line
    ]
    assert len(told) == 2
    assert "adapted" in told[1]


def test_only_the_two_wheels_are_chosen_for_another_platform(root: Path) -> None:
    commands = _set_up(root)
    installs = [command for command in commands if "pip sync" in command or " -r " in command]
    assert ["--require-hashes" in command for command in installs] == [True, True]
    override = [command for command in commands if "--python-platform" in command]
    assert len(override) == 1
    assert "--no-deps" in override[0]
    assert (root / ".venv" / "pins-newer-glibc.txt").read_text().split() == [
        "ml-metadata==1.21.0",
        "tensorflow-data-validation==1.21.0",
    ]
    assert (root / ".venv" / "pins.txt").read_text() == "bird==1.0"


def test_on_a_new_host_nothing_is_overridden_or_adapted(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "glibc_version", lambda: (2, 39))
    offered = {"libc.so.6": {"GLIBC_2.2.5", "GLIBC_2.99"}}
    monkeypatch.setattr("elf.host_versions", lambda: offered)
    assert not [command for command in _set_up(root) if "--python-platform" in command]
    assert "ml-metadata==1.21.0" in (root / ".venv" / "pins.txt").read_text()
    assert _stamp(root)["adapted"] == {}
    assert "adapted" not in capsys.readouterr().err


def test_a_second_call_runs_nothing(root: Path) -> None:
    _set_up(root)
    assert _set_up(root) == []


@pytest.mark.parametrize("killed_in", range(7))
def test_a_set_up_killed_at_any_step_starts_over(root: Path, killed_in: int) -> None:
    whole = _set_up(root, killed_in=killed_in)
    assert len(whole) == killed_in + 1
    (root / ".venv").mkdir(exist_ok=True)
    (root / ".venv" / "half-installed").touch()
    assert len(_set_up(root)) == 7
    assert not (root / ".venv" / "half-installed").exists()
    assert _stamp(root)["state"] == "ready"
    assert _set_up(root) == []


@pytest.mark.parametrize("killed_in", range(5))
def test_an_update_killed_at_any_step_starts_over(root: Path, killed_in: int) -> None:
    _set_up(root)
    (root / "requirements.lock").write_text("bird==2.0\nml-metadata==1.21.0\n")
    _set_up(root, killed_in=killed_in)
    assert len(_set_up(root)) == 7
    assert _set_up(root) == []


@pytest.mark.parametrize("changed", ["requirements.lock", "setup.py"])
def test_changed_pins_or_package_definition_update_the_environment(
    root: Path, changed: str
) -> None:
    _set_up(root)
    kept = root / ".venv" / "kept"
    kept.touch()
    with (root / changed).open("a") as file:
        file.write("# changed\n")
    commands = _set_up(root)
    assert len(commands) == 5
    assert kept.exists()
    assert _set_up(root) == []


@pytest.mark.parametrize("damage", ["python", "stamp", "moved", "glibc"])
def test_an_environment_that_cannot_be_trusted_is_made_anew(
    root: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_up(root)
    if damage == "python":
        (root / ".venv" / "bin" / "python").unlink()
    elif damage == "stamp":
        (root / ".venv" / environment.STAMP).write_text('{"state": "rea')
    elif damage == "moved":
        root = root.rename(root.with_name("moved"))
    else:
        monkeypatch.setattr(environment, "glibc_version", lambda: (2, 35))
    assert len(_set_up(root)) == 7


def test_cuda_is_added_on_request_and_stays(root: Path) -> None:
    _set_up(root)
    assert len(_set_up(root, gpu=True)) == 5
    assert "cuda==1.0" in (root / ".venv" / "pins.txt").read_text()
    assert _set_up(root) == []


def test_a_failed_step_tells_what_to_do(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FakeMachine(root / ".venv")

    def run(command: Sequence[str], environ: Mapping[str, str]) -> None:
        if "sync" in command:
            raise SetupError("no route to host")
        machine.run(command, environ)

    with pytest.raises(SetupError, match="no route to host") as caught:
        Setup(root, run=run, download=machine.download).ensure()
    assert "Check the network" in str(caught.value)
    assert _stamp(root)["state"] == "unfinished"
    assert len(_set_up(root)) == 7


def test_uv_comes_through_pip_where_it_cannot_be_downloaded(root: Path) -> None:
    machine = FakeMachine(root / ".venv")

    def download(program: Path, environ: Mapping[str, str]) -> None:
        raise OSError("certificate unknown")

    Setup(root, run=machine.run, download=download).ensure()
    assert "-m ensurepip" in machine.commands[1]
    assert "--require-hashes" in machine.commands[2]
    pin = f"uv=={uv_download.UV_VERSION} --hash=sha256:{uv_download.WHEEL_SHA256}\n"
    assert Path(machine.commands[2].split()[-1]).read_text() == pin

    def run(command: Sequence[str], environ: Mapping[str, str]) -> None:
        if "ensurepip" in command:
            raise SetupError("No module named ensurepip")
        machine.run(command, environ)

    shutil.rmtree(root / ".venv")
    with pytest.raises(SetupError, match="PIP_INDEX_URL") as caught:
        Setup(root, run=run, download=download).ensure()
    assert "certificate unknown" in str(caught.value)


def test_the_project_is_installed_from_a_folder_of_any_name(root: Path) -> None:
    odd = root.rename(root.with_name("it's 5%20, #é [1]"))
    (odd / "setup.py").write_text("from setuptools import setup; setup(name='odd', version='7')")
    machine, install = FakeMachine(odd / ".venv"), list[str]()

    def run(command: Sequence[str], environ: Mapping[str, str]) -> None:
        machine.run(command, environ)
        if "--editable" in command:
            install.extend(command)

    Setup(odd, run=run, download=machine.download).ensure()
    python = Path(sys.executable)
    install[0], install[install.index("--python") + 1] = str(python.with_name("uv")), str(python)
    run_quietly([*install, "--dry-run", "--offline"], uv_environment(os.environ))


@pytest.mark.parametrize("name", ["a:b", "{a}", "a\nb", "a\udcff"])
def test_a_folder_that_no_environment_can_be_in_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SetupError, match="Rename the folder"):
        host.check_host(tmp_path / name, gpu=False)


def test_two_set_ups_of_one_folder_take_turns(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    order = []

    def second() -> None:
        with only_one(lock):
            order.append("second")

    with only_one(lock):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_the_output_of_a_command_is_shown_only_when_it_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_quietly([sys.executable, "-c", "print('chatter')"], {})
    with pytest.raises(SetupError, match="chatter") as caught:
        run_quietly([sys.executable, "-c", "print('chatter'); exit(3)"], {})
    assert "exit code 3" in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 9), (3, 14)])
def test_other_pythons_are_refused_with_a_way_out(version: tuple[int, int]) -> None:
    assert not bootstrap.is_accepted((*version, 1, "final", 0))
    text = bootstrap.refusal(version)
    assert f"this is {version[0]}.{version[1]}" in text
    assert "apt install python3.11" in text
    assert "make PYTHON=" in text


def test_an_accepted_python_on_the_path_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in {
        "python3.11": "#!/bin/sh\nexit 127\n",  # a pyenv shim without its version
        "python3.12": "#!/bin/sh\necho 3.12\n",
    }.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bootstrap.find_accepted() == "python3.12"
    (tmp_path / "python3.12").unlink()
    assert bootstrap.find_accepted() is None


def test_the_entry_point_parses_on_old_pythons() -> None:
    source = (_SCRIPTS / "bootstrap.py").read_text()
    for recent in ("from __future__", ":=", 'f"', "->", "[*", ", *"):
        assert recent not in source


def test_pythons_3_10_to_3_13_are_accepted() -> None:
    assert all(bootstrap.is_accepted((3, minor, 0)) for minor in range(10, 14))


def _patch(monkeypatch: pytest.MonkeyPatch, change: Mapping[str, object]) -> None:
    for name, value in change.items():
        if name.endswith("version_info"):
            monkeypatch.setattr(name, value)
        else:
            monkeypatch.setattr(name, lambda *_, value=value: value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host.platform.machine": "aarch64"}, "x86-64 Linux"),
        ({"host.platform.system": "Darwin"}, "x86-64 Linux"),
        ({"host.glibc_version": (2, 31)}, "this host has 2.31"),
        ({"host.glibc_version": ()}, "another C library"),
        ({"host.shutil.disk_usage": shutil._ntuple_diskusage(9, 9, 2**30)}, "1.0 GiB free"),
        ({"host.sys.version_info": (3, 10, 1), "host.shutil.which": None}, "g++"),
    ],
)
def test_hosts_where_the_set_up_would_fail_are_refused_before_it_starts(
    change: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {
        "host.sys.version_info": (3, 11, 1),
        "host.shutil.disk_usage": shutil._ntuple_diskusage(2**40, 0, 2**40),
    }
    _patch(monkeypatch, good)
    host.check_host(tmp_path, gpu=True)
    _patch(monkeypatch, change)
    with pytest.raises(SetupError) as caught:
        host.check_host(tmp_path, gpu=False)
    monkeypatch.undo()
    assert words in str(caught.value)
    assert any(verb in str(caught.value) for verb in ("Use ", "Free ", "Install "))


def test_pip_settings_reach_uv_and_its_own_go_first() -> None:
    environ = {
        "PIP_INDEX_URL": "https://mirror/simple",
        "PIP_CERT": "/certificates.pem",
        "PIP_FIND_LINKS": "/no/such/folder https://wheels/",
        "UV_DEFAULT_INDEX": "https://own/simple",
        "PIP_TARGET": "/elsewhere",
        "PYTHONPATH": "/elsewhere",
        "HOME": "/home/someone",
    }
    passed = uv_environment(environ)
    assert passed["UV_DEFAULT_INDEX"] == "https://own/simple"
    assert passed["SSL_CERT_FILE"] == "/certificates.pem"
    assert passed["UV_FIND_LINKS"] == "https://wheels/"
    assert passed["HOME"] == "/home/someone"
    assert not {"PIP_TARGET", "PYTHONPATH"} & passed.keys()
    del environ["UV_DEFAULT_INDEX"]
    assert uv_environment(environ)["UV_DEFAULT_INDEX"] == "https://mirror/simple"


def test_every_pin_lands_in_one_of_the_two_lists() -> None:
    a = "a==1 ; python_version < '4' \\\n    --hash=sha256:1 \\\n    --hash=sha256:2"
    b = "b==2 \\\n    --hash=sha256:3"
    text = f"# made by\n{a}\n    # via b\n{b}\nc==3\n"
    assert split_pins(text, {"b"}) == (f"{a}\nc==3", b)
    assert split_pins(text, ())[1] == ""


def test_the_lock_pins_each_package_exactly_and_names_the_two_wheels() -> None:
    root = _SCRIPTS.parent
    plain, newer = split_pins((root / "requirements.lock").read_text(), NEWER_GLIBC_WHEELS)
    pins = [line for line in f"{plain}\n{newer}".splitlines() if line[0] != " "]
    assert newer.count("==") == 2
    assert len(pins) > 200
    assert all(re.fullmatch(r"[\w.-]+==[^ ]+( ; .+)? \\", pin) for pin in pins)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-gpu.lock", LOCK_FILE])
def test_every_pin_of_a_lock_has_hashes_and_no_marker_that_all_share(name: str) -> None:
    text = (_SCRIPTS.parent / name).read_text()
    pins = re.findall(r"^\S+==.*$(?=\n    --hash=sha256:[0-9a-f]{64})", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)) > 0
    assert not [pin for pin in pins if "platform_machine" in pin or "'3.14' \\" in pin]


def test_a_file_that_is_not_the_one_of_the_lock_stops_the_set_up(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real uv, and a wheel in a folder for an index."""
    wheels = root / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "bird-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "bird-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: bird\nVersion: 1.0"
        )
        wheel.writestr("bird-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        wheel.writestr("bird-1.0.dist-info/RECORD", "")
    (root / "requirements.lock").write_text(f"bird==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    uv = shutil.which("uv", path=Path(sys.executable).parent)
    assert uv is not None

    def link(program: Path, environ: Mapping[str, str]) -> None:
        program.symlink_to(uv)

    setup = Setup(root, download=link)
    setup.environ |= {"UV_NO_INDEX": "1", "UV_FIND_LINKS": str(wheels), "UV_OFFLINE": "1"}
    assert exit_code(setup.ensure) == 1
    told = capsys.readouterr().err
    assert "Hash mismatch for `bird==1.0`" in told
    assert "not the file that the lock was made of" in told
    assert not setup.is_finished()


def _index(monkeypatch: pytest.MonkeyPatch, wheel: bytes) -> None:
    page = f'<a href="../files/{uv_download.WHEEL}#sha256=00">uv</a>'.encode()

    def urlopen(request: urllib.request.Request, **_: object) -> io.BytesIO:
        assert request.full_url.startswith("https://mirror/")
        return io.BytesIO(page if request.full_url.endswith("/simple/uv/") else wheel)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_uv_is_taken_from_the_index_that_pip_is_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(uv_download.PROGRAM, "#!/bin/sh\necho uv\n")
    digest = hashlib.sha256(wheel.getvalue()).hexdigest()
    monkeypatch.setattr(uv_download, "WHEEL_SHA256", digest)
    _index(monkeypatch, wheel.getvalue())
    program = tmp_path / "uv"
    uv_download.download_uv(program, {"UV_DEFAULT_INDEX": "https://mirror/simple/"})
    assert subprocess.check_output([program]) == b"uv\n"


def test_another_file_under_the_name_of_uv_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _index(monkeypatch, b"something else")
    with pytest.raises(OSError, match="not the file expected"):
        uv_download.download_uv(tmp_path / "uv", {"UV_DEFAULT_INDEX": "https://mirror/simple"})
    assert list(tmp_path.iterdir()) == []


def test_the_bytecode_is_counted_by_some_of_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "SAMPLED", 4)
    modules = [tmp_path / f"m{number}.py" for number in range(20)]
    for path in (*modules, tmp_path / "own_test.py"):
        path.touch()
    share = compiled_share(tmp_path)
    assert share() == 0
    for path in modules[:10]:
        py_compile.compile(str(path))
    assert 0 < share() < 1
    for path in modules[10:]:
        py_compile.compile(str(path))
    assert share() == 1
    assert compiled_share(tmp_path / "none")() == 0


def told_of_a_step(stream: io.TextIOBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is half done from the second look on, and ends at the fourth."""
    looks = []
    enough = threading.Event()

    def share() -> float:
        looks.append(True)
        if len(looks) == 4:
            enough.set()
        return 0.5 * (len(looks) > 2)

    monkeypatch.setattr(steps, "SECONDS_A_LINE", 0.01)
    monkeypatch.setattr(sys, "stderr", stream)
    with step("bytecode", share=share):
        assert enough.wait(60)


def test_a_long_step_tells_how_far_it_is_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    told_of_a_step(log, monkeypatch)
    assert re.fullmatch(r"  bytecode: 0 s so far; (50%, \d s left; )+\d s\n", log.getvalue()), (
        log.getvalue()
    )


def test_a_long_step_tells_how_far_it_is_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, its = pty.openpty()
    with os.fdopen(its, "w") as terminal:
        told_of_a_step(terminal, monkeypatch)
        shown = ""
        while not shown.endswith("\n"):  # a terminal gives it in pieces
            shown += os.read(ours, 65536).decode()
    os.close(ours)
    assert re.search(r"\r  bytecode: 50%, \d s left +\r", shown)
    assert re.search(r"\r  bytecode: \d s\r\n$", shown)
