"""The studies: which variants there are, what each changes, and which comparisons were planned before any ran."""

from __future__ import annotations

from typing import Any

from makelib.settings import FUSIONS

#: study -> variant -> what it changes in the settings. Modal Adaptation is compared without Keyword Enhancement, and
#: Keyword Enhancement on top of full Modal Adaptation, so `none` and `adaptive` are the same arm.
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "modal_adaptation": {fusion: {"model.fusion": fusion} for fusion in FUSIONS},
    "keyword_enhancement": {
        "none": {},
        "enrichment": {"keywords.enrichment": True},
        "false_negatives": {"keywords.false_negatives": "rule"},
        "both": {"keywords.enrichment": True, "keywords.false_negatives": "rule"},
        "oracle": {"keywords.false_negatives": "oracle"},
        "unique_queries": {"training.unique_queries": True},
        "tfidf": {"keywords.enrichment": True, "keywords.extractor": "tfidf"},
    },
    "make": {
        "title": {"model.fusion": "title"},
        # what Keyword Enhancement does for titles alone: the control without which its gain would be booked on images
        "title_keywords": {
            "model.fusion": "title",
            "keywords.enrichment": True,
            "keywords.false_negatives": "rule",
        },
        "adaptive": {},
        "full": {"keywords.enrichment": True, "keywords.false_negatives": "rule"},
    },
}
#: (variant, reference) pairs of each study; the first of a variant is its default reference
REFERENCES: dict[str, list[tuple[str, str]]] = {
    "modal_adaptation": [
        ("adaptive", "joint"), ("adaptive", "global"), ("adaptive", "mean"), ("adaptive", "gate"), ("adaptive", "title"),
        ("gate", "global"), ("gate", "mean"), ("global", "mean"), ("mean", "title"), ("joint", "title"), ("image", "title"),
    ],
    "keyword_enhancement": [
        ("enrichment", "none"), ("false_negatives", "none"), ("both", "none"), ("oracle", "none"), ("unique_queries", "none"),
        ("tfidf", "enrichment"),
    ],
    "make": [
        ("full", "title"), ("full", "title_keywords"), ("full", "adaptive"), ("full", "bm25"),
        ("title_keywords", "title"), ("adaptive", "title"), ("title", "bm25"),
    ],
}  # fmt: skip
#: METHOD's planned comparisons, for which p values are adjusted by Holm: study, variant, reference
PLANNED = (
    ("modal_adaptation", "adaptive", "joint"),
    ("modal_adaptation", "adaptive", "global"),
    ("modal_adaptation", "adaptive", "mean"),
    ("make", "full", "adaptive"),
    ("make", "full", "title"),
)
