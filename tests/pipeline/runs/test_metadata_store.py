"""Where ML Metadata is: URLs, what is made of them, and what is never said of them."""

import logging
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_ingest.errors import InputError
from pipeline.config import PipelineConfig, load_config
from pipeline.runs.history import RunHistory, RunRecord
from pipeline.runs.logs import run_logging
from pipeline.runs.metadata_store import URL_VARIABLE, locate, parse_url, remember
from pipeline.runs.workspace import Workspace
from pipeline.settings import MetadataSettings

POSTGRES = "postgresql://ann:se%3Acr%40t@db.example.org:6543/oneshot"


def test_a_folder_has_its_own_file_unless_a_url_says_otherwise(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert locate(MetadataSettings(), workspace, {}).sqlite_file == tmp_path / "metadata.db"
    configured = MetadataSettings.model_validate({"url": "mysql://host/one"})
    assert locate(configured, workspace, {}).url.scheme == "mysql"
    assert locate(configured, workspace, {URL_VARIABLE: POSTGRES}).url.scheme == "postgresql"


def test_a_path_longer_than_sqlite_takes_is_told(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["Ж" * 100] * 3)
    with pytest.raises(InputError, match=r"metadata\.db: longer than the 500 bytes"):
        locate(MetadataSettings(), Workspace(deep), {})


def test_a_postgresql_url_is_taken_apart() -> None:
    config = parse_url(POSTGRES).connection().postgresql
    assert (config.host, config.port, config.dbname) == ("db.example.org", "6543", "oneshot")
    assert (config.user, config.password) == ("ann", "se:cr@t")
    assert config.skip_db_creation
    socket = parse_url("postgresql://ann@/oneshot?host=/run/postgresql").connection().postgresql
    assert (socket.host, socket.port) == ("/run/postgresql", "5432")
    assert parse_url("postgres+psycopg://h/d").url.scheme == "postgresql"


def test_values_that_a_connection_string_would_end_are_quoted() -> None:
    config = parse_url("postgresql://ann:a%20b%27c%5Cd@h/d").connection().postgresql
    assert config.password == r"'a b\'c\\d'"


def test_a_mysql_url_is_taken_apart() -> None:
    url = "mysql+pymysql://ann:se%3Acr%40t@db.example.org/oneshot?ssl_ca=/etc/ca.pem"
    config = parse_url(url).connection().mysql
    assert (config.host, config.port, config.database) == ("db.example.org", 3306, "oneshot")
    assert (config.user, config.password) == ("ann", "se:cr@t")
    assert config.ssl_options.ca == "/etc/ca.pem"
    assert config.skip_db_creation


def test_a_sqlite_url_names_a_file(tmp_path: Path) -> None:
    location = parse_url(f"sqlite:///{tmp_path}/not/../my%20runs/metadata.db")
    file = tmp_path / "my runs" / "metadata.db"
    assert location.sqlite_file == file
    RunHistory(location.connection()).record(RunRecord("a", "done", 1.0))
    assert file.is_file()


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0/\r\n\t"), min_size=1))
def test_the_whole_url_means_the_same_place_again(name: str) -> None:
    if name in (".", ".."):
        return
    location = locate(MetadataSettings(), Workspace(Path("/data") / name), {})
    assert parse_url(location.secret_url).sqlite_file == location.sqlite_file
    for url in (POSTGRES, "postgresql:///oneshot?host=/run/pg", "mysql://ann:p@h:1/d"):
        assert parse_url(parse_url(url).secret_url) == parse_url(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("oracle://ann:secret@host/one", "unknown kind 'oracle:'"),
        ("postgresql://ann:secret@host", "which database"),
        ("sqlite://", "which file"),
        ("sqlite://host/file", "which file"),
        ("postgresql://ann:secret@host:port/one", "not a URL"),
        ("postgresql://ann:secret@[host/one", "not a URL"),
        ("postgresql://ann:secret@host/one?sslmode=verify-full", "without TLS"),
        ("postgresql://ann:a@secret@host/one", "write @ / ? # and % in a user or password as %40"),
        ("postgresql://ann:1/secret@host/one", "write @ / ? # and % in a user or password as %40"),
        ("mysql://ann:%secret@host/one", "write @ / ? # and % in a user or password as %40"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(url: str, said: str) -> None:
    with pytest.raises(InputError, match=r"metadata\.url") as caught:
        parse_url(url)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_passwords_are_in_no_text_of_configuration_or_location(tmp_path: Path) -> None:
    config = load_config(None, [f"metadata.url={POSTGRES}"])
    location = locate(config.metadata, Workspace(tmp_path), {})
    assert location.url.password == "se%3Acr%40t"
    for text in (str(location), repr(location), str(config), config.model_dump_json()):
        assert "se%3Acr%40t" not in text
        assert "se:cr@t" not in text
    assert str(location) == "postgresql://db.example.org/oneshot"


@pytest.mark.parametrize("password", ["pa:5@w0rd", "pä5w0rd", 'pa"5\\w0rd', "pa 5'w0rd"])
def test_logs_leave_secrets_out(
    password: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run.log"
    location = parse_url(f"postgresql://ann:{quote(password)}@db.example.org/oneshot")
    with run_logging(log, secrets=location.secrets):
        logging.getLogger("absl").info("Using connection config %s", location.connection())
        logging.getLogger("pipeline").info("connects with %s", location.secret_url)
        try:
            raise RuntimeError(password)
        except RuntimeError:
            logging.getLogger("pipeline").exception("failed")
    said = log.read_text() + "".join(capfd.readouterr())
    assert said.count("***") >= 3
    assert password not in said
    assert "w0rd" not in said


def test_a_folder_insists_on_the_store_that_has_its_history(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    location = locate(MetadataSettings(), workspace, {URL_VARIABLE: POSTGRES})
    remember(location, workspace)
    assert "se%3A" not in (tmp_path / "metadata.url").read_text()
    assert locate(MetadataSettings(), workspace, {URL_VARIABLE: POSTGRES}) == location
    with pytest.raises(InputError, match="is in postgresql://db"):
        locate(MetadataSettings(), workspace, {})
    # Before metadata.url there was metadata.db.
    (tmp_path / "metadata.url").unlink()
    (tmp_path / "metadata.db").touch()
    with pytest.raises(InputError, match=r"metadata\.db"):
        locate(MetadataSettings(), workspace, {URL_VARIABLE: POSTGRES})


def test_a_server_that_does_not_answer_is_told_with_its_name(tmp_path: Path) -> None:
    location = parse_url(f"postgresql://ann:secret@/oneshot?host={tmp_path}")
    with pytest.raises(RuntimeError, match=r"postgresql://.*oneshot: ") as caught:
        location.lease().holder()
    assert "secret" not in str(caught.value)


def test_records_of_other_versions_can_be_read(empty_database: str) -> None:
    history = RunHistory(parse_url(empty_database).connection())
    history.record(RunRecord("a", "done", 1.0, span=3, window=(2, 3)))
    with psycopg.connect(empty_database) as connection:
        connection.execute(
            """UPDATE contextproperty SET string_value ="""
            """ '{"run_id": "a", "state": "done", "started": 1.0, "unheard_of": 1}'"""
        )
    assert RunHistory(parse_url(empty_database).connection()).runs() == [RunRecord("a", "done", 1)]


def test_by_default_no_url_is_configured() -> None:
    assert PipelineConfig().metadata.url is None
