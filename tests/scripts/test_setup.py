"""What is installed where nobody has a checkout."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("data_ingest", "components", "serving", "pipeline")


def _files(root: Path) -> set[str]:
    return {
        str(file.relative_to(root))
        for package in PACKAGES
        for file in (root / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_everything_in_the_packages_is_installed(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    )
    assert _files(tmp_path) == _files(CHECKOUT)
