"""Stands for `oneshot`: `retrain` answers as `<output>/answers.json` says and notes each call.

The file maps "<span> <stage>" to the answers of the first, second, ... call, the last one for all
further calls: {"exit": 1, "seconds": 0.5, "result": {...}}, all optional. `notify` adds its title
to the file named by SCRIPTED_NOTICES.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path


def scripted_program(folder: Path) -> Path:
    """Writes a program that calls this one."""
    program = folder / "oneshot"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    program.chmod(0o755)
    return program


def main() -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    retrain = commands.add_parser("retrain")
    chosen = retrain.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--span", type=int)
    chosen.add_argument("--if-new", action="store_true")
    retrain.add_argument("--stage", required=True)
    retrain.add_argument("--config", type=Path, required=True)
    retrain.add_argument("--output", type=Path, required=True)
    retrain.add_argument("--set", action="append")
    retrain.add_argument("--json", action="store_true", required=True)
    retrain.add_argument("--no-failure-notice", action="store_true", required=True)
    notify = commands.add_parser("notify")
    notify.add_argument("event", choices=["failed"])
    notify.add_argument("title")
    notify.add_argument("--config", type=Path, required=True)
    notify.add_argument("--detail", action="append")
    call = parser.parse_args()
    if "title" in call:
        with Path(os.environ["SCRIPTED_NOTICES"]).open("a") as notices:
            notices.write(f"{call.title} {call.config} {call.detail}\n")
        return 0
    key = f"{'new' if call.if_new else call.span} {call.stage}"
    calls = call.output / "calls" / key
    calls.mkdir(parents=True, exist_ok=True)
    number = len(list(calls.glob("[0-9]*")))
    answers = json.loads((call.output / "answers.json").read_text()).get(key) or [{}]
    answer = answers[min(number, len(answers) - 1)]
    noted = calls / ".noted"
    noted.write_text(
        json.dumps({"process": os.getpid(), "config": str(call.config), "set": call.set})
    )
    noted.rename(calls / str(number))
    sys.stderr.write(f"call {number} of {key}\n")
    time.sleep(answer.get("seconds", 0))
    result = {"status": "done", "span": call.span, "run_id": f"run-{call.span}-{call.stage}"}
    sys.stdout.write(json.dumps(result | answer.get("result", {})))
    return int(answer.get("exit", 0))


if __name__ == "__main__":
    sys.exit(main())
