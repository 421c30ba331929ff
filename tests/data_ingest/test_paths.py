"""One form for a path, however it is written."""

from pathlib import Path

import pytest

from data_ingest.paths import absolute


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("out", "{here}/out"),
        ("./out//x/", "{here}/out/x"),
        ("../out", "{above}/out"),
        ("//a/../b", "/b"),
        ("~/out", "{home}/out"),
        ("span-{SPAN}/../x", "{here}/x"),
    ],
)
def test_a_path_has_one_form(
    written: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    assert str(absolute(Path(written))) == path.format(here=here, above=tmp_path, home=home)


def test_links_are_kept_unless_a_path_leads_up_from_one(tmp_path: Path) -> None:
    (tmp_path / "a" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "real")
    assert absolute(tmp_path / "link" / "x") == tmp_path / "link" / "x"
    assert absolute(tmp_path / "link" / "x" / ".." / "y") == tmp_path / "link" / "y"
    assert absolute(tmp_path / "link" / ".." / "y") == tmp_path.resolve() / "a" / "y"
