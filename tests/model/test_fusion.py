"""Fusion: weights, missing modalities, exact splits, shapes, gradients, and that `adaptive` begins as `mean`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makelib.model.encoders import mean_pool
from makelib.model.fusion import make_fusion, masked_softmax
from makelib.settings import FUSIONS

B, L, P, D, d = 5, 7, 4, 16, 8


def fusion(kind):
    torch.manual_seed(0)
    title, image = torch.nn.Linear(D, d), torch.nn.Linear(D, d)
    module = make_fusion(
        kind, width=D, dim=d, heads=2, dropout=0.0, gate_temperature=1.0, project_title=title, project_image=image
    )
    return module, title, image


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
    product = module(*inputs(title, image), torch.ones(B, 2))
    assert product.embedding.shape == (B, d)
    assert torch.allclose(product.embedding.norm(dim=-1), torch.ones(B), atol=1e-5)
    if kind != "joint":
        assert torch.allclose(product.parts.sum(1), product.embedding, atol=1e-6)
        assert torch.allclose(product.weights.sum(1), torch.ones(B))
    else:
        assert product.weights.isnan().all()


@pytest.mark.parametrize("kind", ["mean", "global", "gate", "adaptive"])
def test_a_missing_modality_has_weight_exactly_zero_and_no_influence(kind):
    module, title, image = fusion(kind)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # away from the neutral start
    H_t, mask, H_v, u_t, u_v = inputs(title, image)
    no_image = torch.tensor([[1.0, 0.0]] * B)
    before = module(H_t, mask, H_v, u_t, u_v, no_image)
    assert (before.weights[:, 1] == 0).all()
    after = module(H_t, mask, H_v + 3, u_t, u_v, no_image)
    assert torch.allclose(before.embedding, after.embedding, atol=1e-6)
    no_title = torch.tensor([[0.0, 1.0]] * B)
    assert (module(H_t, mask, H_v, u_t, u_v, no_title).weights[:, 0] == 0).all()


def test_single_modality_contenders_never_look_at_the_other():
    for kind, weight in (("title", [1.0, 0.0]), ("image", [0.0, 1.0])):
        module, title, image = fusion(kind)
        product = module(*inputs(title, image), torch.tensor([[0.0, 0.0], [1, 0], [0, 1], [1, 1], [1, 1]]))
        assert product.weights.tolist() == [weight] * B


@pytest.mark.parametrize("kind", ["global", "gate", "adaptive"])
def test_learned_weights_start_as_the_mean(kind):
    module, title, image = fusion(kind)
    mean, *_ = fusion("mean")
    states = inputs(title, image)
    assert torch.allclose(
        module(*states, torch.ones(B, 2)).embedding, mean(*states, torch.ones(B, 2)).embedding, atol=1e-6
    )


def test_adaptive_without_its_scale_is_gate():
    adaptive, title, image = fusion("adaptive")
    gate, *_ = fusion("gate")
    gate.weigh.load_state_dict(adaptive.weigh.state_dict())
    states = inputs(title, image)
    assert torch.allclose(
        adaptive(*states, torch.ones(B, 2)).embedding, gate(*states, torch.ones(B, 2)).embedding, atol=1e-6
    )
    with torch.no_grad():
        adaptive.cross[0].scale.fill_(1.0)
    assert not torch.allclose(
        adaptive(*states, torch.ones(B, 2)).embedding, gate(*states, torch.ones(B, 2)).embedding, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["adaptive", "joint"])
def test_padding_never_counts(kind):
    module, title, image = fusion(kind)
    if kind == "adaptive":
        with torch.no_grad():
            module.cross[0].scale.fill_(1.0)
            module.cross[1].scale.fill_(1.0)
    H_t, mask, H_v, u_t, u_v = inputs(title, image)
    changed = H_t.clone()
    changed[0, 3:] += 5
    one, two = (module(H, mask, H_v, u_t, u_v, torch.ones(B, 2)).embedding for H in (H_t, changed))
    assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("kind", ["global", "gate", "adaptive", "joint"])
def test_gradients_reach_every_parameter(kind):
    module, title, image = fusion(kind)
    if kind == "adaptive":
        with torch.no_grad():
            module.cross[0].scale.fill_(0.5)
            module.cross[1].scale.fill_(0.5)
    if kind in ("gate", "adaptive"):
        torch.nn.init.normal_(module.weigh.mlp[-1].weight)
    product = module(*inputs(title, image), torch.ones(B, 2))
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
