"""A view: a small file that selects rows of a label set and stands in for one anywhere.

It copies nothing. It names rows by row group, as one bit per row, together with the hash of the row
group's bytes. So a view is refused where its rows changed, and stays valid where the set has grown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from schemas.atomic import write_atomic
from schemas.errors import LabelSetError
from schemas.fingerprint import sha256_json
from schemas.manifest import Model, check_version
from schemas.row_group import Kept
from schemas.version import FORMAT_VERSION

VIEW_SUFFIX = ".view.json"


class View(Model):
    """The content of the file. `made` records for people what each rule removed."""

    kind: Literal["view"] = "view"
    format_version: str = FORMAT_VERSION
    label_set: str
    identity_digest: str
    kept: tuple[Kept, ...]
    made: dict[str, Any]
    self_digest: str = ""

    def sealed(self) -> View:
        """Return the same view with its own digest filled in."""
        content = self.model_dump(mode="json") | {"self_digest": ""}
        return self.model_copy(update={"self_digest": sha256_json(content)})


def write_view(path: Path, view: View) -> None:
    """Write a view atomically, sealed. Its `label_set` is relative to the folder of `path`."""
    write_atomic(path, view.sealed().model_dump_json(indent=1) + "\n")


def read_view(path: Path) -> View:
    """Read and check a view. Opening the set checks that the rows exist.

    Raises:
        LabelSetError: the file is not a view, was altered, or is of an unknown version.
    """
    hint = "give the folder of a label set, or make the view again with `labeler curate`"
    try:
        view = View.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(["not a view of a label set", *map(str, first["loc"]), first["msg"]])
        raise LabelSetError(what, path=path, hint=hint) from error
    check_version(view.format_version, path)
    if view.sealed().self_digest != view.self_digest:
        raise LabelSetError("the view was altered: its digest differs", path=path, hint=hint)
    return view
