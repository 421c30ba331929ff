"""`oneshot retrain` around a stub of the pipeline: who runs, who does not, and what is left."""

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from data_ingest.settings import PairSettings
from data_ingest.sources.glyphs import write_glyphs
from data_ingest.spans.store import SpanStore
from pipeline.cli.main import main
from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.lease import Lease
from pipeline.runs.metadata_store import MetadataLocation, parse_url
from pipeline.runs.workspace import Workspace
from tests.pipeline.retraining.start_together import children
from tests.pipeline.retraining.webhook import hook

STUB = [sys.executable, "-m", "tests.pipeline.retraining.stub_retrain"]
CHECKOUT = Path(__file__).parents[3]


@dataclass
class Place:
    """An output folder with two spans, and the commands that work in it."""

    output: Path
    metadata: MetadataLocation
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        settings = ["retrain.backoff_seconds=0.1", "retrain.lease_seconds=20"]
        sets = [part for setting in settings for part in ("--set", setting)]
        return ["--json", "--output", str(self.output), *sets]

    def start(self, *argv: str, host: str | None = None) -> "subprocess.Popen[str]":
        on_host = ["--on-host", host] if host else []
        return subprocess.Popen(
            [*STUB, *on_host, "retrain", *self.arguments, *argv],
            cwd=CHECKOUT,
            env={
                **os.environ,
                "ONESHOT_METADATA_URL": self.metadata.secret_url,
                **self.environ,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: str, host: str | None = None) -> tuple[int, dict[str, Any]]:
        return ended(self.start(*argv, host=host))

    def script(self, *steps: dict[str, Any]) -> None:
        (self.output / "script.json").write_text(json.dumps(steps))

    def events(self) -> list[str]:
        """What the stub has begun and ended, in order."""
        file = self.output / "events"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def states(self) -> list[str]:
        """States of all runs, the oldest first."""
        records = RunHistory(self.metadata.connection()).runs()
        return [record.state for record in reversed(records)]

    @property
    def lease(self) -> Lease:
        return self.metadata.lease()

    @property
    def versions(self) -> list[Path]:
        return sorted(self.output.glob("serving_model/siamese/[0-9]*"))


def ended(process: "subprocess.Popen[str]") -> tuple[int, dict[str, Any]]:
    out, err = process.communicate(timeout=120)
    lines = out.splitlines()
    assert lines, err
    return process.returncode, json.loads(lines[-1])


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@contextmanager
def handled(number: int, how: signal.Handlers) -> Iterator[None]:
    """Processes that are started meanwhile begin with it, however the tests were started."""
    before = signal.signal(number, how)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two spans."""
    folder = tmp_path_factory.mktemp("spans")
    store = SpanStore(folder / "spans")
    for number in (1, 2):
        images = folder / f"{number}.zip"
        write_glyphs(images, alphabets=4, characters=4, seed=1, first_alphabet=10 * number)
        store.land(number, [images], pairs=PairSettings(), max_rejected_share=0)
    return folder / "spans"


@pytest.fixture
def place(landed: Path, tmp_path: Path) -> Place:
    output = tmp_path / "output"
    shutil.copytree(landed, output / "spans", symlinks=True)
    return Place(output, parse_url(f"sqlite:///{output / 'metadata.db'}"))


@pytest.fixture
def shared(place: Place, empty_database: str) -> Place:
    """The same with its metadata, and so its lease, in PostgreSQL."""
    return replace(place, metadata=parse_url(empty_database))


def test_the_newest_span_is_trained_on_once_and_promoted(place: Place) -> None:
    code, result = place.run("--if-new")
    assert (code, result["status"], result["span"], result["window"]) == (0, "done", 2, [1, 2])
    assert result["promoted"]
    config = (place.output / "serving_model" / "models.config").read_text()
    assert str(result["pushed_version"]) in config
    assert "stable" in config

    assert place.run("--if-new")[1]["status"] == "nothing_new"
    assert place.run("--span", "2")[1]["status"] == "already_trained"
    assert place.events() == ["begin", "end"]
    assert len(place.versions) == 1


def test_without_a_terminal_it_is_quiet_unless_something_happened(place: Place) -> None:
    arguments = [argument for argument in place.arguments if argument != "--json"]
    command = [*STUB, "retrain", "--if-new", *arguments]
    said = [
        subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [done.stderr for done in said] == ["", ""]
    assert json.loads(said[0].stdout)["status"] == "done"
    assert said[0].stdout.count("\n") == 1
    assert said[1].stdout == ""


def test_a_window_holds_as_many_spans_as_configured(place: Place) -> None:
    _, result = place.run("--span", "2", "--set", "retrain.window=1")
    assert result["window"] == [2]


def test_stages_do_not_count_as_trained(place: Place) -> None:
    for stage in ("data", "train", "evaluate"):
        code, result = place.run("--span", "2", "--stage", stage)
        assert (code, result["status"], result["stage"]) == (0, "done", stage)
    assert not place.versions
    assert place.run("--if-new")[1]["status"] == "done"
    assert len(place.versions) == 1


def test_a_model_that_is_not_blessed_ends_with_3_and_is_not_tried_again(place: Place) -> None:
    place.script({"blessed": False})
    code, result = place.run("--if-new")
    assert (code, result["status"], result["promoted"]) == (3, "not_blessed", False)
    assert place.run("--if-new")[1]["status"] == "nothing_new"
    assert not (place.output / "serving_model").exists()


def test_a_failure_is_tried_again_and_each_try_is_in_the_history(place: Place) -> None:
    place.script({"fail": "no luck"}, {"die": True}, {})
    code, result = place.run("--if-new")
    assert (code, result["status"], result["attempt"]) == (0, "done", 3)
    assert place.states() == ["failed", "failed", "done"]


def test_after_the_last_try_the_span_is_left_for_the_next_command(place: Place) -> None:
    place.script({"fail": "first"}, {"fail": "second\nsays more"}, {})
    code, result = place.run("--if-new", "--set", "retrain.attempts=2")
    assert (code, result["status"], result["attempt"]) == (1, "failed", 2)
    assert result["error"] == "second\nsays more"
    assert place.run("--if-new")[1]["status"] == "done"


def test_people_are_told_what_became_of_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.script({"fail": "no luck"}, {"fail": "no luck"}, {"blessed": False})
    with hook() as made:
        monkeypatch.setenv("ONESHOT_WEBHOOK_URL", made.url)
        arguments = ["--span", "2", "--set", "retrain.attempts=1"]
        place.run(*arguments, "--no-failure-notice")
        assert made.bodies == []
        place.run(*arguments)
        place.run(*arguments)
    failed, judged = made.bodies
    assert (failed["event"], failed["span"], failed["error"]) == ("failed", 2, "no luck")
    assert (judged["event"], judged["span"], judged["error"]) == ("not_blessed", 2, "")


def test_bad_input_is_not_tried_again(place: Place) -> None:
    place.script({"refuse": "Greek/alpha is no image"}, {})
    code, result = place.run("--if-new")
    assert (code, result["status"], result["error"]) == (2, "refused", "Greek/alpha is no image")
    assert (result["state"], place.states()) == ("refused", ["refused"])
    assert place.events() == ["begin"]


def test_people_are_told_once_of_what_happened(place: Place) -> None:
    with hook() as made:
        place.environ["ONESHOT_WEBHOOK_URL"] = made.url
        place.script({"fail": "no luck"}, {})
        for _ in range(3):
            place.run("--if-new", "--set", "retrain.attempts=1")
        # What cannot even begin is told of, too.
        (place.output / "spans" / "span-2" / "span.json").chmod(0o644)
        (place.output / "spans" / "span-2" / "span.json").write_text("{")
        place.run("--if-new")
    told = made.bodies
    assert [(one["event"], one["status"]) for one in told] == [
        ("failed", "failed"),
        ("blessed", "done"),
        ("failed", "refused"),
    ]
    assert "no luck" in told[0]["error"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--span", "7"], "no span 7"),
        (["--span", "2", "--set", "retrain.attempts=0"], "retrain.attempts"),
        (["--span", "2", "--timeout", "soon"], "soon"),
        (["--span", "2", "--if-new"], "not allowed with"),
        ([], "--span"),
    ],
)
def test_wrong_usage_ends_with_2(place: Place, argv: list[str], said: str) -> None:
    process = place.start(*argv)
    _, err = process.communicate()
    assert process.returncode == 2
    assert said in err
    assert "Traceback" not in err


def test_a_timeout_ends_the_training_with_all_its_processes(place: Place) -> None:
    place.script({"seconds": 600, "child": True}, {})
    process = place.start("--if-new", "--timeout", "20s")
    place.until((place.output / "child").exists)
    code, result = ended(process)
    assert (code, result["status"]) == (1, "timeout")
    assert "--timeout" in result["error"]
    assert not is_alive(int((place.output / "child").read_text()))
    assert place.states() == ["timeout"]
    assert place.lease.holder() is None
    assert place.run("--if-new")[1]["status"] == "done"


def test_a_second_one_is_skipped_and_says_which_is_under_way(place: Place) -> None:
    place.script({"seconds": 600}, {})
    with place.start("--if-new") as first:
        place.until(place.events)
        code, result = place.run("--if-new")
        assert (code, result["status"]) == (0, "busy")
        holder = place.lease.holder()
        assert holder is not None
        assert holder.run_id in result["error"]
        first.kill()


def test_other_commands_hold_the_same_lease(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    place.script({"seconds": 600})
    with place.start("--if-new") as first:
        place.until(place.events)
        for argv in (["run"], ["gc"]):
            assert main([*argv, "--output", str(place.output)]) == 1
            assert "retrain" in capfd.readouterr().err
        first.kill()


def test_overrun_replace_ends_the_one_under_way(place: Place) -> None:
    place.script({"seconds": 600, "child": True}, {})
    first = place.start("--if-new")
    place.until((place.output / "child").exists)
    code, result = place.run("--if-new", "--overrun", "replace")
    assert (code, result["status"]) == (0, "done")
    code, replaced = ended(first)
    assert (code, replaced["status"]) == (1, "replaced")
    assert result["run_id"] in replaced["error"]
    assert not is_alive(int((place.output / "child").read_text()))
    assert place.events() == ["begin", "stopped", "begin", "end"]
    assert place.states() == ["replaced", "done"]


@pytest.mark.parametrize("where", ["place", "shared"])
@pytest.mark.parametrize("hosts", [(None, None), ("one", "two")])
def test_of_two_started_together_one_trains(
    where: str, hosts: tuple[str | None, str | None], request: pytest.FixtureRequest
) -> None:
    place: Place = request.getfixturevalue(where)
    place.script({"seconds": 0.5})
    both = [place.start("--if-new", host=host) for host in hosts]
    results = [ended(process) for process in both]
    assert [code for code, _ in results] == [0, 0]
    statuses = sorted(result["status"] for _, result in results)
    assert statuses in (["busy", "done"], ["done", "nothing_new"])
    assert place.events() == ["begin", "end"]


@pytest.mark.parametrize("victim", ["the command", "its guard", "the training process"])
def test_a_killed_process_leaves_nothing_running_and_the_next_command_completes(
    place: Place, victim: str
) -> None:
    place.script({"seconds": 600, "child": True}, {})
    process = place.start("--if-new", "--set", "retrain.attempts=1")
    place.until((place.output / "child").exists)
    worker = int((place.output / "events").read_text().split()[2])
    (guard,) = children(process.pid)
    victims = {"the command": process.pid, "its guard": guard, "the training process": worker}
    os.kill(victims[victim], signal.SIGKILL)
    process.communicate()
    started = (guard, worker, int((place.output / "child").read_text()))
    place.until(lambda: not any(map(is_alive, started)))
    code, result = place.run("--if-new")
    assert (code, result["status"]) == (0, "done")
    left = "interrupted" if victim == "the command" else "failed"
    assert place.states() == [left, "done"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_training_in_order_and_gives_the_lease_back(
    place: Place, number: signal.Signals
) -> None:
    place.script({"seconds": 600, "child": True})
    with handled(number, signal.SIG_DFL):
        process = place.start("--if-new")
    place.until((place.output / "child").exists)
    process.send_signal(number)
    code, result = ended(process)
    assert (code, result["status"]) == (128 + number, "interrupted")
    assert result["error"].startswith("ended by")
    assert number == signal.SIGINT or number.name in result["error"]
    assert not is_alive(int((place.output / "child").read_text()))
    assert place.lease.holder() is None
    assert place.events() == ["begin", "stopped"]
    (left,) = RunHistory(place.metadata.connection()).runs()
    assert (left.state, left.error) == ("interrupted", result["error"])


def test_a_training_that_does_not_stop_in_order_is_killed(place: Place) -> None:
    place.script({"deaf": True, "seconds": 600})
    process = place.start("--if-new")
    place.until(place.events)
    worker = int((place.output / "events").read_text().split()[2])
    process.terminate()
    assert ended(process)[0] == 128 + signal.SIGTERM
    assert not is_alive(worker)


def test_a_terminal_that_is_closed_ends_the_training_in_order(place: Place) -> None:
    place.script({"seconds": 600, "child": True})
    ours, its = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)

    with handled(signal.SIGHUP, signal.SIG_DFL):
        process = subprocess.Popen(
            [*STUB, "retrain", "--if-new", *place.arguments[1:]],
            cwd=CHECKOUT,
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
    os.close(its)
    place.until((place.output / "child").exists)
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert not is_alive(int((place.output / "child").read_text()))
    assert place.events() == ["begin", "stopped"]
    (left,) = RunHistory(place.metadata.connection()).runs()
    assert left.error == "ended by SIGHUP: its terminal or session was closed"


def test_what_nohup_started_goes_on_without_its_terminal(place: Place) -> None:
    place.script({"seconds": 3})
    with handled(signal.SIGHUP, signal.SIG_IGN):
        process = place.start("--if-new")
    place.until(place.events)
    process.send_signal(signal.SIGHUP)
    assert ended(process)[1]["status"] == "done"


def test_the_training_of_a_command_that_stands_still_ends_before_another_host_takes_over(
    shared: Place,
) -> None:
    shared.script({"seconds": 600, "child": True}, {})
    # Long enough for a busy machine: a fifth of it is left for ending.
    first = shared.start("--if-new", host="one")
    shared.until((shared.output / "child").exists)
    worker = int((shared.output / "events").read_text().split()[2])
    first.send_signal(signal.SIGSTOP)
    shared.until(lambda: shared.lease.holder() is None)
    assert not is_alive(worker)
    assert not is_alive(int((shared.output / "child").read_text()))
    code, result = shared.run("--if-new", host="two")
    assert (code, result["status"]) == (0, "done")
    first.send_signal(signal.SIGCONT)
    code, lost = ended(first)
    assert (code, lost["status"]) == (1, "failed")
    assert "the lease was not renewed in time" in lost["error"]
    assert lost["state"] == "failed"
    assert shared.states() == ["interrupted", "done"]


def test_a_try_whose_guard_could_not_ask_for_the_lease_does_not_count(place: Place) -> None:
    place.script({"interrupt": "the machine was too busy"}, {"fail": "no luck"}, {})
    code, result = place.run("--if-new", "--set", "retrain.attempts=2")
    assert (code, result["status"], result["attempt"]) == (0, "done", 2)
    assert place.states() == ["interrupted", "failed", "done"]
    first = RunHistory(place.metadata.connection()).runs()[-1]
    assert first.error == "the machine was too busy"


def test_who_loses_the_lease_says_so(place: Place) -> None:
    place.script({"seconds": 600, "child": True})
    with hook() as made:
        place.environ["ONESHOT_WEBHOOK_URL"] = made.url
        process = place.start("--if-new")
        place.until((place.output / "child").exists)
        place.lease.change(lambda token, holder, now: (token + 1, None))
        code, result = ended(process)
    (told,) = made.bodies
    assert (code, result["status"], result["state"]) == (1, "failed", "failed")
    assert told["event"] == "failed"
    for said in (result["error"], told["error"]):
        assert said.startswith("the lease was taken over by another run")
    assert not is_alive(int((place.output / "child").read_text()))
    assert place.events() == ["begin"]


def test_a_process_that_loads_for_longer_than_the_lease_lasts_goes_on(place: Place) -> None:
    place.script({"stiff": 9})
    code, result = place.run("--if-new", "--set", "retrain.lease_seconds=7")
    assert (code, result["status"], result["attempt"]) == (0, "done", 1)
    assert place.states() == ["done"]


def test_a_push_that_was_cut_off_before_its_promotion_is_promoted_later(place: Place) -> None:
    _, result = place.run("--if-new", "--set", "retrain.label=null")
    assert not result["promoted"]
    history = RunHistory(place.metadata.connection())
    (pushed,) = history.runs()
    # As the worker leaves it; the command that would have promoted it was killed.
    history.record(replace(pushed, label="canary"))
    code, result = place.run("--if-new")
    assert (code, result["status"], result["promoted"]) == (0, "nothing_new", True)
    assert "canary" in (place.output / "serving_model" / "models.config").read_text()


def test_what_a_run_was_for_is_in_the_history(place: Place) -> None:
    place.run("--span", "1")
    (record,) = RunHistory(place.metadata.connection()).runs()
    assert isinstance(record, RunRecord)
    assert (record.command, record.trigger, record.span, record.window) == (
        "retrain",
        "span",
        1,
        (1,),
    )
    assert (record.attempt, record.label, record.promoted) == (1, "stable", True)


def test_spans_that_are_excluded_are_not_trained_on(place: Place) -> None:
    SpanStore(Workspace(place.output).spans).exclude(2, "smudged")
    _, result = place.run("--if-new")
    assert (result["span"], result["window"]) == (1, [1])
    code, result = place.run("--span", "2")
    assert (code, result["status"]) == (2, "refused")
    assert "smudged" in result["error"]
