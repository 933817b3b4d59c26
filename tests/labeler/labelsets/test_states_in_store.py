"""A label set with hidden states in an object store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labeler.labelsets.derive.recode import recode
from labeler.labelsets.repair.repair import run_repair
from labeler.labelsets.repair.repair_config import RepairConfig
from schemas import open_label_set, validate_label_set
from schemas.version import COMPACT_1, PLAIN_1, STATES_2
from tests.labeler.labelsets.test_states_kept import cells
from tests.objects import BUCKET, bucket
from tests.schemas.state_sets import write_state_set

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("object_store")]


def test_a_store_holds_states(tmp_path: Path) -> None:
    """Written, read, checked, resumed after a part was lost, and copied back."""
    local = write_state_set(tmp_path / "local", STATES_2)
    url, source = f"{BUCKET}/states-kept", open_label_set(local)
    recode([source], url, codec=PLAIN_1, how="convert")
    stored = {name.split("/", 2)[2] for name in bucket().find(url)}
    assert source.states is not None
    names = {"index/hidden-000000.parquet", *(file.path for file in source.states.files)}
    assert stored >= names | {f"hidden/part-00000{unit}.parquet" for unit in (0, 1)}
    assert cells(url) == cells(local)
    labels = open_label_set(url)
    assert np.array_equal(labels.head.weight, source.head.weight)
    assert labels.basis("final") is not None
    assert list(validate_label_set(labels)) == []
    bucket().rm(f"{url}/hidden/part-000001.parquet")
    assert labels.remote is not None
    stored_now = replace(labels, remote=replace(labels.remote, is_cached=False))
    assert any("hidden/part-000001" in str(f) for f in validate_label_set(stored_now))
    assert run_repair(RepairConfig(url)) == 1
    recode([source], url, codec=PLAIN_1, how="convert")
    assert list(validate_label_set(open_label_set(url))) == []
    recode([open_label_set(url)], tmp_path / "back", codec=COMPACT_1, how="convert")
    assert cells(tmp_path / "back") == cells(local)
