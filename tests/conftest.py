from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=5,
        help="times that real vLLM runs are killed at random moments (tests/labeler/test_kills.py)",
    )
