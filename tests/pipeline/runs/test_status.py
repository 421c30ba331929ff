"""The words by which runs end, and what follows from them."""

import ast
import json
import re
from pathlib import Path

import pytest

from pipeline.runs.history import RunRecord
from pipeline.runs.status import ExitCode, Status

DOCS = Path(__file__).parents[3] / "docs" / "retraining.md"
AIRFLOW_DAG = Path(__file__).parents[3] / "pipeline" / "runners" / "airflow_dag.py"
ROW = re.compile(r"^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \| (\d) \|", re.MULTILINE)


def test_the_documentation_names_every_status_of_a_retraining_with_its_exit_code() -> None:
    documented = {
        word.strip("`"): int(code)
        for words, code in ROW.findall(DOCS.read_text(encoding="utf-8"))
        for word in words.split(", ")
    }
    ends = set(Status) - {Status.RUNNING, Status.INTERRUPTED}
    assert documented == {str(status): status.exit_code for status in ends}


def test_the_airflow_dag_which_imports_nothing_of_ours_knows_words_and_exit_codes() -> None:
    constants = {
        node.target.id: ast.literal_eval(node.value)
        for node in ast.parse(AIRFLOW_DAG.read_text(encoding="utf-8")).body
        if isinstance(node, ast.AnnAssign)
        and node.target.id.startswith(("_NOTHING", "_BUSY", "_EX"))
    }
    assert constants == {
        "_BUSY": Status.BUSY,
        "_NOTHING_TO_DO": (Status.NOTHING_NEW, Status.SKIPPED, Status.BLOCKED),
        "_EXIT_USAGE": ExitCode.USAGE,
        "_EXIT_NOT_BLESSED": ExitCode.NOT_BLESSED,
    }


def test_a_failure_is_worth_another_try_and_people_are_told() -> None:
    assert [status for status in Status if status.retry] == [Status.FAILED]
    told = {status for status in Status if status.event == "failed"}
    assert told == {Status.FAILED, Status.REFUSED, Status.TIMEOUT}
    quiet = {status for status in Status if not status.something_happened}
    assert quiet == {Status.NOTHING_NEW, Status.ALREADY_TRAINED, Status.SKIPPED, Status.BUSY}


@pytest.mark.parametrize("word", ["not_blessed", "not blessed"])
def test_words_of_earlier_releases_are_read(word: str) -> None:
    record = {"run_id": "a", "state": word, "started": 1.0, "window": [2, 3]}
    read = RunRecord.from_dict(json.loads(json.dumps(record)))
    assert read.state is Status.NOT_BLESSED
    assert read.window == (2, 3)


def test_people_and_programs_get_the_same_word() -> None:
    status = Status.NOT_BLESSED
    assert (f"{status}", json.dumps(status), status.text) == (
        "not_blessed",
        '"not_blessed"',
        "not blessed",
    )
    assert status.exit_code == ExitCode.NOT_BLESSED == 3
