"""Ask an advisory database about every version of requirements.lock: `python scripts/audit.py`.

Needs pip-audit (`pip install pip-audit`, or uv) and the network. Exit codes: 0 no advisory is
known, 1 some are, 3 no database answered for every package, so nothing was found out. The tests
compare lower bounds with tests/advisories.json, which needs no network.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")
NOT_ASKED = 3


def main() -> int:
    """Print what is known; return the exit code."""
    tool = ["pip-audit"] if shutil.which("pip-audit") else ["uvx", "pip-audit"]
    if shutil.which(tool[0]) is None:
        print("error: pip-audit is not installed: pip install pip-audit", file=sys.stderr)
        return NOT_ASKED
    lock = str(ROOT / "requirements.lock")
    for service in ("osv", "pypi"):
        asked = [*tool, "--vulnerability-service", service, "--requirement", lock, *OPTIONS]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if (code := report(done.stdout)) != NOT_ASKED:
            return code
        lines = done.stderr.strip().splitlines() if done.returncode else []
        print(f"{service}: {(lines or ['it does not know every package'])[-1]}", file=sys.stderr)
    print("error: no database could be asked: nothing is known of these versions", file=sys.stderr)
    return NOT_ASKED


def report(text: str) -> int:
    """Print the advisories in pip-audit's report, and return the exit code."""
    try:
        packages = json.loads(text)["dependencies"]
    except (ValueError, KeyError):
        return NOT_ASKED
    # pip-audit itself passes over packages that its service does not answer for.
    if not packages or any("skip_reason" in package for package in packages):
        return NOT_ASKED
    holes = [(package, hole) for package in packages for hole in package["vulns"]]
    for package, hole in holes:
        fixed = ", ".join(hole["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {hole['id']}, fixed in {fixed}")
    print(f"{len(packages)} packages, {len(holes)} advisories")
    return bool(holes)


if __name__ == "__main__":
    sys.exit(main())
