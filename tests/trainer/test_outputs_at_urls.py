"""Outputs of the trainer go to this machine: a URL is refused, and makes no folder named `s3:`."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas import SoftshardsError
from trainer.cli import app

URL = "s3://bucket/there"
COMMANDS = (
    f"train --labels a --student b --out {URL}",
    f"train --labels {URL} --student {URL} --out a",
    f"slice --teacher a --labels b --keep 2 --out {URL}",
    f"evaluate --labels a --model b --out {URL}",
    f"report --eval a --out {URL}",
    f"sweep a --out {URL}",
    f"export a --to gguf:q8_0 --out {URL}",
    f"audit --labels a --model b --out {URL}",
    f"audit canaries --out {URL}",
    f"rounds a --out {URL}",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_url_is_refused(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SoftshardsError, match=f"{URL}: this is a URL; only a path on this machine"):
        app.meta(command.split(), result_action="return_value")
    assert list(tmp_path.iterdir()) == []
