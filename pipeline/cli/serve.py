"""`oneshot serve`: a server of pushed models, with TF Serving's flags."""

import argparse
import gc
import ipaddress
import logging
import os
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from data_ingest.errors import InputError
from pipeline.cli.shared import (
    OUTPUT,
    Context,
    add_command,
    count,
    named_path,
    on_signals,
    print_json,
)
from serving.errors import ServingError
from serving.saved_model.contract import MODEL_NAME
from serving.saved_model.versions import is_complete

if TYPE_CHECKING:
    from serving.server.models import ModelSetup
    from serving.server.server import LocalServer, ServerOptions

TOKEN_VARIABLE: Final = "ONESHOT_TOKEN"
_log = logging.getLogger(__name__)


def add_parsers(commands: Any) -> None:
    """Adds the command to those of `oneshot`."""
    parser = add_command(
        commands,
        "serve",
        _serve,
        OUTPUT,
        text="serve the pushed model like TF Serving, over gRPC and REST",
    )

    def flag(name: str, text: str, **settings: Any) -> None:
        parser.add_argument(f"--{name}", dest=name, help=text, **settings)
        if "_" in name:
            # Absent, it must not undo what the other spelling has set.
            settings["default"] = argparse.SUPPRESS
            dashed = f"--{name.replace('_', '-')}"
            parser.add_argument(dashed, dest=name, help=argparse.SUPPRESS, **settings)

    def switch(name: str, text: str, *, default: bool) -> None:
        flag(name, text, type=_boolean, nargs="?", const=True, default=default)

    flag("port", "port of gRPC; 0: any that is free (default: %(default)s)", type=int, default=8500)
    flag(
        "rest_api_port",
        "port of REST; 0: any that is free (default: %(default)s)",
        type=int,
        default=8501,
    )
    flag("host", "address to listen on (default: %(default)s)", default="127.0.0.1")
    flag("model_name", f"name of the model (default: {MODEL_NAME})")
    flag(
        "model_base_path",
        "folder of the version folders (default: OUTPUT/serving_model/NAME)",
        type=named_path,
    )
    flag(
        "model_config_file",
        "file with a ModelServerConfig as text, instead of name and base path",
        type=named_path,
    )
    flag(
        "model_config_file_poll_wait_seconds",
        "seconds between looks at that file; 0: never again (default: %(default)s)",
        type=_not_negative,
        default=0.0,
    )
    flag(
        "file_system_poll_wait_seconds",
        "seconds between looks for new versions (default: %(default)s)",
        type=_positive,
        default=1.0,
    )
    switch(
        "allow_version_labels_for_unavailable_models",
        "a reload may give a new label to a version that is not loaded yet",
        default=False,
    )
    switch(
        "enable_model_warmup",
        "replay warm-up requests before a version is served (default: %(default)s)",
        default=True,
    )
    switch("enable_batching", "merge the requests of a moment (default: %(default)s)", default=True)
    flag("batching_parameters_file", "file with BatchingParameters as text", type=named_path)
    flag(
        "rest_api_timeout_in_ms",
        "milliseconds that a request may take (default: %(default)s)",
        type=_positive,
        default=30000.0,
    )
    flag(
        "gallery",
        "also serve this gallery under /v1/gallery: SQLite file, or postgresql://...",
        metavar="FILE_OR_URL",
    )
    flag(
        "max_body_bytes",
        "bytes of the largest request (default: %(default)s)",
        type=count,
        default=64 * 2**20,
    )
    flag(
        "token_file",
        "file with a token that every request must bring as 'Authorization: Bearer TOKEN'; "
        f"or set {TOKEN_VARIABLE}",
        type=named_path,
    )
    flag(
        "tls_certificate", "PEM file with a certificate; then only TLS is answered", type=named_path
    )
    flag("tls_key", "PEM file with the key of that certificate", type=named_path)
    flag(
        "shutdown_seconds",
        "seconds that requests under way get when the server is stopped (default: %(default)s)",
        type=_not_negative,
        default=30.0,
    )


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() in ("true", "1")


def _positive(text: str) -> float:
    if not (number := _not_negative(text)):
        raise argparse.ArgumentTypeError("more than 0")
    return number


def _not_negative(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (number := float(text)) < 1e9:
            return number
    raise argparse.ArgumentTypeError(f"a number of at least 0, not {text!r}")


def _serve(context: Context) -> None:
    """Serves models for development, tests and small sites, with the gRPC and REST APIs and the
    flags of TF Serving, which is what to use for production at scale.

    Flags may be written with dashes too.
    """
    flags = context.options
    _check(flags)
    stop = threading.Event()

    def on_signal(_number: int) -> None:
        stop.set()
        # A second Ctrl-C ends the process at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # Meanwhile a signal ends the command at once.
    with context.quiet_libraries():
        from serving.server.server import LocalServer
    with on_signals(on_signal, signal.SIGTERM, signal.SIGINT), context.progress():
        if not flags.verbose:
            logging.getLogger("tensorflow").setLevel(logging.ERROR)
        options = _options(flags)
        _warn_of_exposure(options)
        # What is here now stays: collections after a version is unloaded need not look at it.
        gc.collect()
        gc.freeze()
        try:
            server = LocalServer(options)
        except ServingError as error:
            raise RuntimeError(error.message) from error
        with server:
            _announce(server, as_json=flags.json)
            _watch_config(flags, server, stop)
            _log.info("Stopping; requests under way are finished first")


def _check(flags: argparse.Namespace) -> None:
    """What can be told before TensorFlow is loaded."""
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(flags, name) <= 65535:
            raise InputError(f"--{name}: 0 to 65535, not {getattr(flags, name)}")
    if flags.port == flags.rest_api_port != 0:
        raise InputError("--rest_api_port cannot be the same as --port")
    if (flags.tls_certificate is None) != (flags.tls_key is None):
        raise InputError("--tls_certificate and --tls_key are needed together")
    if flags.model_config_file is not None:
        if flags.model_name is not None or flags.model_base_path is not None:
            raise InputError(
                "--model_config_file names the models: leave out --model_name and --model_base_path"
            )
        _file(flags.model_config_file)
        return
    _, base_path = _model(flags)
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


def _options(flags: argparse.Namespace) -> "ServerOptions":
    from serving.server.rest.protocol import RestOptions
    from serving.server.server import ServerOptions, TlsFiles

    tls = None
    if flags.tls_certificate is not None:
        tls = TlsFiles(_file(flags.tls_certificate), _file(flags.tls_key))
    return ServerOptions(
        _models(flags),
        host=flags.host,
        grpc_port=flags.port,
        rest_port=flags.rest_api_port,
        token=_token(flags.token_file),
        tls=tls,
        rest=RestOptions(
            max_body_bytes=flags.max_body_bytes,
            request_seconds=flags.rest_api_timeout_in_ms / 1000,
        ),
        max_message_bytes=flags.max_body_bytes,
        labels_may_wait=flags.allow_version_labels_for_unavailable_models,
        shutdown_seconds=flags.shutdown_seconds,
        gallery=flags.gallery,
    )


def _models(flags: argparse.Namespace) -> "dict[str, ModelSetup]":
    """The models to serve, by name."""
    from serving.server.batching import BatchingOptions
    from serving.server.config_files import ConfigError, read_batching_parameters, read_model_config
    from serving.server.models import ModelSetup
    from serving.server.versions import HostOptions

    parameters, file = flags.batching_parameters_file, flags.model_config_file
    try:
        batching = BatchingOptions()
        if parameters is not None:
            batching = read_batching_parameters(parameters, defaults=batching)
        host = HostOptions(
            poll_seconds=flags.file_system_poll_wait_seconds,
            warmup=flags.enable_model_warmup,
            batching=replace(batching, enabled=flags.enable_batching),
        )
        if file is None:
            name, base_path = _model(flags)
            return {name: ModelSetup(base_path.absolute(), host)}
        models = read_model_config(file, defaults=host)
    except ConfigError as error:
        raise InputError(str(error)) from error
    if not models:
        raise InputError(f"{file}: no models in it")
    return models


def _model(flags: argparse.Namespace) -> tuple[str, Path]:
    """Name and base path, where no file names the models."""
    name = flags.model_name or MODEL_NAME
    return name, flags.model_base_path or flags.output / "serving_model" / name


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
        print_json(where, indent=None)


def _watch_config(flags: argparse.Namespace, server: "LocalServer", stop: threading.Event) -> None:
    """Waits for the end, and meanwhile reloads the configuration file when it changes."""
    file, seconds = flags.model_config_file, flags.model_config_file_poll_wait_seconds
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
            server.state.reload(_models(flags))
        except (InputError, ServingError) as error:
            _log.error("%s: not taken over: %s", file, error)
        else:
            _log.info("%s: taken over", file)


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None
