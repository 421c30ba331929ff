"""`oneshot demo` before its page is there."""

import json
from pathlib import Path

import pytest

from pipeline.cli.demo import _pictures
from pipeline.cli.main import main
from pipeline.runs.status import ExitCode
from pipeline.runs.workspace import Workspace
from tests.pair_records import make_pairs, write_records


def test_without_a_model_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", f"--output={tmp_path}"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path}/serving_model/siamese: there is no model yet: `make run` trains" in said


@pytest.mark.parametrize("port", ["-1", "65536", "a"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--port", port])
    assert "--port" in capsys.readouterr().err


def test_it_begins_with_what_the_newest_run_has_not_trained_on(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert _pictures(workspace, cropped=False)[1] == "Enrolled are 20 generated glyphs."
    assert _pictures(workspace, cropped=True)[1] == "Nobody is enrolled yet."
    pairs = [
        pair._replace(protocol="verification") for pair in make_pairs(groups=1, classes=4, pairs=20)
    ]
    write_records(tmp_path / "examples" / "Split-one_shot", pairs)
    for run, examples in (("1", tmp_path / "examples"), ("2", tmp_path / "removed")):
        workspace.run_dir(run).mkdir(parents=True)
        summary = {"artifacts": {"examples": str(examples)}}
        (workspace.run_dir(run) / "summary.json").write_text(json.dumps(summary))
    pictures, about = _pictures(workspace, cropped=False)
    assert about == "Enrolled are 2 classes that the model was not trained on."
    assert sorted(pictures.enrolled) == ["group00 character00", "group00 character02"]
