"""Makes or updates `.venv`; see bootstrap.py.

A finished set-up leaves a stamp, so the next call returns at once. A change of the pins or of the
package definition brings the environment up to date. A set-up that was interrupted, at whatever
point, starts over (downloads stay in uv's cache), so no half-installed package survives.

Exit codes: 0 the environment is ready, 1 it could not be made (the message says what to do),
2 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import elf
from host import SetupError, check_host, dotted, glibc_version, uv_environment
from steps import AGAIN, CHECK_NETWORK, Run, exit_code, only_one, run_quietly, say, step
from uv_download import UV_VERSION, WHEEL_SHA256, download_uv

WHEELS_GLIBC = (2, 39)  # what the wheels of these packages are tagged for
NEWER_GLIBC_WHEELS = {
    "ml-metadata": "ml_metadata/metadata_store/pywrap/metadata_store_extension.so",
    "tensorflow-data-validation": (
        "tensorflow_data_validation/pywrap/tensorflow_data_validation_extension.so"
    ),
}
STAMP = "oneshot-setup.json"
TEST_SUITES = r"/tests?/|_test\.py$"  # which nobody imports
SAMPLED = 500  # modules that tell how far the compilation is

# Uses both extension modules, since a symbol may be looked up only when it is called.
CHECK = """
import pandas
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2
import tensorflow_data_validation as tfdv
config = metadata_store_pb2.ConnectionConfig()
config.fake_database.SetInParent()
assert metadata_store.MetadataStore(config).get_artifacts() == []
statistics = tfdv.generate_statistics_from_dataframe(pandas.DataFrame({"x": [1, 2]}))
assert statistics.datasets[0].num_examples == 2
"""


class Setup:
    """Brings one checkout's environment up to date.

    Args:
        root: the checkout.
        gpu: add CUDA for TensorFlow. An environment that has it keeps it.
        run: runs a command, raising SetupError if it fails.
        download: writes the uv program to a path, raising OSError if it cannot.
    """

    def __init__(
        self,
        root: Path,
        *,
        gpu: bool = False,
        run: Run = run_quietly,
        download: Callable[[Path, Mapping[str, str]], None] = download_uv,
    ) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.stamp = self.venv / STAMP
        self.run = run
        self.download = download
        self.gpu = gpu or bool(self.read_stamp().get("gpu"))
        self.environ = uv_environment(os.environ)

    def ensure(self) -> None:
        """Makes or updates the environment unless its stamp says that it is as it should be."""
        if self.is_ready():
            return
        with only_one(self.root / ".venv.lock"):
            if self.is_ready():  # made by another process while this one waited
                return
            started = time.monotonic()
            say(f"Setting up {self.venv} (once; downloads about 1 GB, kept in uv's cache)")
            check_host(self.root, gpu=self.gpu)
            self.make_environment()
            self.install_packages()
            adapted = self.adapt_extensions()
            self.compile_bytecode()
            self.check_imports()
            self.write_stamp(state="ready", adapted=adapted)
            say(f"Set-up done in {time.monotonic() - started:.0f} s")

    def is_ready(self) -> bool:
        return self.is_finished() and self.read_stamp().get("content") == self.content()

    def is_finished(self) -> bool:
        """Whether an earlier set-up for this very place and Python reached its end."""
        stamp = self.read_stamp()
        same_base = stamp.get("state") == "ready" and stamp.get("base") == self.base()
        return same_base and self.python.exists()

    def read_stamp(self) -> dict[str, Any]:
        try:
            stamp = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def write_stamp(self, *, state: str, adapted: Mapping[str, Sequence[str]]) -> None:
        stamp = {
            "state": state,
            "base": self.base(),
            "content": self.content(),
            "gpu": self.gpu,
            "adapted": adapted,
        }
        unfinished = self.stamp.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(stamp, indent=2))
        unfinished.replace(self.stamp)

    def base(self) -> str:
        """What an environment is bound to; if this changes it cannot be updated, only remade."""
        python = f"Python {platform.python_version()} at {sys.base_prefix}"
        return f"{self.venv}, {python}, glibc {dotted(glibc_version())}"

    def content(self) -> str:
        """Digest of everything that decides what is installed and how."""
        digest = hashlib.sha256(f"gpu={self.gpu}".encode())
        own = sorted(Path(__file__).parent.glob("*.py"))
        for path in [*self.lock_files(), self.root / "setup.py", *own]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def lock_files(self) -> list[Path]:
        names = ["requirements.lock", "requirements-gpu.lock"]
        return [self.root / name for name in names[: 1 + self.gpu]]

    def make_environment(self) -> None:
        """Makes the environment with uv in it, or keeps the one that an earlier set-up finished."""
        if self.is_finished():
            # Must not pass for finished if this update is interrupted.
            self.write_stamp(state="unfinished", adapted={})
            return
        if self.venv.exists():
            say("  replacing the .venv there: it is unfinished or another Python's")
            shutil.rmtree(self.venv)
        with step(f"environment with Python {platform.python_version()}"):
            base_python = getattr(sys, "_base_executable", sys.executable)
            # uv needs no pip, and Debian's Python has none to give unless python3-venv is there.
            self.run([base_python, "-m", "venv", "--without-pip", str(self.venv)], self.environ)
            self.write_stamp(state="unfinished", adapted={})
        with step(f"uv {UV_VERSION}"):
            try:
                self.download(self.venv / "bin" / "uv", self.environ)
            except OSError as error:
                self.install_uv_with_pip(error)

    def install_uv_with_pip(self, download_error: OSError) -> None:
        """The way for hosts that reach a package index only with what pip is configured with."""
        python = str(self.python)
        try:
            self.run([python, "-m", "ensurepip"], self.environ)
            pin = self.venv / "uv.txt"
            pin.write_text(f"uv=={UV_VERSION} --hash=sha256:{WHEEL_SHA256}\n")
            pip_install = [python, "-m", "pip", "install", "--quiet", "--require-hashes"]
            self.run([*pip_install, "-r", str(pin)], self.environ)
        except SetupError as error:
            raise SetupError(
                f"Could not download uv: {download_error}\nNor could pip install it:\n{error}\n"
                "Check the network (behind a mirror or proxy set PIP_INDEX_URL, HTTPS_PROXY, "
                f"SSL_CERT_FILE), {AGAIN}"
            ) from error

    def install_packages(self) -> None:
        """Syncs the lock files and installs this project editable."""
        pins = "\n".join(path.read_text() for path in self.lock_files())
        newer_glibc = NEWER_GLIBC_WHEELS if glibc_version() < WHEELS_GLIBC else ()
        plain, newer = split_pins(pins, newer_glibc)
        plain_file, newer_file = self.venv / "pins.txt", self.venv / "pins-newer-glibc.txt"
        plain_file.write_text(plain)
        newer_file.write_text(newer)
        with step("packages of requirements.lock", remedy=CHECK_NETWORK):
            # Each file must be one of those that the lock was made of.
            self.uv("sync", "--require-hashes", str(plain_file))
            if newer:
                # Only for these: for another package the override could pick a wheel that this
                # host cannot load.
                override = ["--no-deps", "--python-platform", "x86_64-manylinux_2_39"]
                self.uv("install", "--require-hashes", *override, "-r", str(newer_file))
        with step("this project, editable"):
            # By its name in its own folder: uv takes [ ] at the end of a path for extras.
            here = ["--directory", str(self.root), "--editable", "."]
            self.uv("install", "--no-deps", "--no-build-isolation", *here)

    def uv(self, action: str, *arguments: str) -> None:
        uv = [str(self.venv / "bin" / "uv"), "pip", action, "--quiet"]
        self.run([*uv, "--python", str(self.python), *arguments], self.environ)

    def adapt_extensions(self) -> dict[str, list[str]]:
        """Lets the two extension modules load where glibc or libstdc++ is too old.

        Returns:
            The missing symbol versions by module (a path under site-packages); empty where
            nothing had to be touched.
        """
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site_packages = self.venv / "lib" / version / "site-packages"
        adapted = {}
        try:
            offered = elf.host_versions()
            for module in NEWER_GLIBC_WHEELS.values():
                missing = elf.adapt_file(site_packages / module, offered)
                if missing:
                    adapted[module] = missing
        except (elf.ElfError, OSError) as error:
            raise SetupError(
                f"Could not adapt the extension modules to this host's libraries: {error}\n"
                "Use Debian 12, Ubuntu 22.04 or later; on Ubuntu 24.04 nothing needs adapting."
            ) from error
        if adapted:
            lacks = ", ".join(sorted({name for missing in adapted.values() for name in missing}))
            say(f"  {' and '.join(NEWER_GLIBC_WHEELS)} are built for newer systems than this;")
            say(f"  their extension modules were adapted to do without {lacks}")
        return adapted

    def compile_bytecode(self) -> None:
        """Compiles what is installed, test suites aside: importing TFX reads 9,500 modules."""
        library = self.venv / "lib"
        with step("bytecode", share=compiled_share(library)):
            options = ["-q", "-q", "-j", "0", "-x", TEST_SUITES]
            compile_all = [str(self.python), "-m", "compileall", *options, str(library)]
            with suppress(SetupError):  # a few packages hold templates that are no valid Python
                self.run(compile_all, self.environ)

    def check_imports(self) -> None:
        remedy = (
            f"Delete {self.venv} and run the same command again; if that does not help, "
            "please report the text above with your distribution's name."
        )
        with step("import check in a fresh process", remedy=remedy):
            quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
            self.run([str(self.python), "-c", CHECK], {**self.environ, **quiet})


def compiled_share(library: Path) -> Callable[[], float]:
    """What tells how many of the modules of a folder are compiled: some hundreds stand for all."""
    modules = [str(path) for path in library.rglob("*.py")]
    modules = [path for path in modules if not re.search(TEST_SUITES, path)]
    some = modules[:: len(modules) // SAMPLED + 1]
    compiled = [cache_from_source(path) for path in some]
    return lambda: sum(map(os.path.exists, compiled)) / max(len(compiled), 1)


def split_pins(pins: str, names: Collection[str]) -> tuple[str, str]:
    """Splits lock file text into the pins of other packages and those of the named ones.

    A pin keeps its hashes, on the lines that a backslash joins to it; comments are dropped.
    """
    found = re.findall(r"^[^\s#](?:.*\\\n)*.*$", pins, re.MULTILINE)
    chosen = [pin for pin in found if pin.partition("==")[0] in names]
    return "\n".join(pin for pin in found if pin not in chosen), "\n".join(chosen)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bootstrap.py", description="Makes or updates .venv; quick if there is nothing to do."
    )
    parser.add_argument("--gpu", action="store_true", help="add CUDA for TensorFlow (NVIDIA)")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parent.parent
    return exit_code(lambda: Setup(root, gpu=options.gpu).ensure())
