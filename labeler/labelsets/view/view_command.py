"""`labeler view`: write a page with a sample of rows, or serve all of them."""

from __future__ import annotations

import json

from labeler.console import err, human_bytes, out
from labeler.labelsets.view.html_page import write_page
from labeler.labelsets.view.page_data import open_viewer
from labeler.labelsets.view.server import serve
from labeler.labelsets.view.view_config import ViewConfig
from schemas import SoftshardsError
from schemas.redact import redacted


def run_view(config: ViewConfig) -> int:
    """Write a page with a sample of rows, or serve all rows until interrupted; return 0.

    Raises:
        SoftshardsError: a set cannot be opened, the sets cannot be compared, or the file or the
            port cannot be used.
    """
    out_file, rows = config.out_file, config.rows
    if out_file is not None and (rows < 1 or out_file.is_dir()):
        raise SoftshardsError(
            "--rows is less than 1" if rows < 1 else "this is a folder",
            path=out_file,
            hint="give --out a file and --rows at least 1",
        )
    viewer = open_viewer(config.labels, config.other, allow_partial=config.allow_partial)
    if viewer.other is not None and not viewer.matched:
        err.print(
            f"note: {redacted(f'{config.labels} and {config.other}')} have no row in common "
            "(by id, chunk and sample)",
        )
    if out_file is None:
        serve(
            viewer,
            port=config.port,
            open_browser=config.open_browser,
            as_json=config.as_json,
        )
        return 0
    taken = write_page(out_file, viewer, rows=rows, seed=config.seed)
    size = out_file.stat().st_size
    if config.as_json:
        print(json.dumps({"path": str(out_file), "rows": taken, "bytes": size}))
    else:
        out.print(f"{out_file}: {taken} of {viewer.labels.rows} rows, {human_bytes(size)}")
    return 0
