"""Every command that a document shows is run as it is written, in a shell, page by page.

What cannot be run here is named in `NOT_RUN` with the reason; test_documented_options.py holds
those commands of `oneshot` against the command line all the same. `oneshot` is the real one, in
this process, which has imported TensorFlow once; the `pipeline_config.yaml` of the folder makes its
pipeline a tiny one.
"""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_ingest.sources.glyphs import write_glyphs
from pipeline.cli.main import main
from tests.pipeline.tiny import TINY
from tests.test_documented_options import FENCED, LEFT_OUT, PAGES, text_of

NOT_RUN = {
    r"make ": "sets up the checkout itself, measures, or takes many minutes",
    r"source |pre-commit |pip install ": "changes the environment in which the tests run",
    r"docker |kubectl |kfp |sudo |journalctl |airflow |prism |tensorflow_model_server ": "needs a "
    "program, a cluster or rights that the tests do not have",
    r"curl |api=|id=|python -c 'from serving.client": "needs a server at its usual port",
    r"oneshot (demo|serve|tensorboard|worker-pool)": "serves until it is ended",
    r'python -c "from google': "needs Google Cloud",
    r"oneshot retrain |oneshot rollback ": "trains in a process of its own; takes that model back",
    r"python -m benchmarks\.": "measures for minutes to hours",
    r"python -m serving.deploy.models_config |oneshot (promote|report) \d": "names a version or a "
    "run of its example",
    r"export ONESHOT_METADATA_URL=": "needs PostgreSQL",
    r"oneshot run .*--data (?!images )": "is a training of minutes, on photographs and signatures",
    r"oneshot doctor .*crop=face|for who in olivetti|.*output/faces": "needs photographs of faces",
    r"\$ oneshot gallery (identify|verify \w+) olivetti|oneshot gallery .*olivetti": "as above",
    r"oneshot evaluate .*(output/signatures|--official)": "needs data that is not generated",
    r"oneshot doctor --repair": "needs a damaged file",
}
"""What is not run, by how it begins, and why."""
MAY_END_WITH = {
    r"oneshot gallery verify": 4,
    r"oneshot doctor": 1,
    r"oneshot run .*evaluate.thresholds": 3,
}
"""Exit codes that are an answer: refused; something would stop a run here; not good enough."""
ORDER = sorted(PAGES, key=lambda page: page.name in ("README.md", "tutorial.md"))
"""Those last that train once more."""
SHIM = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect({address!r})
    client.sendall(json.dumps([os.getcwd(), sys.argv[1:]]).encode() + b"\\n")
    code, out, err = json.loads(client.makefile("rb").read())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
"""`oneshot` in the shell: asks the process of the test."""


def commands(page: Path) -> list[str]:
    """What a page has a reader type, in order; a loop or a function is one piece."""
    pieces: list[str] = []
    for language, listing in FENCED.findall(text_of(page)):
        if language == "sh":
            pieces += [line for line in _pieces(listing) if line]
        elif language == "":
            typed = re.findall(r"^\$ (.*(?:\n    .*)*)$", listing, re.M)
            pieces += typed
    return pieces


def _pieces(listing: str) -> Iterator[str]:
    """Lines, those of a loop and of a here-document joined."""
    piece, end = "", ""
    for line in listing.splitlines():
        piece += f"\n{line}" if piece else re.sub(r"\s+# .*", "", line.strip())
        if not end and "<<END" in line:
            end = "END"
        elif not end and re.match(r"for .*; do$", line.strip()):
            end = "done"
        elif not end or line.strip() == end:
            yield piece
            piece, end = "", ""


def why_not(command: str) -> str:
    """Why a command is not run; empty: it is."""
    if LEFT_OUT.search(command):
        return "is not written out"
    return next((why for start, why in NOT_RUN.items() if re.match(start, command)), "")


class Shell:
    """A bash in a folder, for which this process is `oneshot`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The path of a Unix socket has at most 107 characters.
        self._programs = tempfile.TemporaryDirectory(prefix="oneshot-")
        program = Path(self._programs.name, "oneshot")
        address = f"{program}.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        self._listener.settimeout(0.1)
        program.write_text(SHIM.format(python=sys.executable, address=address))
        program.chmod(0o755)

    def close(self) -> None:
        self._listener.close()
        self._programs.cleanup()

    def run(self, script: str) -> tuple[int, str]:
        """Runs a script; gives its exit code and what it printed."""
        path = f"{self._programs.name}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environ = {**os.environ, "PATH": path}
        with (self.folder / "printed").open("w+") as printed:
            bash = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.folder,
                env=environ,
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            while bash.poll() is None:
                with contextlib.suppress(TimeoutError):
                    self._serve(self._listener.accept()[0])
            printed.seek(0)
            return bash.returncode, printed.read()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rwb") as stream:
            folder, arguments = json.loads(stream.readline())
            stream.write(json.dumps(oneshot(Path(folder), arguments)).encode())


def oneshot(folder: Path, arguments: list[str]) -> tuple[int, str, str]:
    """Runs a command in this process: exit code, stdout, stderr."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: Any
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(folder)
        try:
            code = main(arguments)
        except SystemExit as error:  # of argparse
            code = error.code
    return code or 0, *(stream.buffer.getvalue().decode() for stream in (out, err))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """In a folder with what documents take for granted: images, and the model of `make run`."""
    folder = tmp_path_factory.mktemp("reader")
    make_images(folder)
    settings: dict[str, Any] = {"evaluate": {"beat_baselines": False}}
    for key, value in TINY.items():
        section, _, option = key.partition(".")
        settings.setdefault(section, {})[option] = yaml.safe_load(value)
    (folder / "pipeline_config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIGLOT_DIR", str(folder / "omniglot"))
        for command in (
            ["run"],
            ["ingest", "--span", "11", "omniglot/images_background.zip"],
            ["ingest", "--span", "12", "span12"],
        ):
            code, out, err = oneshot(folder, command)
            assert code == 0, f"{command}\n{out}\n{err}"
        with contextlib.closing(Shell(folder)) as made:
            yield made


def make_images(folder: Path) -> None:
    """Generated characters in the places where documents have characters, people and parts."""
    omniglot = folder / "omniglot"
    omniglot.mkdir()
    glyphs(omniglot / "images_background.zip", (4, 7))
    # An alphabet of 40 characters for trials of so many ways.
    glyphs(omniglot / "images_evaluation.zip", (1, 40), (9, 7))
    shutil.copy(omniglot / "images_evaluation.zip", folder)
    with zipfile.ZipFile(omniglot / "images_evaluation.zip") as archive:
        archive.extractall(folder / "drawn")
    classes = sorted(path for path in folder.glob("drawn/*/*/*") if path.is_dir())

    def copy(number: int, to: str, *shots: int) -> None:
        drawings = sorted(classes[number].iterdir())
        for shot in shots:
            (folder / to).mkdir(parents=True, exist_ok=True)
            shutil.copy(drawings[shot], folder / to / f"{shot + 1:02}.png")

    for number in range(40):
        copy(number, f"images/class{number:02}", *range(6))
        copy(number, f"parts/part{number:02}", 0, 1)
        copy(number, f"outsiders/outsider{number:02}", 6, 7)
    # Neither the first characters of alphabets, which the page on galleries enrols, nor `inbox`.
    for number, name in zip((41, 48, 55, 62), ("ada", "alan", "barbara", "claude"), strict=True):
        copy(number, f"people/{name}", 0, 1)
        copy(number, f"references/{name}", 0)
        copy(number, f"on_file/{name}", 0)
    for number in range(50, 60):
        copy(number, f"span12/new/class{number:02}", *range(6))
        copy(number, f"new_images/newer/class{number:02}", *range(6, 12))
    for number in range(6):
        copy(number, f"signatures/w{number:02}/genuine", 0, 1, 2)
    copy(60, "inbox", 0, 1)
    single = sorted((folder / "inbox").iterdir())[0]
    for name in ("ada.png", "visitor.png", "new.jpg", "slip.jpg", "tray.jpg"):
        shutil.copy(single, folder / name)
    for number, name in enumerate(("grace-1.png", "grace-2.png")):
        shutil.copy(sorted(classes[63].iterdir())[number], folder / name)


def glyphs(path: Path, *sizes: tuple[int, int]) -> None:
    """Writes a zip of generated alphabets, so many of so many characters each."""
    first = 1 if "background" in path.name else 11
    with zipfile.ZipFile(path, "w") as archive:
        for alphabets, characters in sizes:
            part = path.with_name("part.zip")
            write_glyphs(
                part,
                alphabets=alphabets,
                characters=characters,
                seed=1,
                writers=12,
                first_alphabet=first,
            )
            first += alphabets
            with zipfile.ZipFile(part) as written:
                for name in written.namelist():
                    archive.writestr(name.replace("part/", f"{path.stem}/"), written.read(name))
            part.unlink()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", ORDER, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, shell: Shell) -> None:
    script = ["set -e"]
    for command in commands(page):
        if not why_not(command):
            script.append(f"echo {_quoted('$ ' + command)}")
            allowed = next(
                (code for start, code in MAY_END_WITH.items() if re.match(start, command)), 0
            )
            script.append(f"{{ {command}\n}} || [ $? = {allowed} ]" if allowed else command)
    code, printed = shell.run("\n".join(script))
    assert code == 0, printed[-3000:]


def test_most_commands_are_run_and_each_reason_is_needed() -> None:
    every = [command for page in PAGES for command in commands(page)]
    run = [command for command in every if not why_not(command)]
    assert len(run) > 60
    assert any(command.startswith("oneshot run --data images ") for command in run)
    # One spelling: after `source .venv/bin/activate`.
    spelt = [command for command in every if command != "source .venv/bin/activate"]
    assert not any(".venv/bin/" in command for command in spelt)
    for start in NOT_RUN:
        assert any(re.match(start, command) for command in every), f"nothing begins with {start}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
