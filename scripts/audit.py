"""Asks PyPI for known vulnerabilities of what the lock files pin; `make audit` calls it.

What was looked at and decided is in audit.txt: a line has an advisory's ID, the day on which it is
to be looked at again, and why it may wait.

Exit codes: 0 all was checked and nothing found, 1 something was found, 3 not all could be checked.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from host import uv_environment
from steps import say

PIP_AUDIT = "pip-audit==2.10.1"
LOCK_FILES = ("requirements.lock", "requirements-gpu.lock", "requirements-airflow.lock")
PROBE = "https://pypi.org/pypi/idna/3.6/json"  # of which an advisory is known
ROOT = Path(__file__).resolve().parent.parent
CLEAN, FOUND, UNCHECKED = 0, 1, 3


def audit(
    lock_files: Sequence[Path],
    decisions: str,
    *,
    today: datetime.date,
    ask: Callable[[Path, Sequence[str]], str],
    problem: str = "",
) -> int:
    """Says what is known of the pins, and returns the exit code.

    Args:
        lock_files: what is looked at.
        decisions: lines of `ID YYYY-MM-DD reason`.
        today: decisions of earlier days do not count.
        ask: what pip-audit prints as JSON of a lock file, without the advisories of these IDs.
        problem: why PyPI has no advisories for us; nothing is asked then.
    """
    if problem:
        say(f"NOT CHECKED: {problem}.\nWhether the pins have known vulnerabilities is not known.")
        return UNCHECKED
    lines = [line.split(maxsplit=2) for line in decisions.splitlines() if line[:1] not in ("", "#")]
    accepted = [line[0] for line in lines if datetime.date.fromisoformat(line[1]) >= today]
    code = CLEAN
    for lock_file in lock_files:
        name = lock_file.name
        try:
            pins = json.loads(ask(lock_file, accepted))["dependencies"]
        except ValueError:
            pins = [{"name": "pip-audit gave no answer", "skip_reason": ""}]
        unknown = [pin["name"] for pin in pins if "skip_reason" in pin]
        for pin in pins:
            for found in pin.get("vulns", ()):
                code = FOUND
                fixed = ", ".join(found["fix_versions"]) or "no version yet"
                say(f"{name}: {pin['name']} {pin['version']}: {found['id']}, fixed in {fixed}")
        if unknown:
            code = code or UNCHECKED
            say(f"{name}: NOT CHECKED: {', '.join(unknown)}")
        if pins:
            say(
                f"{name}: {len(pins) - len(unknown)} packages checked, {len(accepted)} IDs accepted"
            )
    if code == FOUND:
        say(
            "Raise the version (`make lock ARGS='--upgrade-package NAME'`), or decide in audit.txt."
        )
    return code


def no_advisories(url: str = PROBE) -> str:
    """Why advisories cannot be had; empty where they can."""
    try:
        with urllib.request.urlopen(url, timeout=15) as response:
            known = json.load(response).get("vulnerabilities")
    except (OSError, ValueError) as error:
        return f"{url}: {error}"
    return "" if known else f"{url} names no advisory, though there is one"


def ask_pip_audit(lock_file: Path, accepted: Sequence[str]) -> str:
    """What pip-audit prints of a lock file, for the Python that runs this."""
    ignored = [word for advisory in accepted for word in ("--ignore-vuln", advisory)]
    uv = [str(Path(sys.executable).parent / "uv"), "tool", "run", "--python", sys.executable]
    options = ["--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json"]
    command = [*uv, PIP_AUDIT, "--requirement", str(lock_file), *options, *ignored]
    done = subprocess.run(command, env=uv_environment(os.environ), capture_output=True, text=True)
    if not done.stdout:
        say(done.stderr[-1000:])
    return done.stdout


if __name__ == "__main__":
    sys.exit(
        audit(
            [ROOT / name for name in LOCK_FILES],
            (ROOT / "audit.txt").read_text(),
            today=datetime.date.today(),
            ask=ask_pip_audit,
            problem=no_advisories(),
        )
    )
