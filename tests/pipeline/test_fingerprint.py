"""The code hash in cache keys: a change that matters alters it, any other does not."""

from pathlib import Path

import pytest

from pipeline.fingerprint import source_hash


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {
        "components/__init__.py": "",
        "components/trainer.py": "from components import model\nimport numpy\n",
        "components/model.py": "from serving.preprocessing import decode\nWIDTH = 3\n",
        "components/pusher.py": "import serving.preprocessing\n",
        "serving/__init__.py": "",
        "serving/preprocessing.py": "def decode():\n    return 1\n",
        "README.md": "words",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_an_edit_of_an_imported_module_changes_the_hash(project: Path) -> None:
    before = source_hash("components.trainer", root=project)
    (project / "serving/preprocessing.py").write_text("def decode():\n    return 2\n")
    assert source_hash("components.trainer", root=project) != before


def test_an_edit_of_a_module_that_is_not_imported_leaves_the_hash(
    project: Path,
) -> None:
    before = source_hash("components.trainer", root=project)
    (project / "components/pusher.py").write_text("import os\n")
    (project / "README.md").write_text("other words")
    assert source_hash("components.trainer", root=project) == before


def test_comments_and_formatting_leave_the_hash(project: Path) -> None:
    before = source_hash("components.trainer", root=project)
    (project / "components/model.py").write_text(
        "# why\nfrom serving.preprocessing import (\n    decode,\n)\n\nWIDTH   = 3\n"
    )
    assert source_hash("components.trainer", root=project) == before


def test_the_trainers_hash_covers_the_model_the_loss_and_the_export() -> None:
    from pipeline.fingerprint import PROJECT_ROOT, _closure

    covered = {
        path.relative_to(PROJECT_ROOT).as_posix()
        for path in _closure(["components.trainer"], PROJECT_ROOT)
    }
    assert {
        "components/model.py",
        "components/losses.py",
        "components/augment.py",
        "serving/export.py",
        "serving/preprocessing.py",
    } <= covered
    assert not any(name.startswith("pipeline/") for name in covered)
