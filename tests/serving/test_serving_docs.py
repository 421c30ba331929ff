"""What the pages on serving tell strangers to type."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client.images import encode_png
from tests.serving.client.fake_server import FakeModel, grpc_server, rest_server

ROOT = Path(__file__).parents[2]
PAGES = ("serving", "clients", "gallery", "deployment")
TEXT = "".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in PAGES)
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def addresses() -> Iterator[dict[str, str]]:
    model = FakeModel()
    with rest_server(model) as url, grpc_server(model) as address:
        yield {"http://127.0.0.1:8501": url, "127.0.0.1:8500": address}


@pytest.mark.parametrize(
    "example",
    [example for example in EXAMPLES if "serving.gallery" not in example],
    ids=lambda example: example.split(" import ")[1].split("\n")[0],
)
def test_the_examples_of_the_clients_run(
    example: str,
    addresses: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import numpy as np

    for name in ("alice", "bob", "today"):
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.eye(9, dtype=np.uint8) * 255))
    monkeypatch.chdir(tmp_path)
    for documented, real in addresses.items():
        example = example.replace(documented, real)
    assert any(real in example for real in addresses.values())
    exec(compile(example, "example", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_name_that_is_imported_exists(example: str) -> None:
    for node in ast.walk(ast.parse(example)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name)


def test_every_file_of_the_deployment_that_is_named_exists() -> None:
    named = re.findall(r"serving/deploy/[\w./]+\w", TEXT)
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


def test_commands_are_shell_commands() -> None:
    assert len(COMMANDS) > 5
    for command in COMMANDS:
        if "<<END" not in command:
            assert shlex.split(command, comments=True)
