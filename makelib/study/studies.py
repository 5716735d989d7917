"""The studies: which variants there are, what each changes, and which comparisons were planned before any ran."""

from __future__ import annotations

from typing import Any, NamedTuple

from makelib.settings import FUSIONS

#: Keyword Enhancement, both halves
KEYWORDS: dict[str, Any] = {"keywords.enrichment": True, "keywords.false_negatives": "rule"}
#: objectives beside `query_product` that the presets train with
BESIDE = ("title_image", "query_image", "keyword_enhanced", "distillation", "gate_entropy")
#: objectives of cross-attending pre-training, which the presets leave out
MATCHED = tuple(f"objectives.{name}" for name in ("title_image_matching", "query_product_matching", "masked_language"))
CLICKS_ONLY: dict[str, Any] = KEYWORDS | {f"objectives.{name}": 0.0 for name in BESIDE}

#: one transformer over words and patches, FashionBERT (Gao et al., 2020), CommerceMM (Yu et al., 2022); at the arms' rate it learns
#: less than a narrow one, so its own was chosen on validation queries (docs/findings.md)
SINGLE_STREAM: dict[str, Any] = {"model.fusion": "single_stream", "training.learning_rate": 1e-3}

#: study -> variant -> what it changes in the settings. Modal Adaptation is compared without Keyword Enhancement, and
#: Keyword Enhancement on top of full Modal Adaptation, so `none` and `adaptive` are the same arm.
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "modal_adaptation": {fusion: {"model.fusion": fusion} for fusion in FUSIONS} | {"single_stream": SINGLE_STREAM},
    "keyword_enhancement": {
        "none": {},
        "raw": {"keywords.false_negatives": "raw"},
        "enrichment": {"keywords.enrichment": True},
        "false_negatives": {"keywords.false_negatives": "rule"},
        "both": KEYWORDS,
        "oracle": {"keywords.false_negatives": "oracle"},
        "unique_queries": {"training.unique_queries": True},
        "tfidf": {"keywords.enrichment": True, "keywords.extractor": "tfidf"},
    },
    # rivals for the place of Modal Adaptation, all with the same data, tokenizer, steps and batches (and, but for `single_stream`,
    # rate); pretrained dual encoders
    # (`ablation.peers`) stand beside them
    "peers": {
        "title": {"model.fusion": "title"},
        "image": {"model.fusion": "image"},
        "mean": {"model.fusion": "mean"},
        "joint": {"model.fusion": "joint"},
        # ALBEF (Li et al., 2021): the joint fusion with matching and masked words, each head on the encoders' states
        "albef": {"model.fusion": "joint", **dict.fromkeys(MATCHED, 0.1)},
        "single_stream": SINGLE_STREAM,
        "single_stream_matched": SINGLE_STREAM | dict.fromkeys(MATCHED, 0.1),
        "adaptive": {},
    },
    "make": {
        "title": {"model.fusion": "title"},
        # what Keyword Enhancement does for titles alone: the control without which its gain would be booked on images
        "title_keywords": {"model.fusion": "title", **KEYWORDS},
        "adaptive": {},
        "full": KEYWORDS,
    },
    # -- asked for by name (`python -m makelib ablate --study objectives`), no part of `make reproduce` ----------------
    "objectives": {
        "full": KEYWORDS,
        **{f"without_{name}": KEYWORDS | {f"objectives.{name}": 0.0} for name in BESIDE},
        "clicks_only": CLICKS_ONLY,
        **{
            f"only_{name}": {key: value for key, value in CLICKS_ONLY.items() if key != f"objectives.{name}"}
            for name in BESIDE
        },
        **{f"with_{name.partition('.')[2]}": KEYWORDS | {name: 0.1} for name in MATCHED},
        "with_margin": KEYWORDS | {"objectives.margin": 0.05},
        "with_popularity_correction": KEYWORDS | {"objectives.popularity_correction": True},
    },
    "keyword_parts": {
        "none": {},
        "enrichment": {"keywords.enrichment": True},
        "raw": {"keywords.false_negatives": "raw"},
        "without_distillation": {"keywords.enrichment": True, "objectives.distillation": 0.0},
        "distillation_alone": {"keywords.enrichment": True, "objectives.keyword_enhanced": 0.0},
        "detached": {"keywords.enrichment": True, "keywords.detach_product": True},
        "one_keyword": {"keywords.enrichment": True, "keywords.per_query": 1},
        "both": KEYWORDS,
        "both_tfidf": KEYWORDS | {"keywords.extractor": "tfidf"},
        "both_oracle": KEYWORDS | {"keywords.false_negatives": "oracle"},
        "both_unique_queries": KEYWORDS | {"training.unique_queries": True},
    },
    "modal_parts": {
        "adaptive": {},
        "gate": {"model.fusion": "gate"},
        "sharp": {"model.gate_temperature": 0.5},
        "soft": {"model.gate_temperature": 2.0},
        "without_entropy": {"objectives.gate_entropy": 0.0},
        "without_modality_dropout": {"training.modality_dropout": 0.0},
        "without_query_image": {"objectives.query_image": 0.0},
    },
    # beside them stands `oracle_weights`: the streams of `global` with weights fitted on the truth
    "modal_bounds": {"global": {"model.fusion": "global"}, "adaptive": {}},
    # what has learned next to nothing: a direction test that it passes tests nothing
    "controls": {"four_steps": {"training.steps": 4, "training.finetune_steps": 0}},
    # weights per product where the image tower learns with the rest, and where it does not, as pretrained towers are used
    "frozen": {
        f"{tower}_{fusion}": {"model.fusion": fusion, "model.image_frozen": tower == "frozen"}
        for tower in ("trained", "frozen")
        for fusion in ("global", "category", "adaptive")
    },
    "towers": {
        "bag_of_words": {},
        "one_layer": {"model.text_layers": 1},
        "without_text_dropout": {"model.summary_dropout": 0.0},
        "word_dropout": {"training.word_dropout": 0.15},
        "half_width": {"model.width": 128, "model.dim": 128},
        "blind_start": {"training.image_warmup": 0},
        "short_warmup": {"training.image_warmup": 100},
    },
    # as many steps in all: the first alone, the second alone (a fifth of the rate, mined negatives), one after the other
    "stages": {
        "pretrain": KEYWORDS | {"training.steps": 380, "training.finetune_steps": 0},
        "finetune": KEYWORDS | {"training.steps": 0, "training.finetune_steps": 380},
        "both_stages": KEYWORDS | {"training.steps": 300, "training.finetune_steps": 80},
    },
    # brief queries and long titles: an encoder for each, or one for both?
    "query_encoder": {
        "separate": {},
        "shared": {"model.shared_text": True},
        "separate_layer": {"model.text_layers": 1},
        "shared_layer": {"model.text_layers": 1, "model.shared_text": True},
    },
}
#: (variant, reference) pairs of each study; the first of a variant is its default reference. Beside its variants a study has
#: the lines of `Experiment.untrained`, and `late_fusion` where both modalities alone were trained.
REFERENCES: dict[str, list[tuple[str, str]]] = {
    "modal_adaptation": [
        ("adaptive", "joint"), ("adaptive", "category"), ("adaptive", "global"), ("adaptive", "mean"), ("adaptive", "gate"),
        ("adaptive", "title"), ("adaptive", "late_fusion"), ("adaptive", "reader"), ("gate", "category"), ("gate", "global"),
        ("gate", "mean"), ("category", "global"), ("global", "mean"), ("mean", "title"), ("joint", "title"),
        ("image", "title"), ("late_fusion", "title"), ("title", "bm25"),
    ],
    "keyword_enhancement": [
        ("enrichment", "none"), ("false_negatives", "none"), ("both", "none"), ("oracle", "none"), ("unique_queries", "none"),
        ("tfidf", "enrichment"), ("none", "raw"),
    ],
    "peers": [
        *(("adaptive", rival) for rival in ("joint", "albef", "single_stream", "single_stream_matched", "mean", "late_fusion", "title")),
        ("albef", "joint"), ("single_stream", "joint"), ("single_stream_matched", "single_stream"), ("single_stream", "mean"),
        ("joint", "mean"), ("mean", "title"), ("image", "title"), ("late_fusion", "title"), ("title", "bm25"),
    ],
    "make": [
        ("full", "title"), ("full", "title_keywords"), ("full", "adaptive"), ("full", "bm25"), ("full", "reader"),
        ("full", "ideal_reader"), ("title_keywords", "title"), ("adaptive", "title"), ("title", "bm25"), ("title", "reader"),
    ],
    "objectives": [
        (variant, "clicks_only" if variant.startswith("only_") else "full")
        for variant in STUDIES["objectives"] if variant != "full"
    ],
    "keyword_parts": [
        ("enrichment", "none"), ("raw", "none"), ("without_distillation", "enrichment"), ("distillation_alone", "none"),
        ("detached", "enrichment"), ("one_keyword", "enrichment"), ("both", "none"), ("both_tfidf", "both"),
        ("both_oracle", "both"), ("both_unique_queries", "both"),
    ],
    "modal_parts": [(variant, "adaptive") for variant in STUDIES["modal_parts"] if variant != "adaptive"],
    "modal_bounds": [("oracle_weights", "global"), ("oracle_weights", "adaptive"), ("adaptive", "global")],
    "controls": [],
    "frozen": [
        *((f"{tower}_{a}", f"{tower}_{b}") for tower in ("trained", "frozen")
          for a, b in (("adaptive", "global"), ("adaptive", "category"), ("category", "global"))),
        ("frozen_gain", "trained_gain"),
    ],
    "towers": [(variant, "bag_of_words") for variant in STUDIES["towers"] if variant != "bag_of_words"],
    "stages": [("both_stages", "pretrain"), ("both_stages", "finetune"), ("finetune", "pretrain")],
    "query_encoder": [("separate", "shared"), ("separate_layer", "shared_layer"), ("separate", "separate_layer")],
}  # fmt: skip
#: lines of a study that are differences themselves, query by query: study -> name -> (variant, reference). Compared with each
#: other they say whether a gain depends on something else (an interaction).
GAINS: dict[str, dict[str, tuple[str, str]]] = {
    "frozen": {f"{tower}_gain": (f"{tower}_adaptive", f"{tower}_global") for tower in ("trained", "frozen")}
}
#: the planned comparisons (docs/method.md), for which p values are adjusted by Holm: study, variant, reference
PLANNED = (
    ("modal_adaptation", "adaptive", "joint"),
    ("modal_adaptation", "adaptive", "category"),
    ("modal_adaptation", "adaptive", "global"),
    ("modal_adaptation", "adaptive", "mean"),
    ("make", "full", "adaptive"),
    ("make", "full", "title"),
    ("frozen", "frozen_adaptive", "frozen_global"),
)


class Sweep(NamedTuple):
    """One setting over values, and the variants of a study that are trained at each. A value of `bazaar.*` is another world
    with the same products and queries."""

    setting: str
    values: tuple
    study: str
    variants: tuple[str, ...]


#: sweeps by name, asked for like studies; each answers a question
SWEEPS = {
    # how many clicks until images pay, and until weights per product do?
    "clicks": Sweep("bazaar.clicks", (6000, 15000, 30000, 60000), "modal_adaptation", ("title", "global", "adaptive")),
    # do wrong clicks cost one fusion more than another?
    "click_noise": Sweep("bazaar.wrong_clicks", (0.0, 0.1, 0.3), "modal_adaptation", ("title", "global", "adaptive")),
    # what is Modal Adaptation worth as more photographs, or more titles, are missing?
    "no_image": Sweep("bazaar.missing_image", (0.0, 0.03, 0.3), "modal_adaptation", ("title", "global", "adaptive")),
    "no_title": Sweep("bazaar.missing_title", (0.0, 0.03, 0.3), "modal_adaptation", ("title", "global", "adaptive")),
    # and as sellers write more wrong words, or photographs show less of the truth?
    "stuffing": Sweep("bazaar.stuffing", (0.0, 1.0, 2.0), "modal_adaptation", ("title", "global", "adaptive")),
    "image_noise": Sweep("bazaar.image_noise", (0.0, 1.0, 2.0), "modal_adaptation", ("title", "global", "adaptive")),
    # and as titles name more of what the photograph shows?
    "told": Sweep("bazaar.title_names_visible", (0.1, 0.25, 0.6), "modal_adaptation", ("title", "global", "adaptive")),
    # do weights per product pay more where a tower cannot say "unsure" by its direction, because it does not learn?
    "frozen": Sweep(
        "model.image_frozen",
        (False, True),
        "modal_adaptation",
        ("mean", "global", "category", "joint", "gate", "adaptive"),
    ),
    # how much narrower does each further training make an interval? (the value of a row is how many)
    "seeds": Sweep("seeds", tuple(tuple(range(n)) for n in (1, 2, 3, 5, 8)), "modal_adaptation", ("mean", "adaptive")),
    # larger batches hold more false negatives: does keeping them out pay more?
    "batch": Sweep("training.batch_size", (64, 128, 256, 512), "keyword_enhancement", ("none", "false_negatives")),
}
