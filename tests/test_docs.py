"""The documents: what they link to is there, and what makes images makes them."""

import re
from collections.abc import Iterator
from pathlib import Path

import joblib
import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

from data_ingest.sources.kind_of_images import kind_of
from data_ingest.sources.layout import list_images
from tests.drawn_face import drawn_face
from tests.test_documented_options import SOURCES, text_of

ROOT = Path(__file__).parents[1]
OF_OTHERS = {"Received message larger than max"}
"""Messages of other programs that the page on troubleshooting explains."""
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def anchors(document: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document: Path) -> Iterator[tuple[Path, str]]:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            name, _, anchor = target.partition("#")
            yield (document.parent / name if name else document), anchor


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_within_the_repository_leads_somewhere(document: Path) -> None:
    for target, anchor in links(document):
        assert target.exists(), f"{document.name}: there is no {target}"
        if anchor:
            assert anchor in anchors(target), f"{document.name}: {target.name} has no #{anchor}"


def test_what_security_is_said_to_be_held_by_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    held_by = re.findall(r"\[`(test_\w+)`\]\(\.\./([^)]+)\)", text)
    assert len(held_by) > 20
    for test, file in held_by:
        assert f"def {test}(" in (ROOT / file).read_text("utf-8"), (test, file)


def test_documents_have_links() -> None:
    assert sum(1 for document in DOCUMENTS for _ in links(document)) > 40


@pytest.mark.timeout(1800)
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear what it printed"
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    accuracy = re.search(r"(\d+)% of 100 trials are right", printed)
    assert accuracy, printed[-2000:]
    assert int(accuracy[1]) > 40
    assert len(re.findall(r"likeliest", printed)) == 10


def test_messages_in_troubleshooting_are_those_of_the_program() -> None:
    code = "".join(map(text_of, [*SOURCES, *ROOT.glob("scripts/*.py")]))
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 30
    for message in messages:
        assert message in code or message in OF_OTHERS, message


def run_example(page: str) -> None:
    (example,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text("utf-8"), re.M | re.S
    )
    exec(compile(example, page, "exec"), {"__name__": "__main__"})


def test_olivettis_faces_become_a_folder_of_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With drawn faces where scikit-learn keeps what it has downloaded."""
    face = np.asarray(drawn_face().convert("L").resize((64, 64)), np.float32)
    pictures = np.stack([np.roll(face, person, axis=0) for person in range(40)])
    # As Olivetti's file has them: column by column.
    stored = pictures.transpose(0, 2, 1).reshape(40, -1).repeat(10, axis=0)
    joblib.dump(stored, tmp_path / "olivetti_py3.pkz")
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run_example("faces.md")
    known = list_images(Path("olivetti/known"))
    counts = {side: len(list_images(Path("olivetti", side))) for side in ("staff", "strangers")}
    assert (len(known), counts) == (260, {"staff": 100, "strangers": 40})
    shown = np.asarray(Image.open("olivetti/staff/person30/7.png"), float)
    expected = pictures[30] - pictures.min()
    assert np.abs(shown - 255 * expected / expected.max()).max() <= 1


def test_generated_parts_differ_by_colour_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_example("parts.md")
    images = list_images(Path("parts"))
    assert (len(images), len({image.class_name for image in images})) == (1200, 200)
    assert {image.group for image in images} == {f"star{points:02}" for points in range(3, 13)}
    assert kind_of(images).kind == "photo"
