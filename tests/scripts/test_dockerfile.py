"""What the Dockerfile says more than once in this project has to stay the same."""

import re
from pathlib import Path

import pytest

from uv_download import UV_VERSION, WHEEL_SHA256

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Word and rest of each instruction, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def argument(instructions: list[tuple[str, str]], name: str) -> str:
    (value,) = [
        rest.partition("=")[2]
        for word, rest in instructions
        if word == "ARG" and rest.startswith(f"{name}=")
    ]
    return value


def test_it_installs_with_the_uv_of_the_set_up(instructions: list[tuple[str, str]]) -> None:
    assert argument(instructions, "UV") == UV_VERSION
    assert argument(instructions, "UV_SHA256") == WHEEL_SHA256


def test_what_it_installs_is_held_to_the_lock(instructions: list[tuple[str, str]]) -> None:
    (first, second) = [rest for word, rest in instructions if word == "RUN" and "pip" in rest]
    assert "pip install --require-hashes -r uv.txt" in first
    # uv checks the hashes of constraints, of what it builds with too.
    for lock in ("requirements.lock", "requirements-gpu.lock"):
        assert f" --constraint {lock}" in first
    for command in (first, second):
        assert "--build-constraint requirements.lock" in command
        assert "--no-verify-hashes" not in command


def test_beams_workers_have_the_beam_of_the_lock(instructions: list[tuple[str, str]]) -> None:
    pinned = f"apache-beam=={argument(instructions, 'BEAM')}"
    assert re.search(rf"^{re.escape(pinned)}( |$)", (ROOT / "requirements.lock").read_text(), re.M)


def test_all_that_it_copies_is_there_and_is_sent_to_the_builder(
    instructions: list[tuple[str, str]],
) -> None:
    copies = [rest.split()[:-1] for word, rest in instructions if word == "COPY"]
    sources = {name for names in copies if not names[0].startswith("--from") for name in names}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert sources == sent
    assert all((ROOT / name).exists() for name in sources)


def test_nothing_runs_as_root_and_kubernetes_can_tell(instructions: list[tuple[str, str]]) -> None:
    users = [rest for word, rest in instructions if word == "USER"]
    # With a name Kubernetes cannot know that runAsNonRoot holds.
    assert users
    assert all(user.isdigit() and int(user) > 0 for user in users)
