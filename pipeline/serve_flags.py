"""The flags of `oneshot serve`: TF Serving's names, with dashes or underscores."""

import argparse
from pathlib import Path
from typing import Any, Final

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
