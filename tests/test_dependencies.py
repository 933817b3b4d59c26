"""Lower bounds of dependencies against advisories that a stranger's data could use.

`advisories.json` is kept by hand. `scripts/audit.py` asks the advisory databases themselves, where
they can be reached.
"""

from __future__ import annotations

import json
import runpy
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
ADVISORIES = json.loads((Path(__file__).parent / "advisories.json").read_text())


def bounds() -> dict[str, Version]:
    """Return the lowest version of each dependency that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    found: dict[str, Version] = {}
    for text in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        asked = Requirement(text)
        lowest = [Version(s.version) for s in asked.specifier if s.operator in (">=", "==", "~=")]
        if lowest:
            name = canonicalize_name(asked.name)
            found[name] = min(found.get(name, max(lowest)), max(lowest))
    return found


def locked() -> dict[str, Version]:
    """Return the versions of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line) for line in lines if "==" in line and not line.startswith(("#", " "))]
    return {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins}


def test_no_allowed_version_has_a_known_hole() -> None:
    lowest, pinned = bounds(), locked()
    assert len(ADVISORIES) > 3
    for advisory in ADVISORIES:
        name, fixed = canonicalize_name(advisory["package"]), Version(advisory["fixed"])
        assert lowest[name] >= fixed, f"{name}: {advisory['id']}: {advisory['what']}"
        # torch is pinned by vLLM, or by the index of its CPU builds.
        assert pinned.get(name, fixed) >= fixed, f"requirements.lock: {name}: {advisory['id']}"
        assert advisory["source"].startswith("https://")


def test_an_audit_that_reaches_no_database_does_not_pass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`pip-audit` ends with 0 where its index answers for no package."""
    audit = runpy.run_path(str(ROOT / "scripts" / "audit.py"))["report"]
    known = {"name": "a", "version": "1", "vulns": []}
    hole = {"id": "X-1", "fix_versions": ["2"]}
    for text, code in (
        ("", 3),
        ('{"dependencies": []}', 3),
        (json.dumps({"dependencies": [known, {"name": "b", "skip_reason": "not found"}]}), 3),
        (json.dumps({"dependencies": [known]}), 0),
        (json.dumps({"dependencies": [known, known | {"vulns": [hole]}]}), 1),
    ):
        assert audit(text) == code
    assert "a 1: X-1, fixed in 2\n2 packages, 1 advisories\n" in capsys.readouterr().out
