"""Commands about labeling: `label`, `preview`, `bench`, `plan-cluster`."""

from __future__ import annotations

from labeler.labeling.bench.bench_config import BenchConfig
from labeler.labeling.planning.cluster_config import ClusterConfig
from labeler.labeling.rendering.preview_command import PreviewCommand
from labeler.labeling.runs.label_command import LabelCommand


def label(config: LabelCommand) -> int:
    """Label a corpus or prompts with a teacher; stop it at any time, run it again to resume.

    Writes a label set to --out: one Parquet shard per work unit, safely on disk before the next
    begins. The same command resumes an unfinished set and leaves a finished one alone.

    Example: `labeler label corpus.jsonl --model ./teacher --out ./labels --k 64`
    """
    if config.cluster.ray is not None:
        from labeler.labeling.cluster.label_on_ray import run_label_on_ray

        return run_label_on_ray(config)
    from labeler.labeling.runs.label_command import run_label

    return run_label(config)


def preview(config: PreviewCommand) -> int:
    """Show the first rows as the teacher will see them, with the tokens to be labeled colored.

    Takes the flags of `label`, needs only the teacher's tokenizer, and writes nothing. Where the
    output is not a terminal, labeled tokens stand in brackets with their kind.

    Example: `labeler preview chats.jsonl --model ./teacher --spans assistant`
    """
    from labeler.labeling.rendering.preview import run_preview

    return run_preview(config)


def bench(config: BenchConfig) -> int:
    """Measure how fast vLLM runs models on the same input: tokens/s, latency, memory and energy.

    The models run in turns, each in its own process: what else the machine does slows them alike.
    A figure whose rounds differ much is marked. An --out file that already holds the same
    measurement is reused.

    Example: `labeler bench teacher=./teacher student=./student --labels ./labels`
    """
    from labeler.labeling.bench.bench import run_bench

    return run_bench(config)


def plan_cluster(config: ClusterConfig) -> int:
    """Plan a large run from a small one: nodes, hours, storage, bandwidth, cost, the bottleneck.

    Label a few thousand rows of the corpus on one device, and give that label set. No teacher is
    loaded. The exit code is 1 if the set does not fit on --disk-gb, or the store cannot take it in
    --hours.

    Example: `labeler plan-cluster ./sample --tokens 10e9 --hours 24 --engines-per-node 8
    --store-mb-per-s 500 --prices prices.yaml`
    """
    from labeler.labeling.planning.plan_cluster import run_plan_cluster

    return run_plan_cluster(config)
