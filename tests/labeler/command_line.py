"""The command `labeler` in this process, without a second start of Python."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import pytest

from labeler import console
from labeler.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@dataclass(frozen=True)
class CommandLine:
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments: object) -> Outcome:
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["labeler", *map(str, arguments)])
        for stream in (console.out, console.err):
            self.monkeypatch.setattr(stream, "_file", None)
        code = 0
        try:
            with warnings.catch_warnings():  # about a call without arguments in a test
                warnings.filterwarnings("ignore", "Cyclopts application invoked")
                main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self.capsys.readouterr()
        return Outcome(code, out, err)
