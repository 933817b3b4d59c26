"""Write datasets on disk in the layout of `datasets.save_to_disk`, without that package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa


def save_dataset(folder: Path, *parts: list[dict[str, Any]]) -> None:
    """Save a `Dataset`, one Arrow stream per part; the files' names sort in reverse order."""
    folder.mkdir(parents=True)
    names = [f"data-{len(parts) - i:05d}.arrow" for i in range(len(parts))]
    for name, rows in zip(names, parts):
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_split": folder.name}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    (folder / "cache-0123456789abcdef.arrow").write_bytes(b"a leftover of `map`")


def save_dataset_dict(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> None:
    """Save a `DatasetDict`."""
    for name, rows in splits.items():
        save_dataset(folder / name, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
