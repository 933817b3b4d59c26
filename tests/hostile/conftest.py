from __future__ import annotations

from tests.labeler.conftest import corpus, labeler, run_labeler, settings, teacher

__all__ = ["corpus", "labeler", "run_labeler", "settings", "teacher"]
