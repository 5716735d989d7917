"""MakeModel: shapes, masks, missing modalities, gradients, and a round trip through a folder that loses nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makelib.data.text import train_tokenizer
from makelib.model.encoders import ImagePool
from makelib.model.make import MakeModel, further_of
from makelib.model.matching import sampled
from makelib.runtime import UserError
from makelib.settings import FUSIONS, preset

TITLES = ["red striped dress", "blue leather shoe", "", "steel kettle 2 l", "acme charger"]
HEADS = {
    "objectives.title_image_matching": 0.1,
    "objectives.query_product_matching": 0.1,
    "objectives.masked_language": 0.1,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TITLES * 4, 400)


def make(tokenizer, fusion="adaptive", **changes):
    chosen = preset("smoke").replace(**{"model.fusion": fusion, "model.width": 32, "model.dim": 16, **changes})
    torch.manual_seed(0)
    return MakeModel.from_settings(chosen.model, chosen.text, chosen.objectives, tokenizer).eval()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 255, (len(TITLES), 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_everything_returns_from_a_folder(fusion, tokenizer, pixels, tmp_path):
    model = make(tokenizer, fusion, **HEADS)
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model would hide what is not saved
            parameter.add_(0.05 * torch.randn_like(parameter))
    has_image = np.array([True, False, True, True, True])
    model.save_pretrained(tmp_path / fusion)
    again = MakeModel.from_pretrained(tmp_path / fusion)
    assert again.fingerprint() == model.fingerprint()
    for one, two in zip(
        vars(model.encode_products(TITLES, pixels, has_image)).values(),
        vars(again.encode_products(TITLES, pixels, has_image)).values(),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_allclose(model.encode_queries(["red dress"]), again.encode_queries(["red dress"]), atol=1e-6)
    assert not list((tmp_path / fusion).glob("*.bin")), "weights are safetensors, never pickles"


@pytest.mark.parametrize("layers", [0, 1])
def test_word_embeddings_are_shared_and_stay_shared(layers, tokenizer, tmp_path):
    model = make(tokenizer, **{"model.text_layers": layers})
    model.save_pretrained(tmp_path / "m")
    for each in (model, MakeModel.from_pretrained(tmp_path / "m")):
        words = [side.backbone.get_input_embeddings().weight for side in (each.query_encoder, each.title_encoder)]
        assert words[0] is words[1] or words[0].data_ptr() == words[1].data_ptr()


@pytest.mark.parametrize("layers", [0, 1])
def test_one_text_encoder_for_both_sides_is_one_and_returns_as_one(layers, tokenizer, pixels, tmp_path):
    changes = {"model.text_layers": layers, "model.shared_text": True}
    model, apart = make(tokenizer, **changes), make(tokenizer, **changes | {"model.shared_text": False})
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, apart)]
    own = sum(p.numel() for n, p in apart.named_parameters() if n.startswith(("title_encoder", "title_project")))
    assert sizes[1] - sizes[0] == own > 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "m")
    again = MakeModel.from_pretrained(tmp_path / "m")
    assert again.fingerprint() == model.fingerprint()
    for each in (model, again):
        query = each.query_states(torch.tensor([[5, 6]]), torch.ones(1, 2))
        assert torch.equal(query, each.title_encoder(torch.tensor([[5, 6]]), torch.ones(1, 2)))


def test_without_layers_a_text_is_a_bag_of_words(tokenizer):
    bag, layer = (make(tokenizer, **{"model.text_layers": layers}) for layers in (0, 1))
    one, two = (np.array([m.encode_queries([text])[0] for text in ("red dress", "dress red")]) for m in (bag, layer))
    np.testing.assert_allclose(one[0], one[1], atol=1e-6)
    assert np.abs(two[0] - two[1]).max() > 1e-3
    assert sum(p.numel() for p in bag.query_encoder.parameters()) == len(tokenizer) * 32


def test_entries_of_a_summary_are_hidden_in_training_only(tokenizer):
    model = make(tokenizer, **{"model.summary_dropout": 0.5})
    ids, mask = torch.tensor([[1, 40, 41]]), torch.ones(1, 3, dtype=torch.long)
    states = torch.randn(1, 4, 32)

    def summaries():
        return [model.query(ids, mask), *model.summaries(states, torch.ones(1, 4), states)]

    assert all(torch.equal(one, two) for one, two in zip(summaries(), summaries(), strict=True))
    model.train()
    assert not any(torch.equal(one, two) for one, two in zip(summaries(), summaries(), strict=True))


def test_encoding_does_not_depend_on_the_batch(tokenizer, pixels):
    model = make(tokenizer).train()  # and dropout or batch statistics are off while encoding
    has_image = np.ones(len(TITLES), bool)
    together = model.encode_products(TITLES, pixels, has_image).embedding
    one_by_one = model.encode_products(TITLES, pixels, has_image, batch_size=1).embedding
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    assert model.training


def test_encoding_leaves_every_module_in_the_mode_that_it_found(tokenizer, pixels):
    model = make(tokenizer).eval()
    queries, products = (
        model.encode_queries(["red dress"]),
        model.encode_products(["red dress"], pixels[:1], np.ones(1, bool)),
    )
    model.query_project.train()
    model.image_project.train()
    before = [module.training for module in model.modules()]
    np.testing.assert_array_equal(model.encode_queries(["red dress"]), queries)
    again = model.encode_products(["red dress"], pixels[:1], np.ones(1, bool))
    np.testing.assert_array_equal(again.embedding, products.embedding)
    assert [module.training for module in model.modules()] == before


def test_products_never_depend_on_queries(tokenizer, pixels):
    model = make(tokenizer, **{"model.text_layers": 1})
    before = model.encode_products(TITLES, pixels, np.ones(len(TITLES), bool)).embedding
    with torch.no_grad():
        for parameter in {*model.query_encoder.parameters(), *model.query_project.parameters()}:
            if parameter is not model.title_encoder.backbone.get_input_embeddings().weight:
                parameter.zero_()
    np.testing.assert_allclose(
        before, model.encode_products(TITLES, pixels, np.ones(len(TITLES), bool)).embedding, atol=1e-6
    )


def test_missing_modalities(tokenizer, pixels):
    model = make(tokenizer)
    vectors = model.encode_products(TITLES, pixels, np.array([True, False, True, False, True]))
    assert vectors.weights[1, 1] == 0
    assert vectors.weights[2, 0] == 0  # the empty title
    assert np.isfinite(vectors.embedding).all()
    other = pixels.copy()
    other[1] = 255 - other[1]
    again = model.encode_products(TITLES, other, np.array([True, False, True, False, True]))
    np.testing.assert_allclose(again.embedding[1], vectors.embedding[1], atol=1e-6)


def test_empty_input(tokenizer, pixels):
    model = make(tokenizer)
    assert model.encode_queries([]).shape == (0, 16)
    assert model.encode_products([], pixels[:0], np.zeros(0, bool)).parts.shape == (0, 2, 16)


def test_errors_say_how_to_mend(tokenizer, tmp_path):
    with pytest.raises(UserError, match="holds no makelib model"):
        MakeModel.from_pretrained(tmp_path)
    model = make(tokenizer)
    model.tokenizer = None
    with pytest.raises(UserError, match="no tokenizer"):
        model.encode_queries(["red"])


def test_backbones_by_name_start_from_their_weights(tokenizer, tmp_path):
    """A small copy of the layout that a hub has, on disk: nothing is downloaded."""
    donor = make(tokenizer, "title", **{"model.text_layers": 1})
    donor.query_encoder.backbone.save_pretrained(tmp_path / "bert")
    model = make(tokenizer, "title", **{"model.text_backbone": str(tmp_path / "bert"), "model.width": 16})
    for side in (model.query_encoder, model.title_encoder):
        want = donor.query_encoder.backbone.state_dict()["encoder.layer.0.attention.self.query.weight"]
        assert torch.equal(side.backbone.state_dict()["encoder.layer.0.attention.self.query.weight"], want)
    assert model.encode_queries(["red dress"]).shape == (1, 16)
    assert model.encode_queries([]).shape == (0, 16)


def test_hard_negatives_follow_similarity_and_never_the_mask():
    torch.manual_seed(0)
    logits = torch.tensor([[9.0, 3.0, 8.0, -5.0]] * 4)
    negatives = torch.ones(4, 4, dtype=torch.bool)
    negatives[:, 0] = False  # the nearest is a false negative
    drawn = torch.stack([sampled(logits, negatives, torch.rand(4)) for _ in range(200)])
    assert (drawn != 0).all()
    assert (drawn == 2).float().mean() > 0.9
    assert sampled(logits, torch.zeros(4, 4, dtype=torch.bool), torch.rand(4)).tolist() == [1, 2, 3, 0]


# -- several photographs of one product -------------------------------------------------------------------------------


def test_image_pool_equals_a_loop_over_products():
    """Softmax over a product's own photographs, whatever their order in the batch."""
    torch.manual_seed(0)
    pool = ImagePool(6)
    torch.nn.init.normal_(pool.key)
    states, owner = torch.randn(3 + 4, 5, 6), torch.tensor([2, 0, 2, 2])
    for product, places in ((0, [0, 4]), (1, [1]), (2, [2, 3, 5, 6])):
        own = states[places]  # (k, P, D)
        weights = torch.softmax(own.mean(dim=1) @ pool.key, dim=0)
        expected = sum(weight * patches for weight, patches in zip(weights, own, strict=True))
        torch.testing.assert_close(pool(states, owner)[product], expected)


def test_one_photograph_passes_through_untouched():
    pool = ImagePool(6)
    torch.nn.init.normal_(pool.key)
    states = torch.randn(4, 5, 6)
    assert pool(states, torch.zeros(0, dtype=torch.int64)) is states
    assert torch.equal(pool(states, torch.tensor([2]))[:2], states[:2])  # also beside a product that has two


def test_image_pool_starts_as_the_mean_and_learns_which_to_look_at():
    pool = ImagePool(2)
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # one product, two photographs of one patch
    owner = torch.tensor([0])
    torch.testing.assert_close(pool(states, owner), torch.tensor([[[0.5, 0.5]]]))
    optimizer = torch.optim.SGD(pool.parameters(), lr=5.0)
    for _ in range(50):
        loss = (pool(states, owner) - torch.tensor([0.0, 1.0])).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert pool(states, owner)[0, 0, 1] > 0.95


@pytest.mark.parametrize("fusion", FUSIONS)
def test_further_photographs_count_for_their_own_product_only(fusion, tokenizer, pixels):
    model, has_image = make(tokenizer, fusion), np.ones(len(TITLES), bool)
    further = pixels[::-1][:3], np.array([1, 1, 4])
    alone = model.encode_products(TITLES, pixels, has_image)
    nothing = model.encode_products(TITLES, pixels, has_image, (further[0][:0], further[1][:0]))
    np.testing.assert_array_equal(nothing.embedding, alone.embedding)
    several = model.encode_products(TITLES, pixels, has_image, further)
    changed = np.abs(several.embedding - alone.embedding).max(axis=1) > 1e-4
    assert changed.tolist() == [False, model.sees_image, False, False, model.sees_image]
    for batch_size in (1, 2):
        pieces = model.encode_products(TITLES, pixels, has_image, further, batch_size=batch_size)
        np.testing.assert_allclose(pieces.embedding, several.embedding, atol=1e-5)
    twice = model.encode_products(TITLES, pixels, has_image, (pixels, np.arange(len(TITLES))))
    np.testing.assert_allclose(
        twice.embedding, alone.embedding, atol=1e-5
    )  # the same photograph again says nothing new


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(-1, 5), min_size=1, max_size=8))
def test_each_row_has_its_own_further_photographs(owners, rows):
    owners = np.sort(np.array(owners, dtype=np.int64))
    places, owner = further_of(owners, np.array(rows))
    expected = [(place, int(k)) for place, row in enumerate(rows) for k in np.flatnonzero(owners == row)]
    assert list(zip(owner.tolist(), places.tolist(), strict=True)) == expected
