"""Models on the stand-in for the Hub, and the library set up to find them in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.labeler.hub import Hub, Repo, hub


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Yield the stand-in; the cache is empty, and nobody is logged in."""
    with hub() as running:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, as a commit of the stand-in."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def publish(hub: Hub, name: str, *commits: dict[str, bytes]) -> list[str]:
    """Put a repository with these commits on the stand-in; return their ids."""
    hub.repos[name] = repo = Repo(False, {"main": list(commits)})
    return list(repo.commits())


def downloads(hub: Hub) -> list[str]:
    """Return the files that were fetched, by their paths in the repository."""
    return sorted(
        line.split("/resolve/")[1].split("/", 1)[1]
        for line in hub.log
        if line.startswith("GET /") and "/resolve/" in line
    )
