from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from schemas.cache_folder import CACHE
from tests import objects
from tests.process_state import differences, process_state
from tests.quick_python import quick_python

LONG = ("slow", "vllm", "teacher", "browser")
"""Markers of tests that cost seconds of processor time."""

# No example fails because the machine is slow.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=5,
        help="times that runs are killed at random moments (test_kills.py, test_store_runs.py)",
    )
    parser.addoption(
        "--out-in-store",
        action="store_true",
        help="the labeler writes into the tests' S3 service and the trainer reads from it, with "
        "faults (tests/out_in_store.py, tests/trainer/conftest.py)",
    )
    parser.addoption(
        "--fast",
        action="store_true",
        help=f"leave out tests/hostile, and tests that are marked {', '.join(LONG)}",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run long files first, or with --fast leave out their tests and the attacks."""
    if config.getoption("--out-in-store"):
        for item in items:
            if local := item.get_closest_marker("local"):
                item.add_marker(pytest.mark.skip(reason=local.args[0]))
    attacks = Path(__file__).parent / "hostile"
    long = {
        item
        for item in items
        if any(map(item.get_closest_marker, LONG)) or item.path.is_relative_to(attacks)
    }
    if config.getoption("--fast"):
        config.hook.pytest_deselected(items=list(long))
        items[:] = [item for item in items if item not in long]
    else:
        files = {item.path for item in long}
        items.sort(key=lambda item: item.path not in files)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is read behind URLs is kept in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _what_is_left_behind(request: pytest.FixtureRequest, _own_cache: None) -> Iterator[None]:
    """A warning names a file of tests that does not leave the process as it was."""
    before = process_state()
    yield
    for line in differences(before, process_state()):
        warnings.warn(f"{request.node.nodeid} left behind: {line}", stacklevel=1)


@pytest.fixture(scope="session")
def object_store() -> Iterator[None]:
    """An S3 service on this machine with `objects.BUCKET`."""
    with objects.object_store():
        yield


@pytest.fixture(scope="session")
def _quick_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with quick_python(tmp_path_factory.mktemp("python")) as path:
        yield path


@pytest.fixture
def quick_children(_quick_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands that a command starts begin with their imports done."""
    monkeypatch.setattr(sys, "executable", str(_quick_python))
