"""Import what reading a set or corpus imports; see `tests.fork_server`."""

import importlib

NAMES = (
    "labeler.labeling.inputs.find_inputs",
    "labeler.labeling.inputs.read_records",
    "tests.hostile.fuzz_files",
    "tests.hostile.fuzz_sets",
    "tests.schemas.sets",
    "trainer.data.collate",
)

for _name in NAMES:
    importlib.import_module(_name)
