"""Makes the site of the documents in build/site: `python scripts/docs_site.py`, or `make docs`.

GitHub and an editor show the pages as they lie in docs/. A site has no sources beside it, so links
to these become their text; README, CONTRIBUTING and CHANGELOG are pages, and so is the notebook.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "docs"
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def main() -> int:
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for source in [ROOT / name for name in MOVED] + sorted((ROOT / "docs").iterdir()):
        name = MOVED.get(source.name, source.name)
        if source.suffix == ".ipynb":
            (PAGES / f"{source.stem}-notebook.md").write_text(notebook(source), encoding="utf-8")
        elif source.suffix == ".md":
            (PAGES / name).write_text(page(source), encoding="utf-8")
        else:
            shutil.copy(source, PAGES / name)
    zensical = Path(sys.executable).with_name("zensical")
    return subprocess.call([zensical, "build", "--clean", "--strict"], cwd=ROOT)


def page(source: Path) -> str:
    """A page with links as they are in the site."""
    return LINK.sub(
        lambda found: moved(source, found[1], found[2]), source.read_text(encoding="utf-8")
    )


def moved(source: Path, text: str, target: str) -> str:
    """A link as it is in the site; of what is not there its text is left."""
    name, _, anchor = target.partition("#")
    if "://" in target or not name:
        return f"[{text}]({target})"
    path = (source.parent / name).resolve()
    if path.name in MOVED and path.parent == ROOT:
        name = MOVED[path.name]
    elif path.suffix == ".ipynb":
        name = f"{path.stem}-notebook.md"
    elif path.parent == ROOT / "docs":
        name = path.name
    else:
        return text
    return f"[{text}]({name}{'#' if anchor else ''}{anchor})"


def notebook(source: Path) -> str:
    """A notebook's cells as a page, without what they printed."""
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    texts = ("".join(cell["source"]) for cell in cells)
    return "\n\n".join(
        f"```python\n{text}\n```" if cell["cell_type"] == "code" else text
        for cell, text in zip(cells, texts, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
