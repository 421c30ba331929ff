"""`oneshot serve`: a server of pushed models, with TF Serving's flags."""

import argparse
import gc
import ipaddress
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from data_ingest.errors import InputError
from pipeline.runs.logs import console_logging, run_logging
from serving.errors import ServingError
from serving.saved_model.versions import is_complete

if TYPE_CHECKING:
    from serving.server.server import LocalServer, ServerOptions


MODEL_NAME: Final = "siamese"
TOKEN_VARIABLE: Final = "ONESHOT_TOKEN"
_MIB: Final = 1024 * 1024


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds all flags but those that every command has."""
    _flag(parser, "port", type=int, default=8500, help="gRPC, 0: any free port (%(default)s)")
    _flag(
        parser,
        "rest_api_port",
        type=int,
        default=8501,
        help="REST, 0: any free port (%(default)s)",
    )
    _flag(parser, "host", default="127.0.0.1", help="address to listen on (%(default)s)")
    _flag(parser, "model_name", help=f"({MODEL_NAME})")
    _flag(
        parser,
        "model_base_path",
        type=Path,
        help="folder of the version folders (OUTPUT/serving_model/NAME)",
    )
    _flag(
        parser,
        "model_config_file",
        type=Path,
        help="ModelServerConfig in text format, instead of name and base path",
    )
    _flag(
        parser,
        "model_config_file_poll_wait_seconds",
        type=_not_negative,
        default=0.0,
        help="read the file again that often, 0: never (%(default)s)",
    )
    _flag(
        parser,
        "file_system_poll_wait_seconds",
        type=_positive,
        default=1.0,
        help="look for new versions that often (%(default)s)",
    )
    _flag(
        parser,
        "allow_version_labels_for_unavailable_models",
        type=_boolean,
        nargs="?",
        const=True,
        default=False,
        help="a reload may give a new label to a version that is not loaded yet",
    )
    _flag(
        parser,
        "enable_model_warmup",
        type=_boolean,
        nargs="?",
        const=True,
        default=True,
        help="replay warm-up requests before a version is served (%(default)s)",
    )
    _flag(
        parser,
        "enable_batching",
        type=_boolean,
        nargs="?",
        const=True,
        default=True,
        help="merge the requests of a moment (%(default)s)",
    )
    _flag(
        parser,
        "batching_parameters_file",
        type=Path,
        help="BatchingParameters in text format",
    )
    _flag(
        parser,
        "rest_api_timeout_in_ms",
        type=_positive,
        default=30000.0,
        help="(%(default)s)",
    )
    _flag(
        parser,
        "gallery",
        metavar="FILE_OR_URL",
        help="also serve this gallery under /v1/gallery: SQLite file, or postgresql://...",
    )
    _flag(
        parser,
        "max_body_bytes",
        type=int,
        default=64 * _MIB,
        help="largest request (%(default)s)",
    )
    _flag(
        parser,
        "token_file",
        type=Path,
        help=f"file with a token that every request must bring as 'Authorization: Bearer TOKEN'; "
        f"or set {TOKEN_VARIABLE}",
    )
    _flag(parser, "tls_certificate", type=Path, help="PEM file; answers TLS only, see --tls_key")
    _flag(parser, "tls_key", type=Path, help="PEM file")
    _flag(
        parser,
        "shutdown_seconds",
        type=_not_negative,
        default=30.0,
        help="given to requests under way when the server is stopped (%(default)s)",
    )


def _flag(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    names = [f"--{name}"]
    parser.add_argument(*names, dest=name, **settings)
    if "_" in name:
        settings["help"] = argparse.SUPPRESS
        # Absent, it must not undo what the other spelling has set.
        settings["default"] = argparse.SUPPRESS
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, **settings)


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise argparse.ArgumentTypeError(f"true or false, not {text!r}")


def _positive(text: str) -> float:
    if not (number := _not_negative(text)):
        raise argparse.ArgumentTypeError("more than 0")
    return number


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"a number of at least 0, not {text!r}")
    return number


_log = logging.getLogger(__name__)


def add_parser(commands: Any, parents: Sequence[argparse.ArgumentParser]) -> None:
    """Adds `serve` to the subcommands of `oneshot`.

    Args:
      commands: what `add_subparsers` returned.
      parents: parsers of `--json`, `--verbose` and `--output`.
    """
    parser = commands.add_parser(
        "serve",
        parents=list(parents),
        help="serve the pushed model like TF Serving, over gRPC and REST",
        description="Serves models for development, tests and small sites, with the gRPC and REST "
        "APIs and the flags of TF Serving, which is what to use for production at scale. Flags may "
        "be written with dashes too.",
    )
    add_flags(parser)
    parser.set_defaults(command=serve)


def serve(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; with `--json` says on stdout where it listens.

    Returns:
      the exit code.

    Raises:
      InputError: flags, files or folders that cannot be used.
      OSError: a port is taken.
      RuntimeError: the gallery cannot be opened.
    """
    _check(arguments)
    with _told_to_stop() as stop, console_logging(sys.stderr, verbose=arguments.verbose):
        # TensorFlow greets on stderr whatever it is told; only our own lines are for people.
        with run_logging(Path(os.devnull), verbose=arguments.verbose):
            from serving.server.server import LocalServer
        if not arguments.verbose:
            logging.getLogger("tensorflow").setLevel(logging.ERROR)
        options = _options(arguments)
        _warn_of_exposure(options)
        # What is here now stays: collections after a version is unloaded need not look at it.
        gc.collect()
        gc.freeze()
        try:
            server = LocalServer(options)
        except ServingError as error:
            raise RuntimeError(error.message) from error
        with server:
            _announce(server, as_json=arguments.json)
            _watch_config(arguments, server, stop)
            _log.info("Stopping; requests under way are finished first")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """What can be told before TensorFlow is loaded."""
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(arguments, name) <= 65535:
            raise InputError(f"--{name}: 0 to 65535, not {getattr(arguments, name)}")
    if arguments.port == arguments.rest_api_port != 0:
        raise InputError("--rest_api_port cannot be the same as --port")
    if (arguments.tls_certificate is None) != (arguments.tls_key is None):
        raise InputError("--tls_certificate and --tls_key are needed together")
    if arguments.model_config_file is not None:
        if arguments.model_name is not None or arguments.model_base_path is not None:
            raise InputError(
                "--model_config_file names the models: leave out --model_name and --model_base_path"
            )
        _file(arguments.model_config_file)
        return
    base_path = _base_path(arguments)
    if not base_path.is_dir():
        raise InputError(
            f"{base_path}: no such folder; `oneshot run` pushes a model there, "
            "--model_base_path names another folder"
        )
    if is_complete(base_path):
        raise InputError(
            f"{base_path} is one version; --model_base_path is the folder around it: "
            f"{base_path.parent}"
        )


def _options(arguments: argparse.Namespace) -> "ServerOptions":
    from serving.server.grpc.thread import TlsFiles
    from serving.server.rest.protocol import RestOptions
    from serving.server.server import ServerOptions

    tls = None
    if arguments.tls_certificate is not None:
        tls = TlsFiles(_file(arguments.tls_certificate), _file(arguments.tls_key))
    return ServerOptions(
        _models(arguments),
        host=arguments.host,
        grpc_port=arguments.port,
        rest_port=arguments.rest_api_port,
        token=_token(arguments.token_file),
        tls=tls,
        rest=RestOptions(
            max_body_bytes=arguments.max_body_bytes,
            request_seconds=arguments.rest_api_timeout_in_ms / 1000,
        ),
        max_message_bytes=arguments.max_body_bytes,
        labels_may_wait=arguments.allow_version_labels_for_unavailable_models,
        shutdown_seconds=arguments.shutdown_seconds,
        gallery=arguments.gallery,
    )


def _models(arguments: argparse.Namespace) -> dict[str, Any]:
    """The models to serve, by name."""
    if arguments.model_config_file is not None:
        return _configured_models(arguments)
    from serving.server.models import ModelSetup

    name = arguments.model_name or MODEL_NAME
    return {name: ModelSetup(_base_path(arguments).absolute(), _host_options(arguments))}


def _base_path(arguments: argparse.Namespace) -> Path:
    path: Path | None = arguments.model_base_path
    name = arguments.model_name or MODEL_NAME
    return path or arguments.output / "serving_model" / name


def _configured_models(arguments: argparse.Namespace) -> dict[str, Any]:
    from serving.server.config_files import ConfigError, read_model_config

    try:
        models = read_model_config(arguments.model_config_file, defaults=_host_options(arguments))
    except ConfigError as error:
        raise InputError(str(error)) from error
    if not models:
        raise InputError(f"{arguments.model_config_file}: no models in it")
    return models


def _host_options(arguments: argparse.Namespace) -> Any:
    from serving.server.batching import BatchingOptions
    from serving.server.config_files import ConfigError, read_batching_parameters
    from serving.server.models import HostOptions

    batching = BatchingOptions()
    if arguments.batching_parameters_file is not None:
        try:
            batching = read_batching_parameters(
                arguments.batching_parameters_file, defaults=batching
            )
        except ConfigError as error:
            raise InputError(str(error)) from error
    return HostOptions(
        poll_seconds=arguments.file_system_poll_wait_seconds,
        warmup=arguments.enable_model_warmup,
        batching=replace(batching, enabled=arguments.enable_batching),
    )


def _token(file: Path | None) -> str | None:
    token = os.environ.get(TOKEN_VARIABLE)
    if file is not None:
        token = _file(file).read_text(encoding="utf-8")
    if token is None:
        return None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"{file or TOKEN_VARIABLE}: a token is one line of ASCII characters without spaces"
        )
    return token


def _file(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def _warn_of_exposure(options: "ServerOptions") -> None:
    if _is_loopback(options.host):
        return
    missing = []
    if options.token is None:
        missing.append("anyone who can reach it may use it (--token_file)")
    if options.tls is None:
        missing.append("anyone on the way can read and change what is sent (--tls_certificate)")
    _log.warning(
        "The server listens on %s, not only on this machine%s",
        options.host,
        "".join(f"; {risk}" for risk in missing),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _announce(server: "LocalServer", *, as_json: bool) -> None:
    _log.info("gRPC     %s", server.grpc_target)
    _log.info("REST     %s", server.rest_url)
    for name, host in server.state.hosts.items():
        _log.info("Model    %s from %s", name, host.base_path)
    if as_json:
        where = {
            "grpc": server.grpc_target,
            "rest": server.rest_url,
            "models": sorted(server.state.hosts),
        }
        sys.stdout.write(json.dumps(where) + "\n")
        sys.stdout.flush()


def _watch_config(
    arguments: argparse.Namespace, server: "LocalServer", stop: threading.Event
) -> None:
    """Waits for the end, and meanwhile reloads the configuration file when it changes."""
    file, seconds = arguments.model_config_file, arguments.model_config_file_poll_wait_seconds
    if file is None or not seconds:
        stop.wait()
        return
    known = _content(file)
    while not stop.wait(seconds):
        content = _content(file)
        if content is None or content == known:
            continue
        known = content
        try:
            server.state.reload(_configured_models(arguments))
        except (InputError, ServingError) as error:
            _log.error("%s: not taken over: %s", file, error)
        else:
            _log.info("%s: taken over", file)


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; a second SIGINT ends the process at once."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
