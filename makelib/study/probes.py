"""Questions put to a trained model: what do its modal weights follow, what happens when an image is spoiled or a title stuffed,
what does it lose without one modality, and are masked negatives really false? Each returns a table; figures are in `makelib.workbook.plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy import stats

from makelib.data.catalog import Catalog
from makelib.data.sources.bazaar.goods import stuff
from makelib.data.sources.bazaar.pictures import corrupt
from makelib.data.text import Phrases, Tokens, join
from makelib.data.text import words as words_of
from makelib.model.batches import SHARD
from makelib.model.frozen import pictures
from makelib.model.keywords import FalseNegatives, KeywordTable, WordTables, enrich
from makelib.model.make import ProductVectors, further_of
from makelib.runtime import progress
from makelib.search.retriever import KEPT, Retriever
from makelib.settings import Index, Settings
from makelib.study.metrics import evaluate
from makelib.study.readers import can_read
from makelib.study.statistics import interval

#: what a probe judges by, whatever the run's own index
EXACT = Index(kind="exact")


def modal_weights(retriever: Retriever) -> pd.DataFrame:
    """One row per product: `category, weight_image, has_title, has_image` and, where known, the columns of `catalog.truth`."""
    catalog = retriever.catalog
    has_title, has_image = catalog.present.T
    table = pd.DataFrame(
        {
            "row": np.arange(len(catalog)),
            "category": catalog.products["category"].fillna("no category"),
            "weight_image": retriever.vectors.weights[:, 1],
            "has_title": has_title,
            "has_image": has_image,
        }
    )
    if catalog.truth is not None:
        table = table.join(catalog.truth.drop(columns="product_id"))
    return table


def reliability_correlation(weights: pd.DataFrame, least: int = 20) -> pd.DataFrame:
    """Does the image's weight follow the truth *within* a category? Spearman's rho per category, over products with both modalities,
    between `weight_image` and true reliability of the image minus that of the title; columns `category, led, products, rho, p_value`."""
    both = weights[weights["has_title"] & weights["has_image"]]
    rows = []
    for category, group in both.groupby("category"):
        advantage = group["image_reliability"] - group["title_reliability"]
        if len(group) >= least and advantage.nunique() > 1:
            rho, p = stats.spearmanr(group["weight_image"], advantage)
            led = group["led"].iloc[0] if "led" in group else ""
            rows.append({"category": category, "led": led, "products": len(group), "rho": rho, "p_value": p})
    return pd.DataFrame(rows, columns=["category", "led", "products", "rho", "p_value"])


def spoil_images(
    retriever: Retriever,
    kind: str = "blur",
    strengths: tuple[float, ...] = (0, 0.25, 0.5, 0.75, 1.0),
    products: int = 300,
) -> pd.DataFrame:
    """The image's weight as photographs are spoiled step by step: `kind, strength, row, led, weight_image`, same products at each step."""
    rows, shown, titles = _sample(retriever, products)
    pixels = np.array(retriever.catalog.images(retriever.model.config.image_size)[0][rows])
    tables = []
    for strength in strengths:
        seen = corrupt(pixels, kind, strength, seed=0) if strength else shown
        weights = retriever.model.encode_products(titles, seen, np.ones(len(rows), bool)).weights
        tables.append(_response(retriever, rows, weights).assign(kind=kind, strength=strength))
    return pd.concat(tables, ignore_index=True)


def stuff_titles(retriever: Retriever, words: tuple[int, ...] = (0, 2, 4, 6), products: int = 300) -> pd.DataFrame:
    """The image's weight as wrong words are stuffed into each title: `words, row, led, weight_image`, same products at each
    step. In the generated world they are values that the title does not name, as its sellers stuff them; elsewhere, where
    nobody knows which words are wrong, words of other products' titles."""
    rows, shown, titles = _sample(retriever, products)
    tables, catalog = [], retriever.catalog
    language = catalog.info.get("settings", {}).get("language", "en")
    strangers = np.random.default_rng(0).choice(_words_of_titles(catalog), (len(rows), max(words)))
    for count in words:
        if can_read(catalog):
            stuffed = [stuff(title, count, int(row), language) for title, row in zip(titles, rows, strict=True)]
        else:
            stuffed = [join([title, *extra[:count]]) for title, extra in zip(titles, strangers, strict=True)]
        weights = retriever.model.encode_products(stuffed, shown, np.ones(len(rows), bool)).weights
        tables.append(_response(retriever, rows, weights).assign(words=count))
    return pd.concat(tables, ignore_index=True)


def directions(gates: Sequence[Retriever], controls: Sequence[Retriever]) -> pd.DataFrame:
    """The direction tests of the modal weights (docs/method.md), over all seeds, each effect paired by product.

    Args:
        gates: one trained model a seed, of one catalogue.
        controls: for each of them one that has learned next to nothing (four steps). A test that it passes as well tests
            nothing, so a claim holds where the gates' effect *and* what it is beyond the controls' lie on the claimed
            side of 0 with their 95 % intervals.

    Columns `claim, effect, control, beyond the control, holds`. Whether weights follow true reliability within a category
    is reported, not asked. Claims that need a truth or images which the catalogue does not have are left out.
    """
    asked = progress([*gates, *controls], description="direction tests", unit="model")
    effects = [_effects(retriever) for retriever in asked]
    effects, of_controls = effects[: len(gates)], effects[len(gates) :]
    rows = []
    for claim, (sign, _, clusters) in effects[0].items():
        ours, theirs = (np.stack([found[claim][1] for found in several]) for several in (effects, of_controls))
        found = {
            "effect": interval(ours, clusters),
            "control": interval(theirs, clusters),
            "beyond the control": interval(ours - theirs, clusters),
        }
        claimed = (found["effect"], found["beyond the control"])
        holds = "yes" if all(min(sign * low, sign * high) > 0 for _, low, high in claimed) else "no"
        told = {name: f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for name, (mean, low, high) in found.items()}
        rows.append({"claim": claim, **told, "holds": holds})
    tables = [modal_weights(retriever) for retriever in gates]
    if "image_reliability" in tables[0]:
        rho = pd.concat([reliability_correlation(table).assign(seed=seed) for seed, table in enumerate(tables)])
        for led, medians in rho.groupby(["led", "seed"])["rho"].median().groupby("led"):
            told = f"median rho {', '.join(f'{value:+.2f}' for value in medians)}"
            rows.append(
                {"claim": f"within {led}-led categories it follows true reliability", "effect": told, "holds": "–"}
            )
    missing = np.concatenate([t[~t["has_image"] & t["has_title"]]["weight_image"] for t in tables])
    if len(missing):
        told = f"largest of {len(missing)}: {missing.max():g}"
        holds = "yes" if missing.max() == 0 else "no"
        rows.append({"claim": "a missing image has weight exactly 0", "effect": told, "holds": holds})
    columns = ["claim", "effect", "control", "beyond the control", "holds"]
    return pd.DataFrame(rows, columns=columns, dtype=object).fillna("–")


def _effects(retriever: Retriever) -> dict[str, tuple[int, np.ndarray, np.ndarray]]:
    """Claim -> its sign, the effect on each product (P,) and what the products are grouped by (P,)."""
    weights, effects = modal_weights(retriever), {}
    both = weights[weights["has_title"] & weights["has_image"]]
    if "led" in both and both["led"].nunique() > 1:
        claim = "the image weighs more in image-led categories"
        effects[claim] = (1, _gap(both["weight_image"], both["led"] == "image"), both["category"].to_numpy())
    if "careless" in both and both["careless"].eq("").nunique() > 1:
        claim = "within its category a careless photograph weighs less"
        apart = both["weight_image"] - both.groupby("category")["weight_image"].transform("mean")
        effects[claim] = (-1, _gap(apart, both["careless"] != ""), both["category"].to_numpy())

    def change(table: pd.DataFrame, step: str) -> tuple[np.ndarray, np.ndarray]:
        steps = table.pivot(index="row", columns=step, values="weight_image")
        return (steps.iloc[:, -1] - steps.iloc[:, 0]).to_numpy(), steps.index.to_numpy()

    if len(both):
        for kind in ("blur", "watermark", "occlusion", "noise"):
            claim = f"it falls as images are spoiled by {kind}"
            effects[claim] = (-1, *change(spoil_images(retriever, kind, (0, 1.0)), "strength"))
        wrong = "wrong words are stuffed into titles" if can_read(retriever.catalog) else "titles get words of others"
        effects[f"it rises as {wrong}"] = (1, *change(stuff_titles(retriever, (0, 6)), "words"))
    return effects


def _gap(values: pd.Series, there: pd.Series) -> np.ndarray:
    """The mean of values `there` minus that of the others, as the mean of (P,), a product each."""
    means, shares = values.groupby(there).mean(), there.value_counts(normalize=True)
    off = np.where(there, 1, -1) * (values - there.map(means)) / there.map(shares)  # mean 0
    return (means[True] - means[False] + off).to_numpy()


def without_a_modality(retriever: Retriever, query_rows: np.ndarray, settings: Settings) -> pd.DataFrame:
    """Mean scores of the same model when every product is indexed whole, without its image, and without its title.

    The leave-one-out check that weights alone cannot give: which words of a title count depends on the photograph, too.
    """
    catalog, model = retriever.catalog, retriever.model
    pixels, has_image, (further, owners) = pictures(catalog, model)
    titles = catalog.products["title"].fillna("")
    queries = model.encode_queries(catalog.queries["query"].iloc[query_rows].tolist())
    rows = [{"indexed": "title and image", **_scores(retriever.indexed(EXACT), query_rows, queries, settings)}]
    for view, told, seen in (("without images", True, False), ("without titles", False, True)):
        shards = []
        for start in progress(range(0, len(catalog), SHARD), description=view, unit="shard"):
            shard = np.arange(start, min(start + SHARD, len(catalog)))
            places, owner = further_of(owners, shard)
            vectors = model.encode_products(
                titles.iloc[shard].tolist() if told else [""] * len(shard),
                pixels[start : start + SHARD],
                has_image[shard] & seen,
                (further[places], owner) if seen else None,
            )
            shards.append([getattr(vectors, name).astype(kind) for name, kind in KEPT.items()])  # no parts: gigabytes
        left = replace(retriever, vectors=ProductVectors(*map(np.concatenate, zip(*shards, strict=True))))
        rows.append({"indexed": view, **_scores(left.indexed(EXACT), query_rows, queries, settings)})
    return pd.DataFrame(rows).set_index("indexed")


def false_negatives(catalog: Catalog, settings: Settings, batches: int = 20) -> pd.DataFrame:
    """How good is each rule that keeps false negatives out, judged by the truth, over random training batches.

    Columns: `rule`, `anchors with a false negative` (share of batch rows that keep at least one fully relevant product among their
    negatives), `masked pairs` (share of off-diagonal pairs), `precision` (masked pairs that are truly relevant), `recall`.
    """
    tables = WordTables.of(catalog)
    judge = FalseNegatives(catalog, tables)
    queries, products = catalog.clicks("train")
    random, B = np.random.default_rng(0), min(settings.training.batch_size, len(queries))
    counts = {rule: np.zeros(5) for rule in ("raw", "none", "rule", "oracle")}
    off = ~np.eye(B, dtype=bool)
    for _ in progress(range(batches), description="batches", unit="batch"):
        chosen = random.choice(len(queries), B, replace=False)
        truth = judge.truth(queries[chosen], products[chosen]) & off
        for rule, count in counts.items():
            masks = getattr(judge, rule)(queries[chosen], products[chosen])
            masked = ~masks.negatives & off
            count += [
                (truth & masks.negatives).any(axis=1).mean(), masked.mean(), (masked & truth).sum(), masked.sum(), truth.sum()
            ]  # fmt: skip
    return pd.DataFrame(
        {
            "rule": rule,
            "anchors with a false negative": count[0] / batches,
            "masked pairs": count[1] / batches,
            "precision": count[2] / count[3] if count[3] else np.nan,
            "recall": count[2] / count[4] if count[4] else np.nan,
        }
        for rule, count in counts.items()
    ).set_index("rule")


def enriched_gap(retriever: Retriever, query_rows: np.ndarray, settings: Settings) -> pd.DataFrame:
    """Raw queries against the same queries enriched with keywords of a clicked product, mean scores of each.

    The enriched ones are told part of the answer, so they should win; a model in which they win by far has learned to copy
    words rather than to understand the raw query.
    """
    catalog, model = retriever.catalog, retriever.model
    table = catalog.interactions
    first = (
        table[(table["kind"] == "click") & (table["label"] > 0)].drop_duplicates("query").set_index("query")["product"]
    )
    query_rows = np.array([row for row in query_rows if row in first.index])
    clicked = first.loc[query_rows].to_numpy()
    words = WordTables.of(catalog)
    chosen = settings.replace(**{"keywords.keyword_dropout": 0.0}).keywords
    keywords = KeywordTable.of(catalog, chosen)
    extra = enrich(keywords, words.queries[query_rows], clicked, chosen, np.random.default_rng(0))
    texts = catalog.queries["query"].iloc[query_rows].tolist()
    typed = Tokens.of(model.tokenizer, texts, settings.text.query_tokens).rows(np.arange(len(texts)))
    pairs = Phrases(model.tokenizer, keywords.vocabulary).behind(typed, extra, settings.text.enriched_tokens)
    model.eval()
    with torch.inference_mode():
        enriched = model.query(*(torch.from_numpy(array).to(model.device) for array in pairs.values()))
    asked = {"raw query": model.encode_queries(texts), "query and keywords": enriched.float().cpu().numpy()}
    exact = retriever.indexed(EXACT)
    rows = [{"asked": name, **_scores(exact, query_rows, each, settings)} for name, each in asked.items()]
    return pd.DataFrame(rows).set_index("asked")


def _scores(retriever: Retriever, query_rows: np.ndarray, queries: np.ndarray, settings: Settings) -> dict[str, float]:
    """Mean scores of query vectors over the whole catalogue; never Q × N at once."""
    catalog = retriever.catalog
    found, _ = retriever.index.search(queries, min(max(settings.evaluation.cutoffs), len(catalog)))
    return evaluate(catalog, query_rows, found, settings.evaluation).select_dtypes("number").mean().to_dict()


def _sample(retriever: Retriever, products: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows, photographs (`frozen.pictures`) and titles of some products that have both modalities in good order, the same ones at
    every call."""
    table = modal_weights(retriever)
    good = table["has_title"] & table["has_image"]
    for column, kind in {"image_kind": "clean", "title_kind": "clean", "careless": ""}.items():
        if column in table:
            good &= table[column] == kind
    rows = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(good))[:products])
    shown, _, _ = pictures(retriever.catalog, retriever.model)
    return rows, shown[rows], retriever.catalog.products["title"].iloc[rows].tolist()


def _words_of_titles(catalog: Catalog) -> np.ndarray:
    return np.array([word for title in catalog.products["title"].fillna("") for word in words_of(title)], dtype=object)


def _response(retriever: Retriever, rows: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    truth = retriever.catalog.truth
    led = truth["led"].to_numpy()[rows] if truth is not None and "led" in truth else "all"
    return pd.DataFrame({"row": rows, "led": led, "weight_image": weights[:, 1]})
