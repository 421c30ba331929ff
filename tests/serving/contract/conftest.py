"""The server that the contract is checked on.

By default a `LocalServer` with a tiny model, started once. A real TF Serving that serves an
exported model of this project is checked instead by

    TFS_TARGET=host:8500 TFS_REST=host:8501 pytest tests/serving/contract

with `TFS_MODEL` where the model is not called `siamese`. With one of the two, only the cases of
that protocol are run. Cases in files `test_local_*` need the target's files or settings in their
hands, and run on the local server only. `pytest tests/serving/contract --collect-only -q` lists
the cases.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.contract.api import Api, GrpcApi, RestApi, Target, names, opened
from tests.serving.contract.local import Served, serving

HERE = Path(__file__).parent


def pytest_report_header() -> str:
    """Says which server is checked."""
    target = Target.from_environment()
    if target is None:
        return "contract: local server (TFS_TARGET and TFS_REST name another)"
    return f"contract: gRPC {target.grpc}, REST {target.rest}, model {target.model}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs every case through each API of the target."""
    if "api" in metafunc.fixturenames:
        metafunc.parametrize("api", names(Target.from_environment()), indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the cases that the target cannot be asked."""
    target = Target.from_environment()
    if target is None:
        return
    lacking = {"rest"} if not target.rest else {"grpc_api"} if not target.grpc else set()
    left_out = [
        item
        for item in items
        if HERE in item.path.parents
        and (
            item.path.name.startswith("test_local_")
            or lacking & set(getattr(item, "fixturenames", ()))
        )
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The local server; only asked for where there is no other, or by cases that need it."""
    with serving(tmp_path_factory.mktemp("served")) as started:
        yield started


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """The server under test."""
    given = Target.from_environment()
    if given is not None:
        return given
    local: Served = request.getfixturevalue("served")
    return local.target


@pytest.fixture(scope="session")
def api(request: pytest.FixtureRequest, target: Target) -> Iterator[Api]:
    """A way to ask it; every case that takes this runs once for each."""
    opened_api = opened(request.param, target)
    yield opened_api
    opened_api.close()


@pytest.fixture(scope="session")
def rest(target: Target) -> Iterator[RestApi]:
    """REST, for cases that have no counterpart in gRPC."""
    opened_api = RestApi(target, rows=True)
    yield opened_api
    opened_api.close()


@pytest.fixture(scope="session")
def grpc_api(target: Target) -> Iterator[GrpcApi]:
    """gRPC, for cases that have no counterpart in REST."""
    opened_api = GrpcApi(target)
    yield opened_api
    opened_api.close()
