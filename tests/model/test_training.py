"""Training: it learns, it is deterministic, a killed run resumes to the same weights, bad losses stop it.

The catalogue is 240 products of 4 colours (seen only in the image) x 3 types x 4 brands (only in the title): a model must use both.
"""

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from makelib.data.catalog import Catalog
from makelib.data.tables import write_catalog
from makelib.data.tokens import tokenizer_for
from makelib.model.batches import Batches, augment, drop_words
from makelib.model.checkpoint import TrainingState, copied_weights, load_checkpoint, save_checkpoint
from makelib.model.encoders import ImageEncoder, mean_pool
from makelib.model.make import MakeModel
from makelib.model.optim import make_optimizer, schedule
from makelib.model.training import train, validation_recall
from makelib.model.warmup import warm_up_images
from makelib.runtime import UserError
from makelib.settings import preset

COLOURS = {"red": (210, 30, 30), "blue": (30, 30, 210), "green": (30, 180, 30), "black": (20, 20, 20)}
TYPES, BRANDS = ("dress", "shoe", "bag"), ("acme", "bolt", "core", "dyna")
CHINESE = {
    "red": "红色", "blue": "蓝色", "green": "绿色", "black": "黑色", "dress": "连衣裙", "shoe": "运动鞋", "bag": "手提包",
    "acme": "奥克", "bolt": "博特", "core": "科尔", "dyna": "戴纳", "new": "新款",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy(folder, say=" ".join):
    """The catalogue, its titles and queries said by `say` (words to a string)."""
    random = np.random.default_rng(0)
    combos = [(c, t, b) for c in COLOURS for t in TYPES for b in BRANDS]
    goods = [combos[i] for i in random.integers(len(combos), size=240)]

    def picture(colour):
        buffer = io.BytesIO()
        noise = random.integers(-15, 15, (16, 16, 3))
        Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    products = pd.DataFrame(
        {
            "product_id": [f"p{i}" for i in range(240)],
            "title": ["" if i % 40 == 0 else say([b, t, "new"]) for i, (_, t, b) in enumerate(goods)],
            "image": [None if i % 30 == 1 else picture(c) for i, (c, _, _) in enumerate(goods)],
            "category": [t for _, t, _ in goods],
            "attributes": [{"colour": c, "type": t, "brand": b} for c, t, b in goods],
        }
    )
    splits = ["validation" if i % 5 == 1 else "test" if i % 5 == 0 else "train" for i in range(len(combos))]
    queries = pd.DataFrame(
        {
            "query_id": [str(i) for i in range(len(combos))],
            "query": [say([c, b, t]) for c, t, b in combos],
            "split": splits,
            "constraints": [{"colour": c, "type": t, "brand": b} for c, t, b in combos],
        }
    )
    clicks = [(str(combos.index(good)), f"p{i}") for i, good in enumerate(goods) for _ in range(3)]
    interactions = pd.DataFrame(clicks, columns=["query_id", "product_id"]).assign(label=1.0, kind="click")
    return write_catalog(folder, name="toy", products=products, queries=queries, interactions=interactions)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("toy") / "catalogue")


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    """The same catalogue in Chinese."""
    return toy(tmp_path_factory.mktemp("toy") / "chinese", lambda words: "".join(CHINESE[word] for word in words))


def tiny(**changes):
    return preset("smoke").replace(
        **{
            "model.width": 32, "model.dim": 32, "model.image_size": 16, "text.vocabulary": 400,
            "training.steps": 12, "training.image_warmup": 0, "training.word_dropout": 0.0, "training.augment_images": False, "training.batch_size": 32, "training.checkpoint_every": 5, "training.evaluations": 2,
            "keywords.enrichment": True, "keywords.false_negatives": "rule", **changes,
        }
    )  # fmt: skip


def test_it_overfits_sixteen_triples(catalog, tmp_path):
    settings = tiny(
        **{
            "training.steps": 120,
            "training.batch_size": 16,
            "keywords.enrichment": False,
            "training.modality_dropout": 0.0,
        }
    )
    model_settings = settings.replace(**{"training.learning_rate": 0.003})
    torch.manual_seed(0)
    from makelib.model.losses import objectives

    tokenizer = tokenizer_for(catalog, settings)
    model = MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer).train()
    batch = Batches(catalog, tokenizer, settings, 0)("pretrain", 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=model_settings.training.learning_rate)
    losses = []
    for _ in range(120):
        features = model(batch.inputs, settings.objectives)
        loss = objectives(features, batch.pairs, settings.objectives, settings.keywords, fusion="adaptive")[
            "query_product"
        ]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.0
    assert losses[-1] < 0.1


@pytest.mark.parametrize("language", ["catalog", "chinese"])
def test_it_learns_what_needs_both_modalities(language, request, tmp_path):
    """Colour is only in the image, brand only in the title: `adaptive` must beat both single modalities and chance by far."""
    catalog = request.getfixturevalue(language)
    settings = tiny(
        **{"training.steps": 100, "training.image_warmup": 40, "training.batch_size": 64, "objectives.query_image": 1.0}
    )
    recall = {}
    for fusion in ("title", "image", "adaptive"):
        chosen = settings.replace(**{"model.fusion": fusion})
        model = train(catalog, chosen, 0, tmp_path / fusion, on_step=lambda *_: None)
        rows = catalog.query_rows("test")
        pixels, has_image = catalog.images(16)
        vectors = model.encode_products(catalog.products["title"].fillna("").tolist(), pixels, has_image).embedding
        scores = model.encode_queries(catalog.queries["query"].iloc[rows].tolist()) @ vectors.T
        first = np.argsort(-scores, axis=1)[:, :5]
        full = catalog.relevance(rows) >= 1
        recall[fusion] = (np.take_along_axis(full, first, 1).sum(1) / np.minimum(full.sum(1), 5)).mean()
    chance = 5 / 240
    assert recall["adaptive"] > 20 * chance
    assert recall["adaptive"] > recall["title"] + 0.15
    assert recall["adaptive"] > recall["image"] + 0.15


@pytest.fixture(scope="module")
def backs(catalog, tmp_path_factory):
    """The same products, but the first photograph is a grey box and the colour is on the second; every third has a third,
    grey too."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (128, 128, 128)).save(buffer, "PNG")
    box = {"bytes": buffer.getvalue(), "path": None}
    cells = pq.read_table(catalog.folder / "products.parquet")["image"].to_pylist()
    products = catalog.products.assign(
        attributes=catalog.attributes.to_dict("records"),
        image=[None if cell is None else box for cell in cells],
        images=[None if cell is None else [cell, box][: 1 + (i % 3 == 0)] for i, cell in enumerate(cells)],
    )
    queries, interactions = catalog.queries, catalog.interactions
    interactions = interactions.assign(
        query_id=queries["query_id"].to_numpy()[interactions["query"]],
        product_id=products["product_id"].to_numpy()[interactions["product"]],
    )
    folder = tmp_path_factory.mktemp("backs") / "catalogue"
    return write_catalog(folder, name="backs", products=products, queries=queries, interactions=interactions)


def test_it_learns_from_further_photographs(backs, tmp_path):
    """Colour is only on the second photograph: with it the model finds what is asked, without it it cannot."""
    settings = tiny(
        **{"training.steps": 100, "training.image_warmup": 40, "training.batch_size": 64, "objectives.query_image": 1.0}
    )
    model = train(backs, settings, 0, tmp_path, on_step=lambda *_: None)
    rows, titles = backs.query_rows("test"), backs.products["title"].fillna("").tolist()
    queries = model.encode_queries(backs.queries["query"].iloc[rows].tolist())
    recall = {}
    for name, further in (("all", backs.further_images(16)), ("first", None)):
        scores = queries @ model.encode_products(titles, *backs.images(16), further).embedding.T
        first, full = np.argsort(-scores, axis=1)[:, :5], backs.relevance(rows) >= 1
        recall[name] = (np.take_along_axis(full, first, 1).sum(1) / np.minimum(full.sum(1), 5)).mean()
    assert recall["all"] > 20 * 5 / 240
    assert recall["all"] > recall["first"] + 0.15


def test_a_batch_holds_the_further_photographs_of_shown_products(backs):
    settings = tiny(**{"training.modality_dropout": 0.4})
    batch = Batches(backs, tokenizer_for(backs, settings), settings, 0)
    _, products = batch.rows("pretrain", 0)
    inputs = batch("pretrain", 0).inputs
    shown = inputs["present"][:, 1].numpy() > 0
    assert 0 < shown.sum() < len(products)
    expected = [i for i, row in enumerate(products) if shown[i] for _ in range(1 + (row % 3 == 0))]
    assert inputs["owner"].tolist() == expected
    assert len(inputs["pixels"]) == len(products) + len(expected)
    assert not inputs["pixels"][: len(products)][torch.from_numpy(~shown)].any()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(catalog, tmp_path):
    marks = [
        train(catalog, tiny(), seed, tmp_path / name, on_step=lambda *_: None).fingerprint()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert marks[0] == marks[1] != marks[2]


def test_test_queries_are_never_looked_at(catalog, tmp_path):
    """Other strings, other constraints, no clicks: the weights are the same to the bit. What is kept of a catalogue is kept of
    each by itself."""
    other = dataclasses.replace(catalog, queries=catalog.queries.copy(), fingerprint="other")
    tests = other.query_rows("test")
    other.queries.loc[tests, "query"] = "something else"
    other.queries["constraints"] = [
        {"type": "bag"} if row in tests else asked for row, asked in enumerate(other.queries["constraints"])
    ]
    other = dataclasses.replace(
        other, interactions=other.interactions[~other.interactions["query"].isin(tests)].reset_index(drop=True)
    )
    marks = [
        train(given, tiny(), 0, tmp_path / name, on_step=lambda *_: None).fingerprint()
        for name, given in (("a", catalog), ("b", other))
    ]
    assert len(tests)
    assert len(other.interactions) < len(catalog.interactions)
    assert marks[0] == marks[1]


@pytest.mark.parametrize("stop", [7, 14])  # in pre-training between checkpoints, and in fine-tuning
def test_a_killed_run_resumes_to_the_same_weights(catalog, tmp_path, stop):
    settings = tiny(**{"training.finetune_steps": 6, "training.checkpoint_every": 3, "model.dropout": 0.1})
    whole = train(catalog, settings, 0, tmp_path / "whole", on_step=lambda *_: None)
    train(catalog, settings, 0, tmp_path / "killed", on_step=lambda *_: None, stop_after=stop)
    assert (tmp_path / "killed" / "checkpoint").is_dir()
    resumed = train(catalog, settings, 0, tmp_path / "killed", on_step=lambda *_: None)
    assert resumed.fingerprint() == whole.fingerprint()
    curves = [
        pd.read_parquet(tmp_path / name / "curves.parquet").drop(columns=["triples per second", "waited"])
        for name in ("whole", "killed")
    ]
    pd.testing.assert_frame_equal(*curves)


def test_fine_tuning_alone_starts_from_nothing(catalog, tmp_path):
    settings = tiny(**{"training.steps": 0, "training.finetune_steps": 30, "training.learning_rate": 2e-2})
    model = train(catalog, settings, 0, tmp_path, on_step=lambda *_: None)
    curves = pd.read_parquet(tmp_path / "curves.parquet")
    assert curves["step"].tolist() == list(range(31))
    assert curves["stage"].tolist() == ["pretrain", *["finetune"] * 30]
    untrained = train(catalog, tiny(**{"training.steps": 0}), 0, tmp_path / "none", on_step=lambda *_: None)
    assert model.fingerprint() != untrained.fingerprint()


def test_seeds_and_studies_may_change_while_a_run_is_interrupted(catalog, tmp_path):
    train(catalog, tiny(), 0, tmp_path / "killed", on_step=lambda *_: None, stop_after=7)
    more = tiny(**{"seeds": (0, 1, 2), "name": "full", "ablation.workers": 2, "evaluation.test_queries": 5})
    resumed = train(catalog, more, 0, tmp_path / "killed", on_step=lambda *_: None)
    assert resumed.fingerprint() == train(catalog, tiny(), 0, tmp_path / "whole", on_step=lambda *_: None).fingerprint()


def test_a_run_that_stopped_early_takes_no_step_when_resumed(catalog, tmp_path):
    # nothing improves, so it stops at the first evaluation
    settings = tiny(
        **{
            "training.patience": 1,
            "training.evaluations": 4,
            "training.checkpoint_every": 1,
            "training.learning_rate": 1e-9,
        }
    )
    train(catalog, settings, 0, tmp_path, on_step=lambda *_: None)
    steps = []
    train(catalog, settings, 0, tmp_path, on_step=lambda *step: steps.append(step))
    assert steps == []


def test_fine_tuning_computes_nothing_without_a_weight_and_keeps_one_optimizer(catalog, tmp_path, monkeypatch):
    import accelerate

    from makelib.model.matching import MatchingHead

    stages, optimizers = [], set()
    batches, prepare, match = Batches.__call__, accelerate.Accelerator.backward, MatchingHead.forward

    def backward(self, loss, **options):
        optimizers.update(map(id, self._optimizers))
        return prepare(self, loss, **options)

    monkeypatch.setattr(accelerate.Accelerator, "backward", backward)
    monkeypatch.setattr(
        Batches, "__call__", lambda self, stage, step: stages.append(stage) or batches(self, stage, step)
    )
    monkeypatch.setattr(
        MatchingHead, "forward", lambda self, *a: stages.append("matched " + stages[-1]) or match(self, *a)
    )
    heads = ("title_image_matching", "query_product_matching", "masked_language")
    settings = tiny(
        **{"training.steps": 2, "training.finetune_steps": 2, **{f"objectives.{name}": 0.1 for name in heads}}
    )
    train(catalog, settings, 0, tmp_path, on_step=lambda *_: None)
    assert any(stage.endswith("pretrain") and stage.startswith("matched") for stage in stages)
    assert not any(stage.endswith("finetune") and stage.startswith("matched") for stage in stages)
    curve = pd.read_parquet(tmp_path / "curves.parquet")
    assert curve.loc[curve["stage"] == "finetune", list(heads)].isna().all(axis=None)
    assert len(optimizers) == 1


def test_losses_are_computed_in_float32_outside_of_autocast(catalog, tmp_path, monkeypatch):
    import accelerate

    from makelib.model import training

    seen, whole = [], training.objectives

    def look(features, *arguments, **options):
        seen.append((torch.is_autocast_enabled("cpu"), {tensor.dtype for tensor in features.values()}))
        return whole(features, *arguments, **options)

    monkeypatch.setattr(training, "objectives", look)
    monkeypatch.setattr(accelerate.Accelerator, "autocast", lambda self: torch.autocast("cpu", torch.bfloat16))
    train(catalog, tiny(**{"training.steps": 1}), 0, tmp_path, on_step=lambda *_: None)
    assert seen == [(False, {torch.float32})]


def test_the_loss_scale_of_fp16_survives_a_checkpoint(catalog, tmp_path):
    settings = tiny()
    model = MakeModel.from_settings(
        settings.model, settings.text, settings.objectives, tokenizer_for(catalog, settings)
    )
    optimizer, scaler = make_optimizer(model, settings), torch.amp.GradScaler("cpu", init_scale=512.0)
    state = TrainingState(curves=[])
    save_checkpoint(tmp_path / "checkpoint", model, optimizer, scaler, state, copied_weights(model), "mark")
    fresh = torch.amp.GradScaler("cpu")
    load_checkpoint(tmp_path / "checkpoint", model, optimizer, fresh, "mark")
    assert fresh.state_dict()["scale"] == 512.0


def test_a_checkpoint_of_other_settings_is_refused(catalog, tmp_path):
    train(catalog, tiny(), 0, tmp_path, on_step=lambda *_: None, stop_after=6)
    with pytest.raises(UserError, match="other settings"):
        train(catalog, tiny(**{"training.learning_rate": 0.5}), 0, tmp_path, on_step=lambda *_: None)


def test_a_loss_that_is_not_finite_stops_with_a_sentence(catalog, tmp_path, monkeypatch):
    from makelib.model import training

    def broken(*arguments, **options):
        return {"query_product": torch.tensor(float("nan"), requires_grad=True)}

    monkeypatch.setattr(training, "objectives", broken)
    with pytest.raises(UserError, match=r"not finite at pretrain step 1 \(query_product\)"):
        train(catalog, tiny(), 0, tmp_path, on_step=lambda *_: None)


def test_step_zero_is_evaluated_and_the_best_model_returned(catalog, tmp_path):
    model = train(catalog, tiny(**{"training.evaluations": 3}), 0, tmp_path, on_step=lambda *_: None)
    curve = pd.read_parquet(tmp_path / "curves.parquet")
    measured = curve.dropna(subset=["validation Recall@100"])
    assert measured["step"].tolist() == [0, 4, 8, 12]
    assert validation_recall(model, catalog, tiny()) == pytest.approx(measured["validation Recall@100"].max())


def test_every_objective_takes_part_when_it_has_a_weight(catalog, tmp_path):
    heads = {
        f"objectives.{name}": 0.1 for name in ("title_image_matching", "query_product_matching", "masked_language")
    }
    train(catalog, tiny(**{"training.steps": 2, **heads}), 0, tmp_path, on_step=lambda *_: None)
    curve = pd.read_parquet(tmp_path / "curves.parquet").iloc[-1]
    names = [
        "query_product",
        "title_image",
        "query_image",
        "title_image_matching",
        "query_product_matching",
        "masked_language",
    ]
    assert np.isfinite(curve[[*names, "keyword_enhanced", "distillation", "gate_entropy"]].astype(float)).all()


def test_words_of_han_characters_are_masked_whole(chinese, segmenter):
    settings = tiny(**{"objectives.masked_language": 0.1})
    batches = Batches(chinese, tokenizer_for(chinese, settings), settings, 0)
    masked = shared = 0
    for step in range(5):
        _, products = batches.rows("pretrain", step)
        at = batches("pretrain", step).inputs["masked_at"].numpy()
        starts = batches.title_words.padded(products)[0]
        assert (at == np.take_along_axis(at, starts, 1)).all()
        masked, shared = masked + at.sum(), shared + (at & (starts != np.arange(at.shape[1]))).sum()
    assert masked
    assert bool(shared) == (segmenter == "jieba")


def test_photographs_are_disturbed_each_its_own_way_and_never_in_place():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    before = pixels.copy()
    one, two = (augment(pixels, np.random.default_rng(seed).random((6, 4))) for seed in (0, 1))
    np.testing.assert_array_equal(pixels, before)
    assert one.shape == pixels.shape
    assert one.dtype == np.uint8
    assert (one != two).any(axis=(1, 2, 3)).all()
    flat = np.full((50, 16, 16, 3), 100, np.uint8)
    lit = augment(flat, np.random.default_rng(0).random((50, 4)))
    assert (lit == lit[:, :1, :1]).all(), "moving and mirroring a plain picture changes nothing but its light"
    assert lit.min() >= 80
    assert lit.max() <= 120


def test_the_enriched_query_lacks_the_words_that_the_raw_one_lacks(catalog):
    plain = {"keywords.keyword_queries": 0.0}
    settings = tiny(**{"training.word_dropout": 0.5, **plain})
    inputs = Batches(catalog, tokenizer_for(catalog, settings), settings, 0)("pretrain", 0).inputs
    length = inputs["query_ids"].shape[1]
    asked = Batches(catalog, tokenizer_for(catalog, settings), tiny(**plain), 0)("pretrain", 0).inputs["query_mask"] > 0
    missing = asked & (inputs["query_mask"] == 0)
    assert missing.any()
    assert torch.equal(inputs["enriched_ids"][:, :length][asked], inputs["query_ids"][asked])
    assert not inputs["enriched_mask"][:, :length][missing].any()
    assert inputs["enriched_mask"][:, :length][asked & ~missing].all()


def test_some_queries_are_keywords_of_the_clicked_product(catalog):
    tokenizer = tokenizer_for(catalog, tiny())
    none, some = (
        Batches(catalog, tokenizer, tiny(**{"keywords.keyword_queries": share}), 0)("pretrain", 0)
        for share in (0.0, 0.5)
    )
    batches = Batches(catalog, tokenizer, tiny(), 0)
    queries, products = batches.rows("pretrain", 0)
    said = [
        tokenizer.decode(ids[mask > 0][1:]).strip()
        for ids, mask in zip(some.inputs["query_ids"], some.inputs["query_mask"], strict=True)
    ]
    replaced = np.array(said) != catalog.queries["query"].to_numpy()[queries]
    assert 0.2 < replaced.mean() < 0.8
    titles = catalog.products["title"].fillna("").to_numpy()[products]
    for row in np.flatnonzero(replaced):
        has = np.array([set(said[row].split()) <= set(title.split()) for title in titles])
        assert has[row]
        assert not some.pairs["negatives"][row].numpy()[has].any()
        assert some.pairs["positives"][row].sum() == 1
    assert torch.equal(some.pairs["negatives"][~replaced], none.pairs["negatives"][~replaced])


@pytest.mark.parametrize("none", ["keywords.per_query", "keywords.per_title"])
def test_a_query_may_get_no_keyword(catalog, none):
    settings = tiny(**{none: 0})
    inputs = Batches(catalog, tokenizer_for(catalog, settings), settings, 0)("pretrain", 0).inputs
    raw = Batches(catalog, tokenizer_for(catalog, settings), tiny(), 0).query_tokens
    assert inputs["enriched_mask"].sum(dim=1).max() <= 1 + max(len(ids) for ids in raw.rows(np.arange(len(raw))))


def test_dropped_words_keep_the_first_token_and_the_padding():
    mask = np.ones((2000, 6), np.int64)
    mask[:, 5] = 0
    drop_words(mask, 0.3, np.random.default_rng(0))
    assert (mask[:, 0] == 1).all()
    assert (mask[:, 5] == 0).all()
    assert mask[:, 1:5].mean() == pytest.approx(0.7, abs=0.03)


def test_the_image_encoder_warms_up_once_and_names_what_it_sees(catalog, tmp_path):
    settings = tiny(**{"training.image_warmup": 100})
    file = warm_up_images(catalog, settings)
    stamp = file.stat().st_mtime_ns
    assert warm_up_images(catalog, settings).stat().st_mtime_ns == stamp
    for change in ({"image_warmup_rate": 1e-4}, {"image_warmup_batch": 16}, {"weight_decay": 0.5}, {"warmup": 0.5}):
        changed = settings.replace(**{f"training.{name}": value for name, value in change.items()})
        few = changed.replace(**{"training.image_warmup": 1})
        assert warm_up_images(catalog, few) != file
        assert warm_up_images(catalog, few) != warm_up_images(catalog, settings.replace(**{"training.image_warmup": 1}))
    encoder = ImageEncoder(settings.model.image_backbone, image_size=16, levels=settings.model.image_levels, width=32)
    encoder.load_state_dict(safetensors.torch.load_file(file))
    pixels, has_image = catalog.images(16)
    rows = np.flatnonzero(has_image)
    with torch.inference_mode():
        seen = torch.nn.functional.normalize(
            mean_pool(encoder.eval()(torch.from_numpy(np.array(pixels[rows])))), dim=-1
        )
    colours = catalog.attributes["colour"].to_numpy()[rows]
    alike = (seen @ seen.T).fill_diagonal_(-1).argmax(dim=1).numpy()
    assert (colours[alike] == colours).mean() > 0.9  # chance is 0.25


def test_unique_queries_never_repeat_a_string(catalog):
    settings = tiny(**{"training.unique_queries": True, "training.batch_size": 24})
    batches = Batches(catalog, tokenizer_for(catalog, settings), settings, 0)
    for step in range(5):
        queries, _ = batches.rows("pretrain", step)
        assert len(np.unique(queries)) == len(queries)


def test_few_query_strings_are_drawn_once_each_in_proportion_to_their_clicks(catalog):
    """More rows than strings: each once; a little fewer: the popular ones oftener, any of their clicks, without sorting clicks anew."""
    strings = len(np.unique(Batches(catalog, tokenizer_for(catalog, tiny()), tiny(), 0).queries))
    drawn = {}
    for size in (10 * strings, strings - 2):
        settings = tiny(**{"training.unique_queries": True, "training.batch_size": size})
        batches = Batches(catalog, tokenizer_for(catalog, settings), settings, 0)
        drawn[size] = [batches.rows("pretrain", step) for step in range(300)]
        assert {len(queries) for queries, _ in drawn[size]} == {min(size, strings)}
        assert all(len(np.unique(queries)) == len(queries) for queries, _ in drawn[size])
    assert set(np.concatenate([products for _, products in drawn[10 * strings]])) == set(batches.products)
    often = np.bincount(np.concatenate([queries for queries, _ in drawn[strings - 2]]), minlength=len(catalog.queries))
    clicks = np.bincount(batches.queries, minlength=len(catalog.queries))
    known = np.flatnonzero(clicks)
    assert np.corrcoef(np.log(clicks[known]), often[known])[0, 1] > 0.7


def test_what_depends_on_the_catalogue_alone_is_made_once(tmp_path, monkeypatch):
    """Two arms, another model's validation included: nothing is cut, counted or trained again, and nothing is copied into memory."""
    catalog, settings = toy(tmp_path / "catalogue"), tiny(**{"objectives.masked_language": 0.1})
    train(catalog, settings, 0, tmp_path / "one", on_step=lambda *_: None)
    for name in ("train_tokenizer", "word_starts", "texts_of"):
        monkeypatch.setattr(f"makelib.data.tokens.{name}", lambda *_: pytest.fail("made twice"))
    for name in ("_counted", "_heaviest"):
        monkeypatch.setattr(f"makelib.model.keywords.{name}", lambda *_: pytest.fail("made twice"))
    again = Catalog.open(tmp_path / "catalogue")
    train(again, settings.replace(**{"model.fusion": "mean"}), 1, tmp_path / "two", on_step=lambda *_: None)
    batches = Batches(again, tokenizer_for(again, settings), settings, 0)
    for table in (
        batches.titles.ids,
        batches.query_tokens.ids,
        batches.title_words.ids,
        batches.keywords.ids,
        batches.tables.known,
    ):
        assert isinstance(table, np.memmap)
    kinds = {batches.titles.ids.dtype, batches.keywords.ids.dtype, batches.tables.titles.indices.dtype}
    assert kinds == {np.dtype(np.uint16), np.dtype(np.int32)}


def test_an_epoch_sees_every_click_once(catalog):
    batches = Batches(catalog, tokenizer_for(catalog, tiny()), tiny(), 0)
    steps = -(-len(batches.queries) // 32)
    seen = np.concatenate([batches.rows("pretrain", step)[1] for step in range(steps)])[: len(batches.queries)]
    np.testing.assert_array_equal(np.sort(seen), np.sort(batches.products))


def test_the_learning_rate_warms_up_and_falls():
    shares = [schedule(step, 100, 0.1) for step in range(100)]
    assert shares[0] < shares[5] < shares[9]
    assert max(shares) == pytest.approx(1)
    assert shares[-1] < 0.02


def test_a_backbone_with_weights_of_its_own_learns_at_its_own_rate(catalog):
    settings = tiny(**{"training.learning_rate": 1e-3, "training.backbone_rate": 1e-5})
    model = MakeModel.from_settings(
        settings.model, settings.text, settings.objectives, tokenizer_for(catalog, settings)
    )

    def rate_of(settings, parameter):
        return [
            g["peak"] for g in make_optimizer(model, settings).param_groups if any(p is parameter for p in g["params"])
        ]

    pretrained = settings.replace(**{"model.image_pretrained": True})
    kernel, head = next(model.image_encoder.backbone.parameters()), model.image_encoder.project.weight
    assert rate_of(settings, kernel) == [1e-3]
    assert rate_of(pretrained, kernel) == [1e-5]
    assert rate_of(pretrained, head) == [1e-3]
    assert sum(len(g["params"]) for g in make_optimizer(model, pretrained).param_groups) == len(
        list(model.parameters())
    )


def test_checkpoints_hold_no_pickle(catalog, tmp_path):
    train(catalog, tiny(), 0, tmp_path, on_step=lambda *_: None, stop_after=6)
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["best.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 5
