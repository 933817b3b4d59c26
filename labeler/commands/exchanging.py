"""Commands that share label sets: `export`, `import`, `push`, `pull`, `artifact`."""

from __future__ import annotations

from labeler.labelsets.exchange.exchange_config import ExportConfig, ImportConfig
from labeler.labelsets.hub.hub_config import ArtifactConfig, PullConfig, PushConfig


def export(config: ExportConfig) -> int:
    """Write a label set, or the rows of a view, as a file that another tool reads.

    Lists what the format has no place for. FILE.softshards.json, written beside FILE, records the
    teacher, the identity, the alignment and what was lost. docs/interchange.md has the formats.

    Example: `labeler export ./labels rows.parquet --format distillkit`
    """
    from labeler.labelsets.exchange.export_set import run_export

    return run_export(config)


def import_(config: ImportConfig) -> int:
    """Make a label set from labels that another tool wrote.

    State with flags what the file does not record; the rest is recorded as unknown. The actual
    tokens are searched in the top-k: labels that are off by one position are refused. Rows that
    break a rule become rejects. Can be stopped and run again.

    Example: `labeler import rows.parquet --tokenizer ./teacher --teacher ./teacher --dry-run`,
    then the same with `--out ./labels`
    """
    from labeler.labelsets.exchange.import_set import run_import

    return run_import(config)


def push(config: PushConfig) -> int:
    """Publish a label set on the Hugging Face Hub, as a dataset with a card.

    The set is checked first, byte by byte. After an interruption the same command resumes, and
    sends nothing twice. Log in with `hf auth login`, or set HF_TOKEN.

    Example: `labeler push ./labels me/my-labels --license cc-by-4.0 --terms TERMS.md --dry-run`
    """
    from labeler.labelsets.hub.push import run_push

    return run_push(config)


def pull(config: PullConfig) -> int:
    """Download a label set from the Hugging Face Hub, and check every byte of it.

    After an interruption the same command resumes.

    Example: `labeler pull someone/their-labels ./labels`
    """
    from labeler.labelsets.hub.pull import run_pull

    return run_pull(config)


def artifact(config: ArtifactConfig) -> int:
    """Log a label set as an artifact of an experiment tracker, with the sets it was made from.

    The set is checked first, byte by byte. Its files stay where they are: the artifact records
    their locations and hashes, unless --upload is given. Needs softshards[trackers].

    Example: `WANDB_MODE=offline labeler artifact ./labels --to wandb --project students`
    """
    from labeler.labelsets.hub.tracker_artifacts import run_artifact

    return run_artifact(config)
