"""A view: a small file that selects rows of a label set and stands in for one anywhere.

It copies nothing. It names rows by row group, as one bit per row, together with the hash of the row
group's bytes. So a view is refused where its rows changed, and stays valid where the set has grown.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ValidationError

from schemas.atomic import write_atomic
from schemas.errors import LabelSetError, first_line
from schemas.fingerprint import sha256_json
from schemas.manifest import Model, check_version
from schemas.object_store import put
from schemas.remote import Remote, is_url, origin
from schemas.row_group import Kept
from schemas.version import SHARD_VERSION

VIEW_SUFFIX = ".view.json"


class View(Model):
    """The content of the file. `made` records for people what each rule removed."""

    kind: Literal["view"] = "view"
    format_version: str = SHARD_VERSION
    label_set: str
    identity_digest: str
    kept: tuple[Kept, ...]
    made: dict[str, Any]
    self_digest: str = ""

    def sealed(self) -> View:
        """Return the same view with its own digest filled in."""
        content = self.model_dump(mode="json") | {"self_digest": ""}
        return self.model_copy(update={"self_digest": sha256_json(content)})


def write_view(place: Path | str, view: View) -> None:
    """Write a view atomically, sealed, with the place of its set relative to its own folder.

    Args:
        place: path or URL of the view.
        view: its content. Where it names a URL, the view's own is in the same host or bucket.

    Raises:
        LabelSetError: `require_beside` refuses it, or the store fails.
    """
    require_beside(place, view.label_set)
    target, folder = view.label_set, str(place).rpartition("/")[0]
    if is_url(place):
        target = posixpath.relpath(urlsplit(target).path, urlsplit(folder).path or "/")
    elif Path(target).is_absolute():
        target = os.path.relpath(Path(target).resolve(), Path(place).parent.resolve())
    sealed = view.model_copy(update={"label_set": target}).sealed()
    content = sealed.model_dump_json(indent=1) + "\n"
    if is_url(place):
        put(Remote(folder), str(place)[len(folder) + 1 :], content.encode())
    else:
        write_atomic(Path(place), content)


def require_beside(place: Path | str, label_set: str) -> None:
    """Refuse a view and a set that are not both on this machine, or in one host or bucket.

    Raises:
        LabelSetError: a view there could not name the set.
    """
    beside = origin(str(place)) == origin(label_set) if is_url(place) else not is_url(label_set)
    if not beside:
        raise LabelSetError(
            "a view lies below or beside its label set: both on this machine, or both in one "
            f"bucket; this set is {label_set}",
            path=place,
            hint="write the view beside the set",
        )


def read_view(path: Path) -> View:
    """Read and check a view. Opening the set checks that the rows exist.

    Raises:
        LabelSetError: the file is not a view, was altered, or is of an unknown version.
    """
    hint = "give the folder of a label set, or make the view again with `labeler curate`"
    try:
        view = View.model_validate_json(path.read_bytes())
        digest = view.sealed().self_digest
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(["not a view of a label set", *map(str, first["loc"]), first["msg"]])
        raise LabelSetError(what, path=path, hint=hint) from error
    except (ValueError, RecursionError) as error:  # the digest prints numbers of any length
        what = f"not a view of a label set: {first_line(error)}"
        raise LabelSetError(what, path=path, hint=hint) from error
    check_version(view.format_version, path)
    if digest != view.self_digest:
        raise LabelSetError("the view was altered: its digest differs", path=path, hint=hint)
    return view


def view_target(place: str, label_set: str) -> str:
    """Return the path or URL of the set that a view names, relative to the view's own place.

    A view may come from a stranger, and is opened with the reader's credentials. So it names a
    path: never a URL, a chain of filesystems (`reference::http://...`, which can run code), or
    another host or bucket than its own.

    Args:
        place: path or URL of the view.
        label_set: `View.label_set`.

    Raises:
        LabelSetError: it names anything else.
    """
    remote = is_url(place)
    forbidden = "\\?#" if remote else "\\"
    path = label_set.removesuffix("/")
    problem = None
    too_long = len(path) > 1000 or any(len(part.encode()) > 255 for part in path.split("/"))
    if not path or not path.isprintable() or path.startswith(("/", "~")) or too_long:
        problem = "not a relative path"
    elif "::" in path or "://" in path or any(sign in path for sign in forbidden):
        problem = "not a plain path"
    elif "::" in place:
        problem = "unknown: the view is behind a chain of filesystems"
    if problem is None and not remote:
        return str(Path(place).parent / path)
    found = ""
    if problem is None:
        scheme, _, rest = place.partition("://")
        found = f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(rest), path))}"
        if origin(found) != origin(place):
            problem = "outside the view's own host or bucket"
    if problem is not None:
        raise LabelSetError(
            f"the view's label set is {problem}: {label_set!r}",
            path=place,
            hint="a view lies below or beside its set: copy the set there, and make the view again "
            "with `labeler curate`",
        )
    return found
