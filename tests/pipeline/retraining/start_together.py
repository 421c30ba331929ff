"""Starts two `oneshot retrain` together, again and again, and looks whether one alone works.

    python -m tests.pipeline.retraining.start_together --times 20 --output /tmp/together

With `--hosts` the two believe to be on different hosts, with `--stub` a stub stands for the
pipeline, and ONESHOT_METADATA_URL says where the metadata and the lease are.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_ingest.settings import PairSettings
from data_ingest.sources.glyphs import write_glyphs
from data_ingest.spans.store import SpanStore
from tests.pipeline.tiny import as_options

CHECKOUT = Path(__file__).parents[3]
TINY = {
    "pairs": "{train_pairs: 200, eval_pairs: 80, verification_pairs: 80, ways: [5],"
    " within_trials: 20, between_trials: 20}",
    "train": "{widths: [8, 8, 8], image_size: 16, steps: 12, validate_every: 6,"
    " checkpoint_every: 3, classes_per_batch: 6, images_per_class: 2}",
    "evaluate": "{thresholds: {auc: {min: 0.05}}}",
    "gate": "{latency_requests: 10}",
    "retrain": "{window: 2, lease_seconds: 20, backoff_seconds: 0.1}",
}


def land(output: Path, *, spoil: Callable[[bytes], bytes] | None = None) -> int:
    """Lands a span of new glyphs, each of them spoilt if asked, and returns its number."""
    store = SpanStore(output / "spans")
    number = max((span.number for span in store.spans()), default=0) + 1
    output.mkdir(parents=True, exist_ok=True)
    images = output / "incoming.zip"
    write_glyphs(images, alphabets=4, characters=6, seed=1, first_alphabet=10 * number)
    if spoil is not None:
        whole = {}
        with zipfile.ZipFile(images) as archive:
            for name in archive.namelist():
                whole[name] = spoil(archive.read(name))
        with zipfile.ZipFile(images, "w") as archive:
            for name, content in whole.items():
                archive.writestr(name, content)
    store.land(number, [images], pairs=PairSettings(), max_rejected_share=0)
    return number


def command(output: Path, *argv: str, stub: bool = False, host: str = "") -> list[str]:
    """The command line of a tiny retraining."""
    start = [sys.executable, "-m"]
    start.append("tests.pipeline.retraining.stub_retrain" if stub or host else "pipeline.cli.main")
    start += ["--on-host", host] if host else []
    start += ["--real"] if host and not stub else []
    sets = as_options(TINY)
    return [*start, "retrain", "--if-new", "--json", "--output", str(output), *sets, *argv]


class Workers(threading.Thread):
    """Counts, all the time, how many processes work on the pipeline for some commands."""

    def __init__(self, owners: list[int]) -> None:
        super().__init__(daemon=True)
        self._owners = owners
        self._ended = threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self._ended.wait(0.005):
            self.most = max(self.most, sum(len(children(owner)) for owner in self._owners))

    def end(self) -> None:
        self._ended.set()
        self.join()


def children(pid: int) -> list[int]:
    """Numbers of a process's running children."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in listed]
    except OSError:
        return []


def start_two(
    output: Path, *, stub: bool, hosts: bool, moments: random.Random
) -> tuple[list[dict[str, Any]], int]:
    """Lands a span and starts two at once; returns what they said, and the most workers."""
    number = land(output)
    (output / "script.json").write_text('[{"seconds": 0.3}]')
    processes = []
    for host in ("one", "two"):
        line = command(output, stub=stub, host=host if hosts else "")
        processes.append(
            subprocess.Popen(
                line, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        time.sleep(moments.choice((0, 0, moments.uniform(0, 0.3))))
    workers = Workers([process.pid for process in processes])
    workers.start()
    results = []
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        results.append(json.loads(out))
    workers.end()
    statuses = sorted(result["status"] for result in results)
    assert statuses in (["busy", "done"], ["done", "nothing_new"]), statuses
    assert workers.most <= 1, f"{workers.most} at work at once"
    done = next(result for result in results if result["status"] == "done")
    assert done["span"] == number
    return results, workers.most


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--stub", action="store_true")
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    statuses: Counter[str] = Counter()
    most = 0
    for _ in range(arguments.times):
        results, workers = start_two(
            arguments.output, stub=arguments.stub, hosts=arguments.hosts, moments=moments
        )
        statuses.update(result["status"] for result in results)
        most = max(most, workers)
    summary = {"times": arguments.times, "most_at_work_at_once": most, **statuses}
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
