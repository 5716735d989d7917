"""Validation over a catalogue of any size: shard by shard it says what all products at once say."""

import numpy as np
import pytest
import torch

from makelib.data.sources.bazaar.world import generate
from makelib.data.tokens import tokenizer_for
from makelib.model import training
from makelib.model.batches import encoded
from makelib.model.make import MakeModel
from makelib.settings import Bazaar, preset


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    return generate(Bazaar(products=500, queries=300, clicks=3000), tmp_path_factory.mktemp("small") / "bazaar")


@pytest.mark.parametrize("shard", [7, 100, 16384])
def test_shards_say_what_all_products_at_once_say(shard, small_world, monkeypatch):
    settings = preset("smoke").replace(**{"model.width": 32, "model.dim": 32})
    torch.manual_seed(0)
    tokenizer = tokenizer_for(small_world, settings)
    model = MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer).eval()
    rows = small_world.query_rows("validation")
    rows = np.random.default_rng(0).permutation(rows)[: settings.evaluation.validation_queries]
    products = encoded(model, small_world, slice(0, len(small_world))).embedding
    queries = model.encode_queries(small_world.queries["query"].iloc[rows].tolist())
    best = np.argsort(-(queries @ products.T), axis=1)[:, :100]
    full = small_world.relevance(rows) >= 1
    expected = (np.take_along_axis(full, best, axis=1).sum(axis=1) / full.sum(axis=1))[full.any(axis=1)].mean()
    monkeypatch.setattr(training, "SHARD", shard)
    assert training.validation_recall(model, small_world, settings) == pytest.approx(expected, abs=2e-3)
