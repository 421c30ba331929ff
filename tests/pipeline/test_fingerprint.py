"""The code hash in cache keys: a change that matters alters it, any other does not."""

from pathlib import Path

import pytest

from pipeline.fingerprint import source_hash


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {
        "components/__init__.py": "",
        "components/trainer/run_fn.py": "from components.trainer import model\nimport numpy\n",
        "components/trainer/model.py": (
            "from serving.saved_model.preprocessing import decode\nWIDTH = 3\n"
        ),
        "components/pusher/component.py": "import serving.saved_model.preprocessing\n",
        "serving/__init__.py": "",
        "serving/saved_model/preprocessing.py": "def decode():\n    return 1\n",
        "README.md": "words",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_an_edit_of_an_imported_module_changes_the_hash(project: Path) -> None:
    before = source_hash("components.trainer.run_fn", root=project)
    (project / "serving/saved_model/preprocessing.py").write_text("def decode():\n    return 2\n")
    assert source_hash("components.trainer.run_fn", root=project) != before


def test_an_edit_of_a_module_that_is_not_imported_leaves_the_hash(
    project: Path,
) -> None:
    before = source_hash("components.trainer.run_fn", root=project)
    (project / "components/pusher/component.py").write_text("import os\n")
    (project / "README.md").write_text("other words")
    assert source_hash("components.trainer.run_fn", root=project) == before


def test_comments_and_formatting_leave_the_hash(project: Path) -> None:
    before = source_hash("components.trainer.run_fn", root=project)
    (project / "components/trainer/model.py").write_text(
        "# why\nfrom serving.saved_model.preprocessing import (\n    decode,\n)\n\nWIDTH   = 3\n"
    )
    assert source_hash("components.trainer.run_fn", root=project) == before


def test_a_module_that_is_not_there_is_an_error(project: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"components\.trainer\.gone"):
        source_hash("components.trainer.run_fn", "components.trainer.gone", root=project)


def test_the_trainers_hash_covers_the_model_the_loss_and_the_export() -> None:
    from pipeline.fingerprint import PROJECT_ROOT, _closure

    covered = {
        path.relative_to(PROJECT_ROOT).as_posix()
        for path in _closure(["components.trainer.run_fn"], PROJECT_ROOT)
    }
    assert {
        "components/trainer/model.py",
        "components/trainer/step.py",
        "components/trainer/augment.py",
        "serving/saved_model/export.py",
        "serving/saved_model/preprocessing.py",
    } <= covered
    assert not any(name.startswith(("pipeline/", "serving/gallery/")) for name in covered)
