"""The process that runs tasks on one model: `python -m trainer.evaluate.tasks.task_child`.

It reads a `Request` as one line of standard input and writes one `Reply` per task as lines of
standard output; whatever else is printed goes to standard error. It ends when its input does: with
the process that started it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas import SoftshardsError
from schemas.errors import first_line
from trainer.child_process import end_with_parent
from trainer.evaluate.bootstrap import document_counts, to_text
from trainer.evaluate.tasks.task_files import FunctionName, code_refused, read_task
from trainer.evaluate.tasks.task_results import TaskMetric, TaskSettings
from trainer.record import Record

BATCH = 8
ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""Metrics of multiple choice of which the value of guessing is known."""
ROUNDING = 1e-6


class Request(Record):
    """What to run: tasks by name, or by the path of their file."""

    model: str
    tasks: list[str]
    settings: TaskSettings
    allow_code: bool


class Reply(Record):
    """The results of one task, or an error about it."""

    metrics: list[TaskMetric] = Field(default_factory=list)
    error: str | None = None
    hint: str | None = None


def main() -> None:
    """Run the tasks of the request."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = Request.model_validate_json(sys.stdin.readline())
    end_with_parent()
    try:
        _run(request, replies)
    except KeyboardInterrupt:
        os._exit(130)
    except SoftshardsError as error:
        _fail(replies, error.what, error.hint)
    except (Exception, SystemExit) as error:
        _fail(replies, *_explain(error))
    os._exit(0)  # libraries leave threads behind


def _send(replies: TextIO, reply: Reply) -> None:
    replies.write(reply.model_dump_json() + "\n")
    replies.flush()


def _fail(replies: TextIO, what: str, hint: str | None) -> None:
    _send(replies, Reply(error=what, hint=hint))
    os._exit(1)


def _explain(error: BaseException) -> tuple[str, str | None]:
    """Return what an exception of the harness means to the user, and a hint."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    names = {type(one).__name__ for one in chain}
    offline = {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError"}
    if names & offline or any("offline" in str(one).lower() for one in chain):
        return (
            f"its data are not on this machine: {first_line(error)}",
            "HF_HUB_OFFLINE=0 before the command lets the harness download them",
        )
    return f"lm-evaluation-harness: {type(error).__name__}: {first_line(error)}", None


def _run(request: Request, replies: TextIO) -> None:
    for name in ("torchao", "torch.utils._pytree", "lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import torch
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    settings = request.settings
    specs = [_load(task, request.allow_code) for task in request.tasks]
    # The harness reads 14,000 files for its index: not where it is not needed.
    has_names = any(isinstance(spec, str) or "group" in spec for spec in specs)
    manager = TaskManager(include_defaults=has_names)
    for spec in specs:
        if isinstance(spec, str) and spec not in manager.all_tasks:
            near = difflib.get_close_matches(spec, manager.all_tasks, n=3)
            raise SoftshardsError(
                f"the harness has no task {spec!r}",
                hint=f"did you mean {' or '.join(near)}?" if near else "give a YAML file",
            )
    model = HFLM(
        pretrained=request.model,
        dtype={"fp32": "float32", "bf16": "bfloat16"}[settings.dtype],
        device="cuda" if torch.cuda.is_available() else "cpu",
        batch_size=BATCH,
        trust_remote_code=False,
    )
    for spec in specs:
        results = simple_evaluate(
            model,
            tasks=[spec],
            num_fewshot=settings.shots,
            limit=settings.limit,
            apply_chat_template=settings.chat_template,
            task_manager=manager,
        )
        _send(replies, Reply(metrics=read_metrics(results)))


def _load(task: str, allow_code: bool) -> str | dict[str, object]:
    """Return a task as the harness takes it: a name, or a configuration."""
    if not task.endswith((".yaml", ".yml")):
        return task
    path = Path(task)
    config = read_task(path, allow_code=allow_code)
    if allow_code:
        resolved = _import_functions(config)
        assert isinstance(resolved, dict), "it was one"
        return resolved
    _use_sandbox()
    _refuse_other_metrics(config, path)
    return config


def _use_sandbox() -> None:
    """Make the harness render templates without access to Python's insides."""
    import lm_eval.utils
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    plain = lm_eval.utils.env
    sandbox = ImmutableSandboxedEnvironment(
        loader=plain.loader,
        undefined=plain.undefined,
        keep_trailing_newline=plain.keep_trailing_newline,
    )
    sandbox.filters |= plain.filters
    lm_eval.utils.env = sandbox


def _refuse_other_metrics(config: dict[str, object], path: Path) -> None:
    """Refuse metrics that the harness would take from the `evaluate` library, which runs scripts.

    Raises:
        SoftshardsError: naming the metric.
    """
    from lm_eval.api import metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import metric_registry

    listed = config.get("metric_list")
    for each in listed if isinstance(listed, list) else []:
        name = each.get("metric") if isinstance(each, dict) else None
        if isinstance(name, str) and name not in metric_registry:
            raise code_refused(f"the metric {name!r} is not of the harness", path)


def _import_functions(value: object) -> object:
    """Replace names of functions with the functions: of a file beside the task, or of a module."""
    if isinstance(value, dict):
        return {key: _import_functions(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_import_functions(part) for part in value]
    if not isinstance(value, FunctionName):
        return value
    module_name, _, function = value.rpartition(".")
    file = value.folder / f"{module_name.replace('.', '/')}.py"
    try:
        if file.is_file():
            found = importlib.util.spec_from_file_location(module_name, file)
            assert found is not None, "it is a file"
            assert found.loader is not None, "it is Python"
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, function)
    except Exception as error:
        what = f"`!function {value}`: {type(error).__name__}: {first_line(error)}"
        raise SoftshardsError(what, hint=f"it is searched in {value.folder}") from error


def read_metrics(results: Mapping[str, object]) -> list[TaskMetric]:
    """Return the metrics in what the harness returns."""
    found = []
    chances: dict[str, float | None] = {}
    samples, groups = _mapping(results, "samples"), _mapping(results, "group_subtasks")
    configs, better = _mapping(results, "configs"), _mapping(results, "higher_is_better")
    counts = _mapping(results, "n-samples")
    parents = {str(task): str(group) for group, tasks in groups.items() for task in _list(tasks)}
    for name in [*samples, *(group for group in groups if group not in samples)]:
        values = _mapping(_mapping(results, "results"), name)
        own = [dict(_as_mapping(one)) for one in _list(samples.get(name, []))]
        if name in samples:
            is_choice = _mapping(configs, name).get("output_type") == "multiple_choice"
            chances[name] = _chance(own) if is_choice else None
            items = int(_number(_mapping(counts, name).get("effective")) or len(own))
        else:
            chances[name] = _common([chances.get(each) for each in _leaves(name, groups)])
            items = sum(
                int(_number(_mapping(counts, each).get("effective")) or 0)
                for each in _leaves(name, groups)
            )
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            number = _number(value)
            direction = _mapping(better, name).get(metric)
            found.append(
                TaskMetric(
                    task=name,
                    group=parents.get(name),
                    metric=metric,
                    filter=chosen,
                    value=number,
                    stderr=_number(values.get(f"{metric}_stderr,{chosen}")),
                    higher_is_better=direction if isinstance(direction, bool) else None,
                    chance=chances[name] if metric in ACCURACIES else None,
                    items=items,
                    replicates=_replicates(name, metric, chosen, number, own),
                )
            )
    return found


def _chance(samples: list[dict[str, object]]) -> float | None:
    """Return the accuracy of guessing uniformly among the choices of each item."""
    shares = []
    for sample in samples:
        requests = len(_list(sample.get("arguments")))
        if "acc_mutual_info" in _list(sample.get("metrics")):
            requests //= 2  # each choice is also scored without its question
        target = sample.get("target")
        right = len(set(target)) if isinstance(target, list) else 1
        if requests == 0:
            return None
        shares.append(min(1.0, right / requests))
    return float(np.mean(shares)) if shares else None


def _common(chances: list[float | None]) -> float | None:
    """Return the chance of a group: that of its tasks where they agree."""
    known = [chance for chance in chances if chance is not None]
    if not known or len(known) < len(chances) or max(known) - min(known) > ROUNDING:
        return None
    return known[0]


def _leaves(group: str, groups: Mapping[str, object]) -> list[str]:
    return [
        leaf
        for each in _list(groups.get(group))
        for leaf in (_leaves(str(each), groups) if each in groups else [str(each)])
    ]


def _replicates(
    task: str, metric: str, chosen: str, value: float | None, samples: list[dict[str, object]]
) -> str | None:
    """Return a metric in each replicate of a bootstrap over items, if it is their mean."""
    rows = [one for one in samples if one.get("filter") == chosen and metric in one]
    numbers = [_number(one[metric]) for one in rows]
    known = [number for number in numbers if number is not None]
    if value is None or not known or len(known) < len(numbers):
        return None
    if not abs(float(np.mean(known)) - value) <= ROUNDING * max(1.0, abs(value)):
        return None
    counts: NDArray[np.float64] = document_counts([f"{task}#{one['doc_id']}" for one in rows])
    with np.errstate(invalid="ignore"):
        return to_text(counts.T @ np.array(known) / counts.sum(0))


def _number(value: object) -> float | None:
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return float(value)
    return None


def _as_mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _mapping(value: Mapping[str, object], key: str) -> Mapping[str, object]:
    return _as_mapping(value.get(key))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


if __name__ == "__main__":
    main()
