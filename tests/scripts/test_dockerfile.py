"""What the Dockerfile says more than once in this project has to stay the same."""

import re
from pathlib import Path

import pytest

from uv_download import UV_VERSION

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
