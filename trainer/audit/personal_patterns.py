"""Personal data in a text, by Presidio's patterns, offline. Needs `softshards[audit]`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import spacy
from presidio_analyzer import (
    AnalyzerEngine,
    EntityRecognizer,
    PatternRecognizer,
    RecognizerRegistry,
    predefined_recognizers,
)
from presidio_analyzer.nlp_engine import SpacyNlpEngine
from spacy.language import Language
from tldextract import TLDExtract

from schemas.errors import SoftshardsError, first_line
from trainer.audit.patterns import Match

LANGUAGE = "en"
"""Presidio's name for the pipeline. The patterns are the same for every language."""
PERSON = "PERSON"
LONGEST_TEXT = 10**9
"""spaCy's limit of a million characters is for parsers, and there is none."""


class OfflineEmail(predefined_recognizers.EmailRecognizer):
    """E-mail addresses, with the list of top-level domains that tldextract brings along.

    Presidio's own class downloads the newest list when it is first used.
    """

    def __init__(self, supported_language: str = LANGUAGE) -> None:
        super().__init__(supported_language=supported_language)
        self._split = TLDExtract(cache_dir=None, suffix_list_urls=())

    def validate_result(self, pattern_text: str) -> bool:
        """Return whether the domain exists by its ending."""
        return self._split(pattern_text).fqdn != ""


class PersonalPatterns:
    """Finds personal data.

    Args:
        kinds: Presidio's names of kinds.
        score: least score of a match.
        names: a spaCy pipeline, installed or a folder, that also finds names of people.

    Raises:
        SoftshardsError: a kind is unknown, or the pipeline is not installed.
    """

    def __init__(self, kinds: tuple[str, ...], score: float, names: str | None = None) -> None:
        recognizers = _recognizers(kinds)
        pipeline = spacy.blank(LANGUAGE) if names is None else _load_pipeline(names)
        pipeline.max_length = LONGEST_TEXT
        self._kinds = [*kinds]
        if names is not None:
            recognizers.append(predefined_recognizers.SpacyRecognizer(supported_entities=[PERSON]))
            self._kinds.append(PERSON)
        engine = _Pipeline(pipeline)
        self._analyzer = AnalyzerEngine(
            registry=RecognizerRegistry(recognizers=recognizers, supported_languages=[LANGUAGE]),
            nlp_engine=engine,
            supported_languages=[LANGUAGE],
        )
        self._score = score
        self.settings = {
            "pii": f"presidio-analyzer {version('presidio-analyzer')}, score {score}: "
            + ", ".join(sorted(kinds)),
            **({"names": names} if names else {}),
        }

    def find(self, text: str) -> list[Match]:
        """Return the personal data in a text."""
        found = self._analyzer.analyze(
            text, language=LANGUAGE, entities=self._kinds, score_threshold=self._score
        )
        return [Match("pii", one.entity_type, one.start, one.end, one.score) for one in found]


class _Pipeline(SpacyNlpEngine):
    """A pipeline that is loaded already. Presidio's own class downloads what is missing."""

    def __init__(self, pipeline: Language) -> None:
        super().__init__()
        self.nlp = {LANGUAGE: pipeline}  # type: ignore[assignment]  # its hint says None

    def load(self) -> None:
        """Do nothing."""


def _recognizers(kinds: tuple[str, ...]) -> list[EntityRecognizer]:
    made = [make(supported_language=LANGUAGE) for make in _makers()]
    known = {kind: recognizer for recognizer in made for kind in recognizer.supported_entities}
    if unknown := [kind for kind in kinds if kind not in known]:
        raise SoftshardsError(
            f"--pii {unknown[0]}: Presidio has no pattern of this name",
            hint=f"the kinds are {', '.join(sorted(known))}; --names finds people",
        )
    return list({id(known[kind]): known[kind] for kind in kinds}.values())


def _makers() -> list[Callable[..., EntityRecognizer]]:
    """Return the classes that find by pattern: nothing of them needs a model or a service."""
    online = predefined_recognizers.EmailRecognizer
    classes = [value for value in vars(predefined_recognizers).values() if inspect.isclass(value)]
    patterns = [c for c in classes if issubclass(c, PatternRecognizer) and c is not online]
    return [*patterns, predefined_recognizers.PhoneRecognizer, OfflineEmail]


def _load_pipeline(names: str) -> Language:
    if not (Path(names).is_dir() or spacy.util.is_package(names)):
        raise SoftshardsError(
            f"--names {names}: no such pipeline is installed, and nothing is downloaded here",
            hint=f"python -m spacy download {names}",
        )
    try:
        return spacy.load(names)
    except (OSError, ValueError, ImportError) as error:
        raise SoftshardsError(
            f"--names {names}: spaCy cannot load it: {first_line(error)}"
        ) from error
