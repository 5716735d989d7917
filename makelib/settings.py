"""Every number that a person may want to change, as one tree of frozen dataclasses, with presets and YAML.

The tree holds values only; what they do is said in the module that reads them. `preset("quick")` gives a tree,
`settings.replace("training.steps", 100)` a changed copy, `read_yaml`/`write_yaml` carry it to and from a file.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dacite
import yaml

from makelib.runtime import UserError, atomic_file, meant

#: shares lie between 0 and 1; every other number is at least 0, and these at least what stands here
SHARES = {
    "bazaar.title_names_visible", "bazaar.synonyms", "bazaar.no_category", "bazaar.wrong_clicks", "bazaar.missing_title",
    "bazaar.missing_image", "bazaar.duplicates", "bazaar.cold", "files.hide_share", "files.careless",
    "model.dropout", "model.summary_dropout", "keywords.keyword_dropout", "keywords.keyword_queries", "training.warmup", "training.modality_dropout",
    "training.word_dropout", "evaluation.alpha",
}  # fmt: skip
AT_LEAST = {
    "bazaar.products": 1, "bazaar.queries": 1, "bazaar.clicks": 1, "bazaar.image_size": 8, "text.vocabulary": 1,
    "text.query_tokens": 3, "text.title_tokens": 3, "text.enriched_tokens": 3, "model.dim": 1, "model.width": 1,
    "model.heads": 1, "model.image_size": 8, "model.gate_temperature": 1e-6,
    "training.batch_size": 1, "training.image_warmup_batch": 1, "training.evaluations": 1, "training.checkpoint_every": 1, "index.hnsw_links": 2,
    "index.hnsw_search": 1, "evaluation.cutoffs": 1, "evaluation.validation_queries": 1, "evaluation.test_queries": 1,
}  # fmt: skip
#: how dataclasses are read from YAML and JSON: no key too many, lists for tuples, and 1 where a float is meant
STRICT = dacite.Config(strict=True, cast=[tuple], type_hooks={float: lambda x: float(x) if type(x) is int else x})
#: settings that scripts may still name -> why nothing listens to them
RETIRED = {"evaluation.resamples": "intervals are computed and no longer drawn."}

FUSIONS = ("title", "image", "mean", "global", "category", "joint", "single_stream", "gate", "adaptive")
Fusion = Literal["title", "image", "mean", "global", "category", "joint", "single_stream", "gate", "adaptive"]


@dataclass(frozen=True)
class Bazaar:
    """The generated catalogue, see `makelib.data.sources.bazaar`."""

    products: int = 6000
    queries: int = 3000
    clicks: int = 60000
    image_size: int = 32
    seed: int = 7
    language: Literal["en", "zh"] = "en"
    #: share of titles that name an attribute which the image shows (colour, pattern, silhouette)
    title_names_visible: float = 0.25
    #: share of queries that use a synonym which no title uses
    synonyms: float = 0.30
    #: share of queries without the category word
    no_category: float = 0.30
    #: share of clicks on a wrong product of the category
    wrong_clicks: float = 0.10
    missing_title: float = 0.03
    missing_image: float = 0.03
    #: times as many titles with wrong words, and as many spoiled or misleading photographs, as each department has
    stuffing: float = 1.0
    image_noise: float = 1.0
    duplicates: float = 0.05
    #: share of products that no training click touches (cold products)
    cold: float = 0.15


@dataclass(frozen=True)
class Files:
    """A folder of one's own products, see `makelib.data.sources.files`; `catalogue.yaml` in the folder outranks these.
    Public data sets (`makelib.data.sources.hub`) are drawn and imported with the same numbers."""

    #: products drawn from the folder or public data set; 0 = all
    limit: int = 5000
    #: strings and clicks generated where the folder brings none
    queries: int = 4000
    clicks: int = 60000
    seed: int = 0
    #: share of titles that lose their colour and pattern words (terse sellers) where most titles name the colour
    hide_share: float = 0.7
    #: share of products whose photographs are spoiled (careless photographers), an experiment that nobody gets unasked
    careless: float = 0.0


@dataclass(frozen=True)
class Text:
    """Tokenizer and lengths, see `makelib.data.text`.

    Lengths are in tokens, special tokens included; a Han character is a token. Room that no text needs costs nothing.
    """

    vocabulary: int = 2000
    query_tokens: int = 24
    title_tokens: int = 64
    enriched_tokens: int = 40


@dataclass(frozen=True)
class Model:
    """The three encoders and their fusion, see `makelib.model.encoders`, `makelib.model.fusion`, `makelib.model`."""

    fusion: Fusion = "adaptive"
    #: retrieval width d
    dim: int = 256
    #: encoder width D
    width: int = 256
    #: layers of the text encoders; 0: a bag of words
    text_layers: int = 0
    #: one text encoder for queries and titles, projection included, and not one for each
    shared_text: bool = False
    #: share of the entries of a query's, a title's and an image's mean that are hidden in training
    summary_dropout: float = 0.3
    heads: int = 4
    #: name or folder of a pretrained `transformers` text encoder; empty: a small one from scratch
    text_backbone: str = ""
    #: name of a `timm` model
    image_backbone: str = "test_resnet.r160_in1k"
    #: start from weights that others trained: of a package (extra `pretrained`), of `local-dir:<folder>`, or from timm's hub
    image_pretrained: bool = False
    #: the backbone does not learn; what it sees is computed once per catalogue, and a step costs no convolution
    image_frozen: bool = False
    #: pixels per side that the image encoder sees
    image_size: int = 32
    #: which of the backbone's feature maps become the patches, fine to coarse; the last one's cells are the patches
    image_levels: tuple[int, ...] = (0, 1, 2, 3)
    dropout: float = 0.0
    #: temperature of the gate's softmax (tau_g)
    gate_temperature: float = 1.0


@dataclass(frozen=True)
class Keywords:
    """Keyword Enhancement, see `makelib.model.keywords`."""

    extractor: Literal["tfidf", "salience"] = "salience"
    enrichment: bool = False
    #: raw: all other rows are negatives; none: all but the same product and the same query; rule, oracle: see there
    false_negatives: Literal["raw", "none", "rule", "oracle"] = "none"
    #: keywords kept per title
    per_title: int = 6
    #: keywords added to a query, at most
    per_query: int = 3
    keyword_dropout: float = 0.3
    #: with enrichment, share of training queries replaced by one to three keywords of the clicked product
    keyword_queries: float = 0.3
    #: keep the gradient of the keyword losses out of the product side
    detach_product: bool = False


@dataclass(frozen=True)
class Objectives:
    """Weights of the training objectives, see `makelib.model.losses`; 0 = not computed."""

    query_product: float = 1.0
    title_image: float = 0.1
    query_image: float = 0.3
    title_image_matching: float = 0.0
    query_product_matching: float = 0.0
    masked_language: float = 0.0
    keyword_enhanced: float = 0.3
    distillation: float = 0.3
    #: entropy of the batch mean of the modal weights, decayed to 0 over pre-training
    gate_entropy: float = 0.05
    #: additive margin of `query_product`, in cosine
    margin: float = 0.0
    #: subtract log popularity from the logits of in-batch negatives (logQ correction)
    popularity_correction: bool = False


@dataclass(frozen=True)
class Training:
    """The loop, see `makelib.model.training`. One step is one batch of `batch_size` clicked (query, product) pairs, shared by all processes."""

    steps: int = 300
    batch_size: int = 256
    #: rows whose features are computed at once; memory then does not grow with the batch (gradient caching). 0: all
    chunk: int = 0
    #: steps in which a from-scratch image encoder learns to name what it sees, once per catalogue; 0 = none
    image_warmup: int = 2400
    image_warmup_batch: int = 64
    image_warmup_rate: float = 5e-3
    learning_rate: float = 4e-3
    #: peak rate of backbones that came with weights (`model.text_backbone`, `model.image_pretrained`)
    backbone_rate: float = 1e-4
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    #: share of rows whose title (and as many whose image) is hidden in training
    modality_dropout: float = 0.1
    #: share of query and title tokens that are hidden in training
    word_dropout: float = 0.0
    #: mirror, shift and light each photograph differently every time
    augment_images: bool = True
    #: never two rows of one batch with the same query
    unique_queries: bool = False
    finetune_steps: int = 0
    #: evaluations on validation queries, spread evenly over the pre-training steps (step 0 always comes first)
    evaluations: int = 2
    #: stop after so many evaluations without a better validation Recall@100; 0 = never
    patience: int = 0
    #: steps between checkpoints
    checkpoint_every: int = 100
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


@dataclass(frozen=True)
class Index:
    """Search, see `makelib.search.index`, and `faiss_engine` and `milvus_engine` there."""

    kind: Literal["exact", "hnsw", "ivf", "ivf-pq", "milvus"] = "exact"
    hnsw_links: int = 32
    hnsw_search: int = 128
    #: 0: chosen from the number of products, see `makelib.search.faiss_engine.by_rule`
    ivf_lists: int = 0
    ivf_probes: int = 0
    #: address of a Milvus cluster; empty: MAKELIB_MILVUS_URI, or else embedded in the index's folder
    milvus: str = ""


@dataclass(frozen=True)
class Evaluation:
    """How retrieval is judged, see `makelib.study.metrics`."""

    cutoffs: tuple[int, ...] = (10, 50, 100)
    validation_queries: int = 300
    test_queries: int = 800
    alpha: float = 0.05


@dataclass(frozen=True)
class Ablation:
    """Which variants run, see `makelib.study.experiment`."""

    fusions: tuple[str, ...] = ("title", "mean", "global", "category", "joint", "adaptive")
    keywords: tuple[str, ...] = ("none", "enrichment", "false_negatives", "both")
    #: pretrained dual encoders that stand beside the variants, see `makelib.study.peers`: `local-dir:<folder>`, …
    peers: tuple[str, ...] = ()
    #: as they come (zero-shot), with linear adapters (adapted), fine-tuned
    peer_modes: tuple[Literal["zero-shot", "adapted", "fine-tuned"], ...] = ("zero-shot", "adapted")
    workers: int = 0  #: processes side by side; 0 = one per core


@dataclass(frozen=True)
class Settings:
    """The whole tree; `name` is the preset that it started from."""

    name: str = "quick"
    seeds: tuple[int, ...] = (0, 1, 2)
    bazaar: Bazaar = field(default_factory=Bazaar)
    files: Files = field(default_factory=Files)
    text: Text = field(default_factory=Text)
    model: Model = field(default_factory=Model)
    keywords: Keywords = field(default_factory=Keywords)
    objectives: Objectives = field(default_factory=Objectives)
    training: Training = field(default_factory=Training)
    index: Index = field(default_factory=Index)
    evaluation: Evaluation = field(default_factory=Evaluation)
    ablation: Ablation = field(default_factory=Ablation)

    def replace(self, **changes: Any) -> Settings:
        """A changed copy: `settings.replace(**{"training.steps": 100, "model.fusion": "mean"})`.

        Raises `UserError` for a name that does not exist, a value of the wrong type or out of its range.
        """
        tree, known = to_dict(self), dict(leaves(to_dict(self)))
        for path, value in changes.items():
            if path in RETIRED:
                print(f"makelib: {path} does nothing any more: {RETIRED[path]}", file=sys.stderr)
                continue
            *parents, leaf = path.split(".")
            branch = tree
            for parent in parents:
                branch = branch.get(parent) if isinstance(branch, dict) else None
            if not isinstance(branch, dict) or leaf not in branch:
                raise UserError(f"There is no setting {path!r}; {meant(path, known)}")
            branch[leaf] = value
        return from_dict(tree)


def to_dict(settings: Settings | Model) -> dict[str, Any]:
    """The tree, or a branch, as plain dictionaries, lists and scalars, ready for YAML and JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(settings))


def from_dict(tree: dict[str, Any], where: str = "settings") -> Settings:
    """The inverse of `to_dict`. Missing keys take their defaults; unknown keys, wrong types and numbers out of their range
    raise `UserError`."""
    try:
        settings = dacite.from_dict(Settings, tree, STRICT)
    except dacite.DaciteError as error:
        raise UserError(f"{where}: {error}. See makelib/settings.py for every key and its type.") from None
    for name, value in leaves(to_dict(settings)):
        low, high = AT_LEAST.get(name, 0), 1 if name in SHARES else math.inf
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not (low <= number <= high and math.isfinite(number)):
                wanted = "between 0 and 1" if name in SHARES else f"at least {low}"
                raise UserError(f"{where}: {name} must be {wanted}, not {number}.")
    return settings


def read_yaml(path: Path) -> Settings:
    """Settings from a YAML file. Raises `UserError` when it is missing, is no YAML mapping or has unknown keys."""
    return from_dict(read_mapping(path, "training: {steps: 100}"), where=str(path))


def read_mapping(path: Path, example: str, blank: dict[str, Any] | None = None) -> dict[str, Any]:
    """A YAML file that holds a mapping; `blank` is what a file without anything in it stands for, if for something.

    Raises `UserError`, with an `example`, where it is missing or holds something else.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read {path}: {error}".replace("\n", " ")) from None
    tree = blank if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping, such as `{example}`.")
    return tree


def write_yaml(settings: Settings, path: Path) -> None:
    """Write the whole tree, so that a run folder says everything that it ran with."""
    with atomic_file(path) as draft:
        draft.write_text(yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")


#: what each preset changes in `Settings`
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"model.image_frozen": True},
    "smoke": {
        "seeds": (0,),
        "bazaar.products": 800, "bazaar.queries": 600, "bazaar.clicks": 8000,
        "files.limit": 600, "files.queries": 600, "files.clicks": 8000,
        "training.steps": 60, "training.image_warmup": 120, "training.batch_size": 128, "training.evaluations": 1,
        "text.vocabulary": 1000,
        "evaluation.validation_queries": 60, "evaluation.test_queries": 150,
    },
    "pretrained": {
        "model.image_backbone": "tf_efficientnet_lite0", "model.image_pretrained": True, "model.image_frozen": True,
        "model.image_size": 128, "model.image_levels": (1, 2, 3, 4),
    },
    "full": {
        "seeds": (0, 1, 2, 3, 4),
        "bazaar.products": 20000, "bazaar.queries": 8000, "bazaar.clicks": 300000,
        "files.limit": 0, "files.queries": 8000, "files.clicks": 300000,
        "model.image_frozen": True, "training.image_warmup": 6000,
        "training.steps": 960, "training.evaluations": 8, "training.patience": 3,
        "evaluation.validation_queries": 1000, "evaluation.test_queries": 3000,
        "ablation.fusions": FUSIONS,
        "ablation.keywords": ("none", "enrichment", "false_negatives", "both", "raw", "oracle", "unique_queries", "tfidf"),
    },
    "million": {
        "seeds": (0,),
        "bazaar.products": 1_000_000, "bazaar.queries": 15000, "bazaar.clicks": 500_000,
        "files.limit": 1_000_000, "files.queries": 15000, "files.clicks": 500_000,
        "model.image_frozen": True, "training.evaluations": 1,
        "evaluation.test_queries": 3000, "index.kind": "ivf", "ablation.fusions": ("title", "adaptive"), "ablation.keywords": ("none",),
    },
}  # fmt: skip


def preset(name: str) -> Settings:
    """`smoke` (seconds, for tests), `quick` (minutes, the default), `full` (hours, all arms, five seeds), `million` (10⁶ products,
    with and without images, index `ivf`; hours), or `pretrained`: `quick` with a frozen image tower that others trained on
    photographs (extra `pretrained`)."""
    if name not in PRESETS:
        raise UserError(f"Unknown preset {name!r}. Choose one of: {', '.join(PRESETS)}.")
    return Settings().replace(name=name, **PRESETS[name])


def leaves(tree: Mapping[str, Any], prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """Every setting of a tree with its value: `("training.steps", 240)`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(one: Settings, other: Settings) -> dict[str, Any]:
    """What to change in `one` to have `other`: name to value."""
    there = dict(leaves(to_dict(one)))
    return {name: value for name, value in leaves(to_dict(other)) if value != there[name]}
