"""The best student for a budget: `trainer select`.

`select_file` turns a YAML file into candidates, `task_checks` looks for poor ones before anything
is trained, `rungs` decides who is trained further, and the trials of `trainer.sweep` are trained by
its scheduler. Decisions are made at every call, from the logs of the trials and OUT/rungs.json.
"""
