"""The HTML page: markup, style and script in one file, under a policy that blocks all else."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TypedDict

from labeler.labelsets.common.vocabulary import ShownVocabulary
from labeler.labelsets.view.page_data import RowContent, Viewer, ViewerFacts, stored_ids
from labeler.labelsets.view.row_list import Query
from schemas.atomic import write_atomic

STYLE = "viewer.css"
SCRIPTS = ("dom.js", "source.js", "scale.js", "list.js", "filters.js", "text.js", "bars.js")
MAIN = "main.js"
ALL_ROWS = 1 << 62


class PageData(TypedDict):
    """Everything that a page without a server shows, as JSON values."""

    facts: ViewerFacts
    rows: list[dict[str, object]]
    contents: dict[int, RowContent]
    vocabulary: ShownVocabulary


def server_page() -> str:
    """Return the page that requests its data from `labeler.labelsets.view.server`."""
    return _page({}, connect="'self'")


def write_page(path: Path, viewer: Viewer, *, rows: int, seed: int) -> int:
    """Write a self-contained page with a sample of rows, and return the number of rows.

    With two label sets, the sample is drawn from the rows that both have, if there are any.

    Args:
        path: the HTML file.
        viewer: the opened sets.
        rows: number of rows to draw.
        seed: seed of the draw.

    Raises:
        SoftshardsError: a shard is altered.
    """
    data = sample_data(viewer, rows=rows, seed=seed)
    write_atomic(path, _page(data, connect="'none'"))
    return len(data["rows"])


def sample_data(viewer: Viewer, *, rows: int, seed: int) -> PageData:
    """Return everything that a page of `rows` rows shows, as JSON values."""
    frame = viewer.listing.frame
    if viewer.other is not None:
        matched = frame.filter(frame["row_b"].is_not_null())
        frame = matched if matched.height else frame
    numbers = sorted(frame["number"].sample(min(rows, frame.height), seed=seed).to_list())
    listed = viewer.listing.page(Query(), 0, ALL_ROWS)["rows"]
    contents = {number: viewer.row(number) for number in numbers}
    ids = {i for content in contents.values() for i in content["ids"]} | {
        i for content in contents.values() for side in content["sides"] for i in stored_ids(side)
    }
    facts = viewer.facts()
    for one in facts["sets"]:
        # The page may be shared: it must not name folders of this machine.
        del one["path"]
        if one["teacher"] and Path(one["teacher"]).is_absolute():
            one["teacher"] = Path(one["teacher"]).name
    return {
        "facts": facts,
        "rows": [listed[n] | {"text": viewer.listing.texts[n]} for n in numbers],
        "contents": contents,
        "vocabulary": viewer.vocabulary.shown(ids),
    }


def _page(data: Mapping[str, object], *, connect: str) -> str:
    style, script = _asset(STYLE), _script()
    policy = (
        f"default-src 'none'; script-src {_csp_source(script)}; style-src {_csp_source(style)}; "
        f"connect-src {connect}; img-src data:; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    parts = {"policy": policy, "style": style, "script": script, "data": json_for_html(data)}
    # One pass: inserted text is never searched for placeholders.
    return re.sub(r"\{\{ (\w+) \}\}", lambda place: parts[place[1]], _asset("viewer.html"))


def strict_json(value: object) -> str:
    """Return JSON in ASCII; numbers that JSON does not have are null, which the page shows as –."""
    separators = (",", ":")
    try:
        return json.dumps(value, allow_nan=False, separators=separators)
    except ValueError:  # NaN of a stranger's set: rare, so looked for only now
        return json.dumps(_with_nulls(value), allow_nan=False, separators=separators)


def _with_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _with_nulls(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_for_html(value: object) -> str:
    r"""Return JSON that is safe in a script element: only ASCII, and no `<`, `>` or `&`.

    `</script>` in a text becomes `\u003c/script\u003e`, which JSON reads as the same text.
    """
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", strict_json(value))


def _script() -> str:
    parts = "\n".join(_asset(name) for name in (*SCRIPTS, MAIN))
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


def _csp_source(content: str) -> str:
    """Return the Content-Security-Policy source of an inline style or script."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _asset(name: str) -> str:
    return (resources.files("labeler.labelsets.view") / "assets" / name).read_text(encoding="utf-8")
