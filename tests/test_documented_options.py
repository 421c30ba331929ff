"""What documents say can be typed or set: the command line and the configuration take all of it."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import yaml

from pipeline.cli.main import command_parser
from pipeline.config import PipelineConfig, load_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
DEPLOYED = [path for path in sorted((ROOT / "pipeline" / "deploy").rglob("*")) if path.is_file()]
DOCUMENTS = [*PAGES, ROOT / "Makefile", *DEPLOYED]
SOURCES = sorted(
    path
    for package in ("data_ingest", "components", "serving", "pipeline")
    for path in (ROOT / package).rglob("*.py")
)
COMMAND = re.compile(
    r"(?:^|[;&|=] *|[$@] *|do |`)(?:[\w./$()-]+/)?oneshot +(?=[a-z-])([^`]*)", re.M
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
MADE = re.compile(r'\bmake (run|doctor)\b[^`\n]*?\bARGS="([^"]*)"')
OVERRIDE = re.compile(r"""--set ("[^"]*"|'[^']*'|[^\s`"')]+)""")
OPTION = re.compile(rf"({'|'.join(PipelineConfig.model_fields)})(\.[a-z_0-9]+)+")
SHELL = {";", "&", "&&", "|", ">", ">>", "<<"}
LEFT_OUT = re.compile(r"…|\.{3}")
PLACEHOLDER = re.compile(r"<\w+>|\{[^}]*\}")
VARIABLE = re.compile(r"\$\(\w+\)")
FLAG = re.compile(r"(?<!\S)--[a-z][\w-]*")
ACTION = re.compile(r"^ {4}([a-z]+)(?: |$)", re.M)
FOREIGN = {"--shm-size", "--tensorflow_", "--to-the-end", "--grpc", "--rest"}
"""Options of Docker, TF Serving and benchmarks that are named without their program."""


def text_of(document: Path) -> str:
    """A document with continued lines, and strings that Python joins, in one piece."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.sub(r'"\s*\n\s*f?"', "", text) if document.suffix == ".py" else text


def listings(text: str) -> Iterator[str]:
    """What a page shows to be typed, line by line."""
    for language, listing in FENCED.findall(text):
        yield from listing.splitlines() if language in ("", "sh") else ()
    yield from re.findall(r"^ {4}(.*)$", text, flags=re.M)


def in_backticks(document: Path) -> Iterator[str]:
    text = FENCED.sub("", text_of(document))
    yield from re.findall(r"`([^`\n]+)`", text)


def arguments(command: str) -> list[str]:
    """The arguments in what follows `oneshot`, up to what is the shell's."""
    said = PLACEHOLDER.sub("1", LEFT_OUT.sub("", VARIABLE.sub("", command)))
    lexer = shlex.shlex(said, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in SHELL:
            break
        words.append(word)
    return words


@cache
def complaint(*words: str) -> str:
    """What the command line has against such arguments; empty: it takes them."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            command_parser().parse_args(words)
        except SystemExit:
            return said.getvalue().strip().rpartition("\n")[2]
    return ""


@cache
def flags(command: str = "") -> frozenset[str]:
    """The options of a command and of its actions, as its help has them."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        command_parser().parse_args([*command.split(), "--help"])
    actions = ACTION.findall(shown.getvalue())
    own = frozenset(FLAG.findall(shown.getvalue()))
    return own.union(*(flags(f"{command} {action}") for action in actions))


def known(words: Sequence[str]) -> bool:
    """Whether the options in a command's arguments are its own, and not abbreviated."""
    command = words[0] if words[0].isalpha() else ""
    return {word for word in words if FLAG.fullmatch(word)} <= flags(command)


@cache
def set_to(override: str) -> None:
    load_config(ROOT / "pipeline_config.yaml", [override])


def exists(option: str) -> bool:
    """Whether there is such an option, or section."""
    settings: object = PipelineConfig()
    for name in option.split("."):
        if not hasattr(settings, name):
            return False
        settings = getattr(settings, name)
    return True


def typed(document: Path) -> Iterator[list[str]]:
    """The arguments of each command that a document gives in full."""
    text = text_of(document)
    lines = listings(text) if document.suffix == ".md" else text.splitlines()
    for line in lines:
        for found in COMMAND.findall(re.sub(r"\s# .*", "", line)):
            if not LEFT_OUT.search(found):
                yield arguments(found)
    for command, given in MADE.findall(text):
        yield [command, *arguments(given)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_command_that_a_document_shows_is_taken(document: Path) -> None:
    for words in typed(document):
        assert not complaint(*words), words
        assert known(words), words
    for override in OVERRIDE.findall(text_of(document)):
        if override.lower() != "key=value":
            set_to("".join(shlex.split(override)))


def test_the_commands_and_options_of_documents_are_found() -> None:
    shown = [tuple(words) for document in DOCUMENTS for words in typed(document)]
    assert len(set(shown)) > 40
    for words in (("retrain", "--if-new"), ("spans", "list"), ("run", "--set", "train.seed=2")):
        assert words in shown
    overrides = [found for page in PAGES for found in OVERRIDE.findall(text_of(page))]
    assert {"train.preset=koch2015", "beam.workers=0"} <= set(overrides)


@pytest.mark.parametrize("document", [*PAGES, *SOURCES], ids=lambda path: path.name)
def test_a_command_in_a_text_or_message_exists_with_its_options(document: Path) -> None:
    for code in in_backticks(document):
        for command in COMMAND.findall(f"`{code}"):
            words = arguments(command)
            said = complaint(*words)
            # Often only the beginning of a command is named.
            assert not said or "required" in said or "expected" in said, (code, said)
            assert known(words), code


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_an_option_that_a_page_names_exists(page: Path) -> None:
    for code in in_backticks(page):
        option, _, value = code.partition(": ")
        if OPTION.fullmatch(option) and not (ROOT / option).exists() and option != "metadata.db":
            assert exists(option), code
            if value:
                set_to(f"{option}={value}")
        if flag := FLAG.match(code):
            assert flag[0] in flags() | FOREIGN, code


def test_a_variable_that_a_page_names_is_read() -> None:
    code = "".join(map(text_of, [*SOURCES, ROOT / "tests" / "browser.py"]))
    for page in PAGES:
        for prefix, name in re.findall(r"\b(ONESHOT_(?:AIRFLOW_)?)([A-Z_]+)\b", text_of(page)):
            # Those of Airflow are made of the fields of its settings.
            field = f"    {name.lower()}: "
            assert (field if prefix.endswith("AIRFLOW_") else f'"{prefix}{name}"') in code, name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_target_or_module_that_a_page_names_exists(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    text = text_of(page)
    for target in re.findall(r"(?:^|[`;&] *)make ([a-z][a-z-]*)", text, flags=re.M):
        assert target in targets or target == "bench-", target
    ours = r"python -m ((?:benchmarks|data_ingest|components|serving|pipeline)[\w.]*)"
    for module in re.findall(ours, text):
        assert (ROOT / module.rstrip(".").replace(".", "/")).with_suffix(".py").is_file(), module


def test_a_configuration_that_a_page_shows_is_taken(tmp_path: Path) -> None:
    shown = [
        snippet
        for page in PAGES
        for language, snippet in FENCED.findall(text_of(page))
        if language == "yaml" and set(yaml.safe_load(snippet)) & set(PipelineConfig.model_fields)
    ]
    assert shown
    for snippet in shown:
        path = tmp_path / "config.yaml"
        path.write_text(snippet)
        assert load_config(path) != PipelineConfig()
