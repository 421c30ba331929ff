"""The pages that are written from the program, and links in the site."""

from pathlib import Path

import pytest

import docs_reference
import docs_site
from pipeline.config import PipelineConfig

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", docs_reference.PAGES)
def test_a_page_that_is_written_from_the_program_is_as_the_program_has_it(name: str) -> None:
    stored = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert stored == docs_reference.PAGES[name](), "`make docs` writes it anew"


def test_every_option_of_the_configuration_is_on_its_page() -> None:
    page = docs_reference.configuration_page()
    for section, settings in PipelineConfig():
        if hasattr(settings, "model_fields"):
            options = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
            for option in type(settings).model_fields:
                assert f"\n| `{option}` |" in options, f"{section}.{option}"


def test_links_of_the_site_stay_in_it_and_sources_become_their_text() -> None:
    source = ROOT / "docs" / "architecture.md"
    for written, expected in {
        "[a](drift.md#what-is-compared)": "[a](drift.md#what-is-compared)",
        "[a](../README.md#requirements)": "[a](index.md#requirements)",
        "[a](tutorial.ipynb)": "[a](tutorial-notebook.md)",
        "[`a`](../pipeline/dag.py)": "`a`",
        "[a](https://example.org/a)": "[a](https://example.org/a)",
        "![a](parts.png)": "![a](parts.png)",
    }.items():
        assert (
            docs_site.LINK.sub(lambda link: docs_site.moved(source, link[1], link[2]), written)
            == expected
        )
    assert docs_site.moved(ROOT / "README.md", "a", "docs/parts.md") == "[a](parts.md)"
