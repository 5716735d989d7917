"""Fusion: weights, missing modalities, exact splits, shapes, gradients, and that `adaptive` begins as `mean`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makelib.model.encoders import mean_pool
from makelib.model.fusion import make_fusion, masked_softmax
from makelib.model.make import MakeConfig
from makelib.settings import FUSIONS

B, L, P, D, d = 5, 7, 4, 16, 8
CATEGORY = torch.tensor([1, 2, 3, 0, 1])


def config(kind, width=D):
    return MakeConfig(fusion=kind, width=width, dim=d, heads=2, categories=3)


def fusion(kind):
    torch.manual_seed(0)
    title, image = torch.nn.Sequential(torch.nn.Dropout(0.0), torch.nn.Linear(D, d)), torch.nn.Linear(D, d)
    return make_fusion(config(kind), title), title, image


def inputs(title, image, seed=1):
    random = torch.Generator().manual_seed(seed)
    H_t, H_v = torch.randn(B, L, D, generator=random), torch.randn(B, P, D, generator=random)
    mask = torch.ones(B, L, dtype=torch.long)
    mask[0, 3:] = 0
    u_t = torch.nn.functional.normalize(title(mean_pool(H_t, mask)), dim=-1)
    u_v = torch.nn.functional.normalize(image(mean_pool(H_v)), dim=-1)
    return H_t, mask, H_v, u_t, u_v


@pytest.mark.parametrize("kind", FUSIONS)
def test_embeddings_are_unit_length_and_parts_add_up(kind):
    module, title, image = fusion(kind)
    product = module(*inputs(title, image), torch.ones(B, 2), CATEGORY)
    assert product.embedding.shape == (B, d)
    assert torch.allclose(product.embedding.norm(dim=-1), torch.ones(B), atol=1e-5)
    if kind not in ("joint", "single_stream"):
        assert torch.allclose(product.parts.sum(1), product.embedding, atol=1e-6)
        assert torch.allclose(product.weights.sum(1), torch.ones(B))
    else:
        assert product.weights.isnan().all()


@pytest.mark.parametrize("kind", ["mean", "global", "category", "gate", "adaptive"])
def test_a_missing_modality_has_weight_exactly_zero_and_no_influence(kind):
    module, title, image = fusion(kind)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # away from the neutral start
    H_t, mask, H_v, u_t, u_v = inputs(title, image)
    no_image = torch.tensor([[1.0, 0.0]] * B)
    before = module(H_t, mask, H_v, u_t, u_v, no_image, CATEGORY)
    assert (before.weights[:, 1] == 0).all()
    after = module(H_t, mask, H_v + 3, u_t, u_v, no_image, CATEGORY)
    assert torch.allclose(before.embedding, after.embedding, atol=1e-6)
    no_title = torch.tensor([[0.0, 1.0]] * B)
    assert (module(H_t, mask, H_v, u_t, u_v, no_title, CATEGORY).weights[:, 0] == 0).all()


def test_single_modality_contenders_never_look_at_the_other():
    for kind, weight in (("title", [1.0, 0.0]), ("image", [0.0, 1.0])):
        module, title, image = fusion(kind)
        product = module(*inputs(title, image), torch.tensor([[0.0, 0.0], [1, 0], [0, 1], [1, 1], [1, 1]]), CATEGORY)
        assert product.weights.tolist() == [weight] * B


@pytest.mark.parametrize("kind", ["global", "category", "gate", "adaptive", "joint"])
def test_everything_learned_starts_as_the_mean(kind):
    module, title, image = fusion(kind)
    mean, *_ = fusion("mean")
    states = inputs(title, image)
    assert torch.allclose(
        module(*states, torch.ones(B, 2), CATEGORY).embedding,
        mean(*states, torch.ones(B, 2), CATEGORY).embedding,
        atol=1e-6,
    )


def test_a_single_stream_says_nothing_but_what_its_transformer_says():
    """The streams' summaries do not reach it, its first output is no mean, and what is hidden by the masks stays out."""
    module, title, image = fusion("single_stream")
    H_t, mask, H_v, u_t, u_v = inputs(title, image)
    present = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    first = module(H_t, mask, H_v, u_t, u_v, present, CATEGORY).embedding
    assert torch.equal(first, module(H_t, mask, H_v, -u_t, u_v.flip(0), present, CATEGORY).embedding)
    mean, *_ = fusion("mean")
    assert (first * mean(H_t, mask, H_v, u_t, u_v, present, CATEGORY).embedding).sum(1).abs().max() < 0.9
    hidden_t, hidden_v = H_t.clone(), H_v.clone()
    hidden_t[3], hidden_t[0, 3:], hidden_v[2] = 9.0, 9.0, 9.0
    again = module(hidden_t, mask, hidden_v, u_t, u_v, present, CATEGORY).embedding
    assert torch.allclose(first, again, atol=1e-6)
    seen = module(H_t + 0.5, mask, H_v, u_t, u_v, present, CATEGORY).embedding
    assert not torch.allclose(first[0], seen[0], atol=1e-3)


def test_a_single_stream_is_as_wide_as_the_encoders_and_what_joint_adds_is_not():
    single, joint = (make_fusion(config(kind, width=128), torch.nn.Identity()) for kind in ("single_stream", "joint"))
    assert single.cls.shape[-1] == 128
    assert joint.cls.shape[-1] == 64


def test_a_weight_per_category_is_that_of_the_category():
    module, title, image = fusion("category")
    with torch.no_grad():
        module.weigh.logits.copy_(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 1.0]]))
    weights = module(*inputs(title, image), torch.ones(B, 2), CATEGORY).weights
    assert torch.equal(weights, module.weigh.logits.softmax(-1)[CATEGORY])


def test_words_count_as_their_photograph_says():
    """With a word that agrees with the photograph scored high, the title's summary is that word."""
    module, title, image = fusion("adaptive")
    H_t, mask, H_v, u_t, u_v = inputs(title, image)
    with torch.no_grad():  # score = the word's cosine with the photograph, sharpened
        for parameter in module.words.parameters():
            parameter.zero_()
        module.words.match.weight[0] = 20.0
        module.words.score.weight[0, 0] = 1.0
    words = torch.nn.functional.normalize(title(H_t), dim=-1)
    weights = module.words(title[-1](H_t[mask > 0]), torch.arange(int(mask.sum())), mask, u_v)
    agreement = torch.einsum("bld,bd->bl", words, u_v).masked_fill(mask == 0, -1)
    assert (weights.argmax(1) == agreement.argmax(1)).all()
    assert (weights[mask == 0] == 0).all()
    blind = module(H_t, mask, H_v, u_t, u_v, torch.tensor([[1.0, 0.0]] * B), CATEGORY).embedding
    assert torch.allclose(blind, u_t, atol=1e-5)  # without the photograph all words count alike here


def test_words_weigh_what_one_network_on_word_image_and_their_product_says():
    """Slow and obvious: each word of each title joined with its photograph, one after the other."""
    module, title, image = fusion("adaptive")
    words, (H_t, mask, _, _, u_v) = module.words, inputs(title, image)
    with torch.no_grad():
        for parameter in words.parameters():
            parameter.normal_()
    joint = torch.cat([words.word.weight, words.image.weight, words.match.weight], dim=1)
    expected = torch.zeros(mask.shape)
    for product in range(B):
        scores = {}
        for place in mask[product].nonzero()[:, 0].tolist():
            word = torch.nn.functional.normalize(title[-1](H_t[product, place]), dim=-1)
            evidence = torch.cat([word * d**0.5, u_v[product] * d**0.5, word * u_v[product] * d])
            scores[place] = words.score(torch.nn.functional.gelu(joint @ evidence + words.word.bias))
        for place, weight in zip(scores, torch.cat([*scores.values()]).softmax(0), strict=True):
            expected[product, place] = weight
    weights = words(title[-1](H_t[mask > 0]), torch.arange(int(mask.sum())), mask, u_v)
    assert torch.allclose(weights, expected, atol=1e-5)
    alone = module(H_t, mask, torch.zeros(B, P, D), torch.zeros(B, d), u_v, torch.ones(B, 2), CATEGORY)
    summary = title((expected[..., None] * H_t).sum(dim=1))
    assert torch.allclose(alone.parts[:, 0], _part(module, summary, u_v), atol=1e-5)


def _part(module, title_summary, u_v):
    """The title's part of an embedding, from its summary."""
    u_t = torch.nn.functional.normalize(title_summary, dim=-1)
    w = module.weigh(u_t, u_v, torch.ones(B, 2), CATEGORY)
    return w[:, :1] * u_t / (w[:, :1] * u_t + w[:, 1:] * u_v).norm(dim=-1, keepdim=True)


def test_words_of_a_bag_are_looked_at_once_and_count_as_before():
    """Said that equal words have equal states, embeddings and gradients are those of every word for itself."""
    module, title, image = fusion("adaptive")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    _, mask, H_v, _, u_v = inputs(title, image)
    ids = torch.randint(0, 6, mask.shape, generator=torch.Generator().manual_seed(3))
    assert len(ids[mask > 0].unique()) < mask.sum()
    found = []
    for known in (None, ids):
        vectors = torch.nn.Embedding(6, D, _weight=torch.linspace(-1, 1, 6 * D).view(6, D).sin())
        H_t, seen = vectors(ids), u_v.detach().clone().requires_grad_()
        u_t = torch.nn.functional.normalize(title(mean_pool(H_t, mask)), dim=-1)
        product = module(H_t, mask, H_v, u_t, seen, torch.ones(B, 2), CATEGORY, known)
        wanted = [vectors.weight, seen, *title.parameters(), *module.words.parameters()]
        found.append([product.embedding, *torch.autograd.grad(product.embedding[:, 0].sum(), wanted)])
    for each, once in zip(*found, strict=True):
        assert torch.allclose(each, once, atol=1e-6)
        assert once.abs().sum() > 0


def test_only_what_stands_alone_is_mapped():
    module, title, image = fusion("adaptive")
    states = inputs(title, image)
    present = torch.tensor([[1.0, 1], [1, 0], [0, 1], [1, 1], [1, 0]])
    before = module(*states, present, CATEGORY).embedding
    with torch.no_grad():
        for each in module.alone.maps:
            torch.nn.init.normal_(each.weight)
    after = module(*states, present, CATEGORY)
    changed = (before - after.embedding).abs().amax(1) > 1e-3
    assert changed.tolist() == [False, True, True, False, True]
    assert torch.allclose(after.embedding.norm(dim=-1), torch.ones(B), atol=1e-5)
    assert after.weights[1].tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["adaptive", "joint"])
def test_padding_never_counts(kind):
    module, title, image = fusion(kind)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # away from the neutral start
    H_t, mask, H_v, u_t, u_v = inputs(title, image)
    changed = H_t.clone()
    changed[0, 3:] += 5
    one, two = (module(H, mask, H_v, u_t, u_v, torch.ones(B, 2), CATEGORY).embedding for H in (H_t, changed))
    assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("kind", ["global", "category", "gate", "adaptive", "joint"])
def test_gradients_reach_every_parameter(kind):
    module, title, image = fusion(kind)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    product = module(*inputs(title, image), torch.tensor([[1.0, 1], [1, 0], [0, 1], [1, 1], [1, 1]]), CATEGORY)
    (product.embedding * torch.randn(B, d)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.booleans(), st.booleans()), min_size=1, max_size=6
    )
)
def test_masked_softmax_is_always_a_distribution(rows):
    logits = torch.tensor([[a, b] for a, b, *_ in rows])
    present = torch.tensor([[float(t), float(v)] for *_, t, v in rows])
    weights = masked_softmax(logits, present)
    assert torch.allclose(weights.sum(1), torch.ones(len(rows)))
    assert (weights >= 0).all()
    either = present.any(dim=1, keepdim=True)
    assert (weights[(present == 0) & either] == 0).all()


def test_mean_pool_equals_a_loop():
    states, mask = torch.randn(3, 5, 2), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 0, 0]])
    for i in range(3):
        rows = [states[i, j] for j in range(5) if mask[i, j]]
        assert torch.allclose(mean_pool(states, mask)[i], torch.stack(rows).mean(0), atol=1e-6)
