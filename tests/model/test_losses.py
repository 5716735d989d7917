"""Objectives against slow, obvious reference code; masks, gradients and the traps that docs/method.md lists.

Checked: equality with loops, another positive stays out of the denominator, masks in both directions, finiteness in half
precision, the direction of each gradient, and that each setting switches exactly the term that it names.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makelib.model.losses import contrast, distillation, gate_entropy, info_nce, matching, objectives
from makelib.settings import Keywords, Objectives


def unit(rows, width, seed):
    return torch.nn.functional.normalize(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def masks(size, seed):
    random = np.random.default_rng(seed)
    positives = np.eye(size, dtype=bool) | (random.random((size, size)) < 0.1)
    negatives = ~positives & (random.random((size, size)) < 0.8)
    return torch.from_numpy(positives), torch.from_numpy(negatives)


def slow_info_nce(logits, positives, negatives):
    rows = []
    for i in range(len(logits)):
        terms = []
        for k in range(len(logits[i])):
            if positives[i][k]:
                denominator = math.exp(logits[i][k])
                for j in range(len(logits[i])):
                    if negatives[i][j]:
                        denominator += math.exp(logits[i][j])
                terms.append(-math.log(math.exp(logits[i][k]) / denominator))
        if terms:
            rows.append(sum(terms) / len(terms))
    return sum(rows) / len(rows) if rows else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(0, 10_000))
def test_info_nce_equals_the_loop(size, seed):
    logits = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) * 3
    positives, negatives = masks(size, seed)
    expected = slow_info_nce(logits.tolist(), positives.tolist(), negatives.tolist())
    assert info_nce(logits, positives, negatives).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_with_one_positive_and_all_negatives_it_is_cross_entropy():
    logits = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) * 5
    own = torch.eye(8, dtype=torch.bool)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(8))
    assert torch.allclose(info_nce(logits, own, ~own), expected, atol=1e-5)


def test_another_positive_never_pushes():
    logits = torch.zeros(3, 3, requires_grad=True)
    positives = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    info_nce(logits, positives, ~positives).backward()
    assert logits.grad[0, 1] < 0  # drawn nearer, not pushed away
    assert logits.grad[0, 2] > 0


def test_a_pair_that_is_neither_gets_no_gradient():
    logits = torch.zeros(3, 3, requires_grad=True)
    own = torch.eye(3, dtype=torch.bool)
    negatives = ~own
    negatives[0, 1] = False
    info_nce(logits, own, negatives).backward()
    assert logits.grad[0, 1] == 0
    assert logits.grad[0, 2] != 0


def test_both_directions_use_the_mask():
    q, p = unit(4, 5, 0), unit(4, 5, 1)
    positives, negatives = masks(4, 3)
    scale = torch.tensor(7.0)
    logits = scale * q @ p.T
    there = slow_info_nce(logits.tolist(), positives.tolist(), negatives.tolist())
    back = slow_info_nce(logits.T.tolist(), positives.T.tolist(), negatives.T.tolist())
    assert contrast(q, p, scale, positives, negatives).item() == pytest.approx((there + back) / 2, rel=1e-4)


def test_margin_hard_negatives_and_popularity_equal_the_loop():
    q, p, hard = unit(4, 5, 0), unit(4, 5, 1), unit(4, 5, 2)
    own = torch.eye(4, dtype=torch.bool)
    scale, margin, popularity = 9.0, 0.2, torch.tensor([-1.0, -2.0, -3.0, -4.0])
    cosine = (q @ p.T).tolist()
    there = []
    for i in range(4):
        positive = math.exp(scale * (cosine[i][i] - margin))
        total = positive + math.exp(scale * float(q[i] @ hard[i]))
        total += sum(math.exp(scale * cosine[i][j] - popularity[j].item()) for j in range(4) if j != i)
        there.append(-math.log(positive / total))
    back = []
    for j in range(4):
        positive = math.exp(scale * (cosine[j][j] - margin))
        back.append(-math.log(positive / (positive + sum(math.exp(scale * cosine[i][j]) for i in range(4) if i != j))))
    expected = (sum(there) / 4 + sum(back) / 4) / 2
    got = contrast(q, p, torch.tensor(scale), own, ~own, margin=margin, log_popularity=popularity, hard=hard)
    assert got.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_empty_rows_stay_finite(dtype):
    logits = (torch.randn(4, 4) * 60).to(dtype).requires_grad_()
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    loss = info_nce(logits, torch.eye(4, dtype=torch.bool), nothing)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 0
    assert torch.isfinite(logits.grad).all()
    assert info_nce(logits, nothing, ~nothing).item() == 0


def test_distillation_is_the_divergence_and_trains_only_the_student():
    teacher = torch.randn(3, 4, requires_grad=True)
    student = torch.randn(3, 4, requires_grad=True)
    everything = torch.ones(3, 4, dtype=torch.bool)
    loss = distillation(teacher, student, everything)
    P, Q = teacher.softmax(1), student.softmax(1)
    assert loss.item() == pytest.approx((P * (P / Q).log()).sum(1).mean().item(), rel=1e-4)
    loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert distillation(student, student, everything).item() == pytest.approx(0, abs=1e-6)


def test_matching_starts_at_its_prior_and_skips_rows_that_lack_a_modality():
    assert matching(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool)).item() == pytest.approx(math.log(2))
    logits = torch.tensor([[5.0, -5.0], [-9.0, 9.0]])
    assert matching(logits, torch.tensor([True, False])).item() == pytest.approx(math.log1p(math.exp(-5)), rel=1e-4)
    assert matching(logits, torch.tensor([False, False])).item() == 0


def test_gate_entropy_is_zero_for_an_even_batch_and_large_for_a_collapsed_one():
    both = torch.ones(4, dtype=torch.bool)
    split = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2)  # decided products, even on average
    assert gate_entropy(split, both).item() == pytest.approx(0, abs=1e-6)
    assert gate_entropy(torch.tensor([[1.0, 0.0]] * 4), both).item() == pytest.approx(math.log(2), abs=1e-4)
    assert gate_entropy(split, ~both).item() == 0


def features_and_batch(size=6):
    own = torch.eye(size, dtype=torch.bool)
    present = torch.ones(size, 2)
    present[0, 1] = 0
    features = {name: unit(size, 8, seed) for seed, name in enumerate(("q", "p", "u_t", "u_v", "q_plus"))}
    features |= {
        "w": torch.full((size, 2), 0.5),
        "scale": torch.tensor(10.0),
        "title_image_logits": torch.randn(size, 2),
        "query_product_logits": torch.randn(size, 2),
        "word_loss": torch.tensor([9.0]),
    }
    batch = {
        "positives": own, "negatives": ~own, "present": present, "valid": present.all(dim=1),
        "log_popularity": torch.randn(size), "masked_count": 5,
    }  # fmt: skip
    return features, batch


ALL = Objectives(title_image_matching=0.1, query_product_matching=0.1, masked_language=0.1)
SWITCHES = ["query_product", "title_image", "query_image", "keyword_enhanced", "distillation", "gate_entropy"]


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_weight_switches_exactly_its_term(switch):
    features, batch = features_and_batch()
    everything = objectives(features, batch, ALL, Keywords(), fusion="adaptive")
    without = objectives(features, batch, dataclasses.replace(ALL, **{switch: 0.0}), Keywords(), fusion="adaptive")
    assert set(everything) - set(without) == {switch}
    assert all(torch.equal(everything[name], without[name]) for name in without)


def test_a_single_modality_has_no_cross_modal_terms():
    features, batch = features_and_batch()
    del features["title_image_logits"]
    title = objectives(features, batch, ALL, Keywords(), fusion="title")
    assert not {"title_image", "query_image", "gate_entropy"} & set(title)
    assert "query_image" in objectives(features, batch, ALL, Keywords(), fusion="image")


def test_rows_without_an_image_are_no_part_of_image_terms():
    features, batch = features_and_batch()
    before = objectives(features, batch, ALL, Keywords(), fusion="mean")
    features["u_v"] = features["u_v"].clone()
    features["u_v"][0] = unit(1, 8, 99)[0]
    after = objectives(features, batch, ALL, Keywords(), fusion="mean")
    assert torch.equal(before["query_image"], after["query_image"])
    assert torch.equal(before["title_image"], after["title_image"])


def test_detached_products_learn_nothing_from_keywords():
    features, batch = features_and_batch()
    for detach in (False, True):
        features["p"] = unit(6, 8, 1).requires_grad_()
        only = Objectives(
            query_product=0, title_image=0, query_image=0, distillation=0, gate_entropy=0, keyword_enhanced=1
        )
        features["q_plus"] = unit(6, 8, 4).requires_grad_()
        objectives(features, batch, only, Keywords(detach_product=detach), fusion="mean")["keyword_enhanced"].backward()
        assert (features["p"].grad is None) == detach
        assert features["q_plus"].grad.abs().sum() > 0


def test_the_entropy_term_decays_to_nothing():
    features, batch = features_and_batch()
    features["w"] = torch.tensor([[0.9, 0.1]] * 6)
    values = [
        objectives(features, batch, ALL, Keywords(), fusion="gate", progress=x).get("gate_entropy")
        for x in (0.0, 0.5, 1.0)
    ]
    assert values[0] == pytest.approx(2 * values[1].item())
    assert values[2] is None
