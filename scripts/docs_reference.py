"""Writes docs/commands.md and docs/configuration.md from the parser and from the settings.

python scripts/docs_reference.py
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.trainer.recipe import PRESETS, Recipe
from pipeline.cli.main import command_parser
from pipeline.config import PipelineConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"
WRITTEN = "<!-- Written by `make docs`: change the program, not this page. -->"
EVERYWHERE = {"--help", "--json", "--verbose"}
"""Options that all commands have."""


def commands_page() -> str:
    """Every command with its arguments and options."""
    parser = command_parser()
    sections = [
        section
        for path, command, text in _commands(parser)
        for section in _command(path, command, text)
    ]
    told = [(f"[`{path}`](#{_anchor(path)})", text) for path, _, text in _commands(parser)]
    return _page(
        "Commands",
        "Each also takes `--help`, `--json` (a machine-readable result on stdout) and `--verbose` "
        "(`-v`, every library's log). [Exit codes](reference.md#exit-codes).",
        "",
        *_table(("command", "what it does"), told),
        *sections,
    )


def configuration_page() -> str:
    """Every option of the configuration, by section, and what the presets have."""
    schema = PipelineConfig.model_json_schema()
    sections = []
    single = []
    for name, field in schema["properties"].items():
        if "$ref" in field:
            settings = schema["$defs"][field["$ref"].rpartition("/")[2]]
            rows = _options(settings, schema["$defs"], "")
            sections += ["", f"## {name}", "", settings["description"].partition("\n")[0], ""]
            sections += _table(("option", "value", "default", "meaning"), rows)
        else:
            single.append(_option(name, field))
    return _page(
        "Configuration",
        "How to write and override it: [configuration files](reference.md#configuration-files).",
        "",
        *_table(("option", "value", "default", "meaning"), single),
        *sections,
        "",
        "## What the presets have",
        "",
        "An option of `train` that is `null` is the preset's, for the kind of the images.",
        "",
        *_presets(),
    )


def _commands(
    parser: argparse.ArgumentParser, text: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Commands that have no actions of their own: name, parser, what the list says of it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield from _commands(command, told.get(name, text))
            return
    yield parser.prog, parser, text


def _command(path: str, command: argparse.ArgumentParser, text: str) -> Iterator[str]:
    yield from ("", f"## {path}", "", _plain(command.description or text), "")
    rows = []
    formatter = command._get_formatter()
    for action in command._actions:
        if EVERYWHERE & set(action.option_strings) or action.help is argparse.SUPPRESS:
            continue
        value = formatter._format_args(action, (action.metavar or action.dest).upper())
        names = [f"`{f'{name} {value}'.strip()}`" for name in action.option_strings]
        meaning = formatter._expand_help(action) if action.help else ""
        if action.required and action.option_strings:
            meaning += " (required)"
        rows.append((", ".join(names) or f"`{value}`", _cell(meaning)))
    yield from _table(("argument or option", "meaning"), rows)


def _options(
    settings: Mapping[str, Any], known: Mapping[str, Any], before: str
) -> Iterator[tuple[str, ...]]:
    for name, field in settings["properties"].items():
        yield _option(before + name, field)
        of_each = field.get("additionalProperties") or field.get("items")
        if isinstance(of_each, dict) and "$ref" in of_each:
            inner = known[of_each["$ref"].rpartition("/")[2]]
            yield from _options(
                inner,
                known,
                f"{before}{name}.NAME." if "items" not in field else f"{before}{name}[].",
            )


def _option(name: str, field: Mapping[str, Any]) -> tuple[str, ...]:
    default = "" if "default" not in field else f"`{_shown(field['default'])}`"
    return f"`{name}`", _cell(_allowed(field)), default, _cell(field.get("description", ""))


def _allowed(field: Mapping[str, Any]) -> str:
    """What a value may be."""
    if "anyOf" in field:
        return " or ".join(_allowed(one) for one in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        items = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {_allowed(items) or 'values'}"
    if field.get("type") in ("object", None):
        return "mapping"
    kinds = {"string": "text", "integer": "whole number", "number": "number", "boolean": "switch"}
    limits = [
        f"{sign} {field[key]:{',' if isinstance(field[key], int) else 'g'}}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in field
    ]
    return ", ".join([kinds.get(field["type"], field["type"]), *limits])


def _presets() -> Iterator[str]:
    defaults = {name: field.default for name, field in Recipe.model_fields.items()}
    columns = {
        (kind, name): given for kind, named in PRESETS.items() for name, given in named.items()
    }
    differing = [name for name in defaults if any(name in given for given in columns.values())]
    rows = [
        (
            f"`{name}`",
            *(f"`{_shown(given.get(name, defaults[name]))}`" for given in columns.values()),
        )
        for name in differing
    ]
    yield from _table(("option", *(f"{name}, {kind}" for kind, name in columns)), rows)


def _shown(value: Any) -> str:
    """A value as YAML has it, in one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        inner = (f"{key}: {_shown(one)}" for key, one in value.items() if one is not None)
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value)


def _table(headings: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield f"| {' | '.join(row)} |".replace("|  |", "| |")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _anchor(heading: str) -> str:
    return heading.replace(" ", "-")


def _page(title: str, *lines: str) -> str:
    return "\n".join([f"# {title}", "", WRITTEN, "", *lines]) + "\n"


PAGES = {"commands.md": commands_page, "configuration.md": configuration_page}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
