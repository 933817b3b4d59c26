"""Views of strangers name sets beside themselves, and options go nowhere else (rows 1 and 2)."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from schemas import LabelSetError, open_label_set
from schemas.remote import CACHE_GB
from schemas.view import View, read_view, view_target
from tests.hostile.sealed import findings, read_json, trained_on, write_json
from tests.labeler.web import served
from tests.schemas.sets import CODECS, varied_set
from tests.schemas.test_view import every_other

SECRET = "Bearer of-one-host"


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    varied_set(tmp_path / "labels", CODECS[0])
    every_other(open_label_set(tmp_path / "labels"), tmp_path / "half.view.json")
    return tmp_path


def with_target(view: Path, target: str) -> Path:
    write_json(view, read_json(view) | {"label_set": target})
    return view


@pytest.mark.parametrize(
    "target",
    [
        "reference::http://127.0.0.1:9/x.json",
        "simplecache::http://127.0.0.1:9/x",
        "http://127.0.0.1:9/labels",
        "s3://bucket/labels",
        "file:///etc",
        "memory://labels",
        "labels::file://x",
        "/etc",
        "//127.0.0.1/share/labels",
        "~/labels",
        "",
        "labels\n",
        "la\\bels",
        "a" * 5000,
        "é" * 200,
    ],
)
def test_a_local_view_names_a_relative_path_alone(target: str, sets: Path) -> None:
    """Nothing is fetched: there is no request to a host, and no filesystem is made."""
    with pytest.raises(LabelSetError, match="the view's label set is"):
        open_label_set(with_target(sets / "half.view.json", target))


def test_a_view_cannot_name_itself_or_another_view(sets: Path) -> None:
    shutil.copy(sets / "half.view.json", sets / "other.view.json")
    for name in ("half.view.json", "other.view.json"):
        with pytest.raises(LabelSetError, match="no label set here"):
            open_label_set(with_target(sets / "half.view.json", name))


def test_views_of_sets_below_and_beside_still_open(sets: Path) -> None:
    (sets / "views").mkdir()
    view = sets / "views" / "half.view.json"
    shutil.copy(sets / "half.view.json", view)
    assert open_label_set(with_target(view, "../labels")).rows == 10
    assert open_label_set(with_target(sets / "half.view.json", "labels/")).rows == 10


def test_a_written_view_never_has_an_absolute_path(sets: Path) -> None:
    view = every_other(open_label_set(sets / "labels"), sets / "other.view.json")
    assert read_view(view).label_set == "labels"
    assert isinstance(read_view(view), View)


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("s3://bucket/a.view.json", "../other-bucket/labels"),
        ("s3://bucket/views/a.view.json", "../../other-bucket/labels"),
        ("http://one.test/a.view.json", "../two.test/labels"),
        ("http://one.test/a.view.json", ".."),
        ("http://one.test/a.view.json", "../one.test:81/labels"),
        ("http://one.test/a.view.json", "../me@one.test/labels"),
        ("http://one.test/a.view.json", "labels?x=1"),
        ("http://one.test/a.view.json", "labels#x"),
        ("http://one.test/a.view.json", "\\\\two.test\\labels"),
        ("http://one.test/a.view.json", "//two.test/labels"),
        ("zip://a.view.json::http://one.test/a.zip", "labels"),
        ("simplecache::http://one.test/a.view.json", "labels"),
    ],
)
def test_a_remote_view_stays_at_its_host(place: str, target: str) -> None:
    with pytest.raises(LabelSetError, match="the view's label set is"):
        view_target(place, target)


@dataclass
class Web:
    """A server of a folder. It records who sent it the secret, and may redirect."""

    url: str = ""
    folder: Path | None = None
    seen: list[str | None] = field(default_factory=list)
    redirect: str = ""


@contextmanager
def web(folder: Path | None = None) -> Iterator[Web]:
    state = Web(folder=folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder or Path(os.devnull)))

        def do_GET(self) -> None:
            state.seen.append(self.headers.get("X-Key"))
            if state.redirect:
                self.send_response(302)
                self.send_header("Location", state.redirect + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            super().do_GET()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield state
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_GB, "0")
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: None)


OPTIONS = {"headers": {"X-Key": SECRET}}


def test_options_reach_their_own_host(sets: Path) -> None:
    with web(sets) as server:
        opened = open_label_set(f"{server.url}/half.view.json", storage_options=OPTIONS)
        assert opened.rows == 10
        assert set(server.seen) == {SECRET}


def test_options_do_not_follow_a_view_to_another_host(sets: Path) -> None:
    with web(sets) as server, web(sets) as other:
        with_target(sets / "half.view.json", f"{other.url}/labels")
        with pytest.raises(LabelSetError, match="not a plain path"):
            open_label_set(f"{server.url}/half.view.json", storage_options=OPTIONS)
        assert other.seen == []


@pytest.mark.parametrize("name", ["half.view.json", "labels"])
def test_options_do_not_follow_a_redirect(name: str, sets: Path) -> None:
    with web(sets) as server, web(sets) as other:
        server.redirect = other.url
        with pytest.raises(LabelSetError, match="redirects to 127"):
            open_label_set(f"{server.url}/{name}", storage_options=OPTIONS)
        assert other.seen == []


def test_a_redirect_without_options_is_followed(sets: Path) -> None:
    with web(sets) as server, web(sets) as other:
        server.redirect = other.url
        assert open_label_set(f"{server.url}/labels").rows == 24
        assert set(other.seen) == {None}


def test_options_do_not_reach_a_set_that_is_read_without_them(sets: Path) -> None:
    """Filesystems are kept between calls: a second set at the same host gets no options."""
    with web(sets) as server:
        open_label_set(f"{server.url}/labels", storage_options=OPTIONS)
        server.seen.clear()
        open_label_set(f"{server.url}/labels")
        assert set(server.seen) == {None}


def test_a_server_that_ignores_ranges_is_named(sets: Path) -> None:
    """Labels are not called altered, and the whole file is not read instead of a part."""
    with served(sets, ranges=True) as url:
        assert trained_on(f"{url}/labels") is None
    with served(sets) as url:
        assert open_label_set(f"{url}/labels").rows == 24
        assert "the server ignores byte ranges" in str(trained_on(f"{url}/labels"))
        (found,) = findings(f"{url}/labels")
        assert "the server ignores byte ranges" in found
