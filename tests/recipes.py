"""Run a page of docs/recipes at a small size, in bash."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "recipes"
SMALL = {
    "ENGINE": "transformers",
    "ROWS": "6",
    "HELD_OUT": "3",
    "CHARS": "300",
    "LENGTH": "200",
    "ANSWER": "8",
    "K": "8",
    "LAYERS": "1",
    "ROUNDS": "1",
}
COMMANDS = """
set -euo pipefail
labeler() { "$PYTHON" -m labeler "$@"; }
trainer() { "$PYTHON" -m trainer "$@"; }
python() { [ "$*" = "-m pip install --quiet chitchat-dataset" ] || "$PYTHON" "$@"; }
"""
"""The environment of the tests is not changed: no package is installed."""


def run_recipe(page: str, work: Path, **environment: str) -> dict[str, Any]:
    """Run a page in an empty folder, and return its report.

    Args:
        page: of docs/recipes.
        work: the folder.
        environment: variables of docs/recipes/README.md, over those of SMALL.
    """
    (script,) = re.findall(r"^```bash\n(.*?)^```", (FOLDER / page).read_text(), re.M | re.S)
    variables = SMALL | environment | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "-c", COMMANDS + script],
        cwd=work,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = work / page.removesuffix(".md") / "report.json"
    report: dict[str, Any] = json.loads(written.read_text())
    return report
