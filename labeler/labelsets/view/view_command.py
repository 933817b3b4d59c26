"""`labeler view`: write a page, or serve one."""

from __future__ import annotations

import json
from pathlib import Path

from labeler.console import err, human_bytes, out
from labeler.labelsets.view.html_page import write_page
from labeler.labelsets.view.page_data import open_viewer
from labeler.labelsets.view.server import serve
from schemas import SoftshardsError


def view_labels(
    labels: Path,
    other: Path | None,
    *,
    out_file: Path | None,
    rows: int,
    seed: int,
    port: int,
    open_browser: bool,
    partial: bool,
    as_json: bool,
) -> None:
    """Write `out_file` with a sample of rows, or serve all of them until interrupted.

    Raises:
        SoftshardsError: a set cannot be opened, the sets cannot be compared, or the file or the
            port cannot be used.
    """
    if out_file is not None and (rows < 1 or out_file.is_dir()):
        raise SoftshardsError(
            "--rows is less than 1" if rows < 1 else "this is a folder",
            path=out_file,
            hint="give --out a file and --rows at least 1",
        )
    viewer = open_viewer(labels, other, partial=partial)
    if viewer.other is not None and not viewer.matched:
        err.print(f"note: no row of {labels} is in {other} (by id, chunk and sample)", markup=False)
    if out_file is None:
        serve(viewer, port=port, open_browser=open_browser, as_json=as_json)
        return
    taken = write_page(out_file, viewer, rows=rows, seed=seed)
    size = out_file.stat().st_size
    if as_json:
        print(json.dumps({"path": str(out_file), "rows": taken, "bytes": size}))
    else:
        out.print(f"{out_file}: {taken} of {viewer.labels.rows} rows, {human_bytes(size)}")
