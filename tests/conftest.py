from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from schemas.remote import CACHE
from tests import objects

# A deadline per example would make tests depend on the machine's speed.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=5,
        help="times that real vLLM runs are killed at random moments (test_kills.py)",
    )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is read behind URLs is kept in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def object_store() -> Iterator[None]:
    """An S3 service on this machine with `objects.BUCKET`."""
    with objects.object_store():
        yield
