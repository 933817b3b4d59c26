"""The verdict: what was kept, what was saved, when it is paid back, and whether to ship it."""

from __future__ import annotations

import math
from typing import Literal

from trainer.console import percent, size, times
from trainer.evaluate.bootstrap import FEW_DOCUMENTS
from trainer.report.break_even import Savings, break_even
from trainer.report.report_data import (
    Answer,
    Check,
    Estimate,
    Rate,
    ReportedModel,
    Status,
    TaskRow,
    Verdict,
    shown_number,
)
from trainer.report.task_summary import kept_on_tasks

NOT_MEASURED = "not measured"


def choose_student(models: list[ReportedModel], name: str | None = None) -> ReportedModel | None:
    """Return the run that the verdict is about.

    Args:
        models: all models.
        name: of the run; by default the one with the lowest held-out KL among those that were
            trained on the teacher's labels, or among all if there are none.
    """
    trained = [model for model in models if model.role == "trained"]
    if name is not None:
        return next((model for model in trained if model.name == name), None)
    return min([m for m in trained if not m.tokens_only] or trained, key=_kl, default=None)


def _kl(model: ReportedModel) -> float:
    kl = model.metrics.kl if model.metrics else math.inf
    return kl if math.isfinite(kl) else math.inf


def choose_control(models: list[ReportedModel], student: ReportedModel) -> ReportedModel | None:
    """Return the run on tokens alone to compare with: the same start, the nearest tokens."""
    if student.tokens_only:
        return None
    controls = [m for m in models if m.role == "trained" and m.tokens_only]

    def distance(model: ReportedModel) -> tuple[bool, int]:
        return start_of(model) != start_of(student), abs(
            (model.tokens or 0) - (student.tokens or 0)
        )

    return min(controls, key=distance, default=None)


def start_of(model: ReportedModel) -> object:
    """Return the digest of the weights that its training began with; None if not known."""
    facts = model.training.facts if model.training else {}
    return facts.get("config", {}).get("student")


def judge(
    student: ReportedModel,
    teacher: ReportedModel,
    control: ReportedModel | None,
    *,
    label_seconds: float | None,
    keep: float,
    tasks: list[TaskRow],
    saved: Savings | None = None,
) -> Verdict:
    """Return the verdict on a student.

    Args:
        student: the run that it is about, with its differences from the control.
        teacher: the teacher.
        control: the run on tokens alone, where there is one.
        label_seconds: seconds of labeling, where known.
        keep: the share of the teacher's quality to keep.
        tasks: results on tasks.
        saved: by the user's prices.
    """
    kept, kept_check = _kept(student, teacher, keep, tasks)
    less, less_check = _saved(student, teacher, saved)
    paid, paid_check = _paid_back(student, teacher, label_seconds, saved)
    helped, helped_check = _helped(student, control)
    checks = [helped_check, kept_check, less_check, paid_check]
    failed = [check for check in checks if check.status == "bad"]
    unknown = [check for check in checks if check.status == "unknown"]
    ship: Literal["yes", "no", "undecided"] = "no" if failed else "undecided" if unknown else "yes"
    reasons = failed or unknown
    reason = "; ".join(check.finding for check in reasons)
    return Verdict(
        student=student.name,
        control=control.name if control else None,
        ship=ship,
        summary=_summary(student, kept, less, paid, kept_check),
        reason=f"{reason[:1].upper()}{reason[1:]}." if reason else "Every condition is met.",
        answers=[kept, less, paid, helped],
        checks=checks,
    )


def between(estimate: Estimate | None, decimals: int | None) -> str:
    """Return the interval as text; percentages where `decimals` is None."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    low, high = (
        _percent(bound) if decimals is None else shown_number(bound, decimals)
        for bound in (estimate.low, estimate.high)
    )
    return f"{low} to {high}".replace("-", "−")


def _percent(share: float) -> str:
    return percent(share) if math.isfinite(share) else "not finite"


def _kept(
    student: ReportedModel, teacher: ReportedModel, keep: float, tasks: list[TaskRow]
) -> tuple[Answer, Check]:
    metrics, condition = student.metrics, f"keeps at least {keep:.0%} of the teacher's quality"
    assert metrics is not None  # it is a trained run, and was measured
    details = [
        f"Perplexity {shown_number(metrics.ppl, 2)}; the teacher's "
        f"{shown_number(teacher.ppl, 2, at_least=teacher.at_least)}."
    ]
    agreement = student.estimate("agreement")
    same = f"{_percent(metrics.agreement)} of next tokens are the teacher's first choice"
    on_tasks = kept_on_tasks(tasks, student.name)
    accuracy = student.accuracy_kept
    if on_tasks is not None:
        share, each = on_tasks
        of = each[0][0] if len(each) == 1 else f"{len(each)} tasks"
        above = " above chance" if all(row.chance is not None for row in tasks) else ""
        what = f"of the teacher's result{above} on {of}"
        if len(each) > 1:
            details.insert(0, f"Least: {each[0][1]:.1%} of {each[0][0]}.")
        details.insert(0, f"{same[:1].upper()}{same[1:]}.")
    elif accuracy is not None:
        share, what = accuracy, "of the teacher's next-token accuracy"
        details.insert(0, f"{same} ({between(agreement, None)}).")
    else:
        share, what = None, ""
    check = _enough(share, keep, what, condition)
    if not math.isfinite(metrics.kl):
        check = Check(condition=condition, status="bad", finding="its held-out KL is not finite")
    status: Status = "bad" if check.status == "bad" else "plain"
    if share is None:
        answer = Answer(
            question="Kept",
            headline=_percent(metrics.agreement),
            meaning="of next tokens are the teacher's first choice",
            interval=between(agreement, None),
            details=details,
            status=status,
        )
    else:
        answer = Answer(
            question="Kept",
            headline=_percent(share.value),
            meaning=what,
            interval=between(share, None),
            details=details,
            status=status,
        )
    return answer, check


def _enough(share: Estimate | None, keep: float, what: str, condition: str) -> Check:
    """Return whether a share is at least `keep`: its whole interval, where it has one."""
    if share is None:
        finding = "the share that it keeps was not measured"
        return Check(condition=condition, status="unknown", finding=finding)
    low = share.value if share.low is None else share.low
    high = share.value if share.high is None else share.high
    status: Status = "good" if low >= keep else "unknown" if high >= keep else "bad"
    around = f" ({between(share, None)})" if between(share, None) else ""
    short = {"unknown": ", not clearly enough", "bad": f", less than {keep:.0%}"}.get(status, "")
    finding = f"it keeps {share.value:.1%} {what}{around}{short}"
    return Check(condition=condition, status=status, finding=finding)


def _saved(
    student: ReportedModel, teacher: ReportedModel, saved: Savings | None
) -> tuple[Answer, Check]:
    details = []
    smaller = None
    if student.parameters and teacher.parameters:
        smaller = 1 - student.parameters / teacher.parameters
        details.append(
            f"{abs(smaller):.0%} {'fewer' if smaller >= 0 else 'more'} parameters: "
            f"{size(student.parameters, '')} of {size(teacher.parameters, '')}."
        )
    if student.bytes and teacher.bytes:
        less = 1 - student.bytes / teacher.bytes
        details.append(
            f"{abs(less):.0%} {'less' if less >= 0 else 'more'} on disk: "
            f"{size(student.bytes, 'B')} of {size(teacher.bytes, 'B')}."
        )
    fast = student.speed.speedup if student.speed else None
    condition = "generates faster than the teacher"
    if saved is not None and saved.share is not None:
        share = saved.share
        cost = f"{money(saved.student)} {saved.currency} per million tokens; the teacher's "
        details.insert(0, f"{cost}{money(saved.teacher)}.")
        if fast is not None:
            details.insert(0, f"{_times(fast)} the speed of generation.")
        answer = Answer(
            question="Saved",
            headline=f"{share:.0%}".replace("-", "−"),
            meaning="of the teacher's cost per generated token",
            details=details,
            status="plain" if share > 0 else "bad",
        )
        finding = f"it saves {share:.0%} of the cost per token"
        condition = "is cheaper than the teacher"
        status: Status = "good" if share > 0 else "bad"
        if fast is not None and not fast.is_stable:
            status, finding = "unknown", f"{finding}, but the speeds are not stable"
        return answer, Check(condition=condition, status=status, finding=finding)
    if fast is not None:
        check = _faster(fast, condition)
        answer = Answer(
            question="Saved",
            headline=times(fast.value),
            meaning="the teacher's speed of generation"
            + ("" if fast.is_stable else "; not stable from round to round"),
            interval="" if fast.low is None else f"{_range(fast)} in its rounds",
            details=details,
            status="plain" if check.status == "good" else check.status,
        )
        return answer, check
    if smaller is None:
        answer = Answer(
            question="Saved",
            headline=NOT_MEASURED,
            meaning="labeler bench measures speed, trainer evaluate --teacher sizes",
            details=details,
            status="unknown",
        )
    else:
        answer = Answer(
            question="Saved",
            headline=f"{smaller:.0%}".replace("-", "−"),
            meaning="of the teacher's parameters",
            details=[*details[1:], "Speed: not measured (labeler bench)."],
            status="plain" if smaller > 0 else "bad",
        )
    return answer, Check(
        condition=condition, status="unknown", finding="its speed was not measured"
    )


def _faster(fast: Rate, condition: str) -> Check:
    """Return whether a student is faster: in every round, and by rounds that agree."""
    low = fast.value if fast.low is None else fast.low
    high = fast.value if fast.high is None else fast.high
    finding = f"it generates at {_times(fast)} the teacher's speed"
    if high <= 1:
        return Check(condition=condition, status="bad", finding=finding)
    if low <= 1 or not fast.is_stable:
        finding += ", which is not stable from round to round"
        return Check(condition=condition, status="unknown", finding=finding)
    return Check(condition=condition, status="good", finding=finding)


def _times(rate: Rate) -> str:
    return times(rate.value) + (f" ({_range(rate)})" if rate.low is not None else "")


def _range(rate: Rate) -> str:
    return f"{times(rate.low)} to {times(rate.high)}"


def money(amount: float | None) -> str:
    """Return an amount with three digits at least."""
    if amount is None:
        return "–"
    return f"{amount:,.2f}" if amount >= 10 else f"{amount:.3g}"


def _paid_back(
    student: ReportedModel,
    teacher: ReportedModel,
    label_seconds: float | None,
    saved: Savings | None,
) -> tuple[Answer, Check]:
    condition = "pays back labeling and training"
    if saved is not None:
        cost = [("labeling", saved.labeling), ("training", saved.training)]
        known = [f"{what} cost {money(sum_)} {saved.currency}" for what, sum_ in cost if sum_]
        tokens = math.inf if saved.pays is False else saved.break_even
        unit = f"generated tokens, at your prices in {saved.currency}"
    else:
        times_ = [("labeling", label_seconds), ("training", student.seconds)]
        known = [f"{what} took {duration(s)}" for what, s in times_ if s is not None]
        tokens = None
        if label_seconds is not None and student.seconds is not None:
            tokens = _tokens(label_seconds + student.seconds, student, teacher)
        unit = "generated tokens, where a second costs the same everywhere"
    details = [f"{each[:1].upper()}{each[1:]}." for each in known]
    if tokens is None:
        lacking = (
            "cost of labeling (--labels)"
            if (label_seconds if saved is None else saved.labeling) is None
            else "time of training"
            if student.seconds is None
            else "speeds (--bench)"
        )
        answer = Answer(
            question="Paid back",
            headline="not known",
            meaning=f"it lacks the {lacking}",
            details=details,
            status="unknown",
        )
        finding = f"when it is paid back is not known without the {lacking}"
        return answer, Check(condition=condition, status="unknown", finding=finding)
    if math.isinf(tokens):
        answer = Answer(
            question="Paid back",
            headline="never",
            meaning="it costs no less than the teacher",
            details=details,
            status="bad",
        )
        return answer, Check(condition=condition, status="bad", finding="it never pays back")
    fast = student.speed.speedup if student.speed else None
    steady = fast is None or fast.is_stable
    if not steady:
        details.append("The speeds are not stable: it may be far from that.")
    answer = Answer(
        question="Paid back",
        headline=about(tokens),
        meaning=unit,
        details=details,
        status="plain" if steady else "unknown",
    )
    finding = f"paid back after {about(tokens)} generated tokens"
    finding += "" if steady else ", by speeds that are not stable"
    return answer, Check(
        condition=condition, status="good" if steady else "unknown", finding=finding
    )


def _tokens(spent: float, student: ReportedModel, teacher: ReportedModel) -> float | None:
    """Return the tokens after which some seconds are paid back; None if a speed is not known."""
    if not (student.generating and teacher.generating):
        return None
    return break_even(spent, 1 / teacher.generating, 1 / student.generating)


def _helped(student: ReportedModel, control: ReportedModel | None) -> tuple[Answer, Check]:
    condition = "predicts held-out text better than the same student trained on tokens alone"
    question = "Teacher's labels"
    if control is None:
        reason = (
            "it was itself trained on tokens alone"
            if student.tokens_only
            else "there is no run on tokens alone (--loss ce=1) to compare with"
        )
        answer = Answer(question=question, headline="–", meaning=reason, status="unknown")
        return answer, Check(condition=condition, status="unknown", finding=reason)
    details = []
    if control.tokens != student.tokens:
        details.append(
            f"Not at equal tokens: {about(student.tokens)} against {about(control.tokens)}."
        )
    if start_of(control) != start_of(student):
        details.append("They did not start from the same weights.")
    gain = student.differences.get("ce")
    if gain is None or gain.low is None or gain.high is None or not math.isfinite(gain.value):
        finding = f"its difference from {control.name} has no interval"
        answer = Answer(
            question=question,
            headline="not known",
            meaning=finding,
            details=details,
            status="unknown",
        )
        return answer, Check(condition=condition, status="unknown", finding=finding)
    kl = student.differences.get("kl")
    if kl is not None:
        details.insert(0, f"KL to the teacher {_change(kl)} ({between(kl, 4)}).")
    better = gain.high < 0
    worse = gain.low > 0
    finding = (
        f"it predicts held-out text better than {control.name}"
        if better
        else f"it predicts held-out text worse than {control.name}"
        if worse
        else f"it is not clearly better than {control.name}, trained on tokens alone"
    )
    documents = student.measured.documents if student.measured else 0
    if documents < FEW_DOCUMENTS:
        details.append(f"{documents} documents: the interval is too narrow.")
    answer = Answer(
        question=question,
        headline=_change(gain),
        meaning=f"nats of cross-entropy against {control.name} (tokens alone)",
        interval=between(gain, 4),
        details=details,
        status="good" if better else "bad",
    )
    return answer, Check(condition=condition, status="good" if better else "bad", finding=finding)


def _change(difference: Estimate) -> str:
    return f"{difference.value:+.4f}".replace("-", "−")


def _summary(
    student: ReportedModel, kept: Answer, saved: Answer, paid: Answer, check: Check
) -> str:
    """Return the verdict in a sentence; with the interval of what is kept if it decides nothing."""
    unsure = f" ({kept.interval})" if check.status == "unknown" and kept.interval else ""
    is_agreement = kept.meaning.startswith("of next tokens")
    parts = [
        f"{student.name} picks the teacher's next token at {kept.headline} of positions"
        if is_agreement
        else f"{student.name} keeps {kept.headline}{unsure} {kept.meaning}"
    ]
    if saved.meaning.startswith("of the teacher's cost"):
        parts.append(f"saves {saved.headline} of the cost per token")
    elif student.speed is not None and student.speed.speedup is not None:
        shaky = "" if student.speed.speedup.is_stable else " (not stable)"
        parts.append(f"generates at {saved.headline} its speed{shaky}")
    elif saved.status != "unknown":
        parts.append(f"has {saved.headline} fewer parameters")
    if paid.headline == "never":
        parts.append("never pays back its labeling and training")
    elif paid.headline != "not known":
        parts.append(f"has paid back labeling and training after {paid.headline} generated tokens")
    *first, last = parts
    return (f"{', '.join(first)} and {last}" if first else last) + "."


def about(count: float | None) -> str:
    """Return a count with three digits: 187 k, 1.25 M."""
    if count is None:
        return "–"
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            scaled = count / factor
            decimals = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
            return f"{scaled:.{decimals}f} {unit}"
    return f"{count:.0f}"


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
