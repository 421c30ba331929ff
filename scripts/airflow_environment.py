"""Makes or updates `.venv-airflow`, Airflow's own environment; `make airflow` calls it.

Airflow and TFX want different versions of the same packages (protobuf, SQLAlchemy), so each has an
environment, and Airflow's tasks start `oneshot` as a program. uv and Python are those of `.venv`.

Exit codes: 0 the environment is ready, 1 it could not be made.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from pathlib import Path

from host import uv_environment
from steps import CHECK_NETWORK, Run, exit_code, only_one, run_quietly, say, step

STAMP = "oneshot-airflow.txt"
LOCK_FILE = "requirements-airflow.lock"


class AirflowSetup:
    """Brings one checkout's `.venv-airflow` up to date.

    Args:
        root: the checkout, whose `.venv` is finished.
        run: runs a command, raising SetupError if it fails.
    """

    def __init__(self, root: Path, *, run: Run = run_quietly) -> None:
        self.root = root
        self.venv = root / ".venv-airflow"
        self.run = run

    def ensure(self) -> None:
        """Makes the environment anew unless its stamp says that it is as it should be."""
        if self.is_ready():
            return
        with only_one(self.root / ".venv-airflow.lock"):
            if self.is_ready():  # made by another process while this one waited
                return
            say(f"Setting up {self.venv} (once; 270 MB)")
            # From nothing: it takes seconds from uv's cache, and nothing half-installed survives.
            shutil.rmtree(self.venv, ignore_errors=True)
            uv = str(self.root / ".venv" / "bin" / "uv")
            environ = uv_environment(os.environ)
            with step(f"packages of {LOCK_FILE}", remedy=CHECK_NETWORK):
                self.run(
                    [uv, "venv", "--quiet", "--python", sys.executable, str(self.venv)], environ
                )
                python = str(self.venv / "bin" / "python")
                lock_file = str(self.root / LOCK_FILE)
                sync = [uv, "pip", "sync", "--quiet", "--compile-bytecode", "--python", python]
                self.run([*sync, "--require-hashes", lock_file], environ)
            with step("import check in a fresh process"):
                self.run([python, "-c", "import airflow.sdk, airflow.api_fastapi.app"], environ)
            unfinished = self.venv / f".{STAMP}"
            unfinished.write_text(self.content())
            unfinished.replace(self.venv / STAMP)

    def is_ready(self) -> bool:
        stamp = self.venv / STAMP
        return stamp.is_file() and stamp.read_text() == self.content()

    def content(self) -> str:
        """What decides the environment: the pins, the Python it was made with, and its place."""
        pins = hashlib.sha256((self.root / LOCK_FILE).read_bytes()).hexdigest()
        return f"{pins} Python {platform.python_version()} at {sys.base_prefix} in {self.venv}\n"


if __name__ == "__main__":
    sys.exit(exit_code(AirflowSetup(Path(__file__).resolve().parent.parent).ensure))
