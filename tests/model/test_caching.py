"""Gradient caching: the gradient is that of the whole batch, for every fusion and every objective, with the real model.

In double precision, where nothing but the formula can differ.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_training import tiny, toy

from makelib.data.tokens import tokenizer_for
from makelib.model import caching, losses
from makelib.model.batches import Batches
from makelib.model.frozen import pictures
from makelib.model.losses import finetuning, objectives, total
from makelib.model.make import MakeModel
from makelib.model.training import train, whole
from makelib.ranks import accelerator
from makelib.runtime import UserError
from makelib.settings import FUSIONS

ALL = {
    "objectives.title_image_matching": 0.2, "objectives.query_product_matching": 0.2, "objectives.masked_language": 0.2,
    "objectives.popularity_correction": True, "objectives.margin": 0.1, "training.modality_dropout": 0.3, "training.word_dropout": 0.1,
    "training.batch_size": 45, "model.image_frozen": True, "model.summary_dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("toy") / "catalogue")


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradients(catalog, backward, stage="pretrain", **changes):
    """Terms, gradients by name and the rest, of one batch with a fresh model (the same every time)."""
    settings = tiny(**{**ALL, **changes})
    tokenizer = tokenizer_for(catalog, settings)
    torch.manual_seed(0)
    model = MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer, 3)
    for parameter in model.parameters():  # what starts at zero would hide what follows it
        parameter.data += 0.05 * parameter.requires_grad * torch.randn_like(parameter)
    shown, _, further = pictures(catalog, model)
    batches = Batches(catalog, tokenizer, settings, 0, (shown, further))
    batches.mined = np.random.default_rng(0).integers(0, len(catalog), (len(catalog.queries), 5))
    weights = settings.objectives if stage == "pretrain" else finetuning(settings.objectives)
    run = SimpleNamespace(settings=settings, model=model, wrapped=model.train(), accelerator=accelerator("fp32"))
    terms, features, masked = backward(run, batches(stage, 0), weights, 0.25, np.random.SeedSequence(3))
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return terms, found, (features["w"].mean(), features["scale"], masked)


def assert_same(one, other, tolerance=1e-6):
    """`tolerance`: weights w, and all that they reach, are in single precision where a fusion has some that are learned."""
    assert one[0].keys() == other[0].keys()
    for name, term in one[0].items():
        assert torch.allclose(term, other[0][name], rtol=tolerance, atol=tolerance / 100), name
    assert {name for name, tensor in one[1].items() if tensor is None} == {
        name for name, tensor in other[1].items() if tensor is None
    }
    for name, tensor in one[1].items():
        assert tensor is None or torch.allclose(tensor, other[1][name], rtol=tolerance, atol=tolerance / 10), name
    assert all(torch.allclose(a, b, equal_nan=True) for a, b in zip(one[2], other[2], strict=True))


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_gradient_is_that_of_the_whole_batch(catalog, fusion, stage, monkeypatch):
    """Pieces of 7 rows, losses of 5 rows at a time: neither divides the batch."""
    monkeypatch.setattr(caching, "PAIRS", 5 * 45)
    plain = gradients(catalog, whole, stage, **{"model.fusion": fusion})
    cached = gradients(catalog, caching.backward, stage, **{"model.fusion": fusion, "training.chunk": 7})
    assert_same(plain, cached, 1e-9 if fusion in ("title", "image", "mean", "joint") else 1e-6)
    assert sum(tensor is not None and bool(tensor.any()) for tensor in plain[1].values()) > 5


@pytest.mark.parametrize(
    "changes",
    [
        {
            "model.text_layers": 1,
            "model.image_frozen": False,
            "model.image_backbone": "test_convnext.r160_in1k",
            "model.image_levels": (0, 1),
        },
        {"keywords.detach_product": True, "keywords.enrichment": True},
        {"keywords.enrichment": False, "objectives.query_product_matching": 0.0},
        {"keywords.false_negatives": "raw", "objectives.title_image_matching": 0.0, "objectives.masked_language": 0.0},
    ],
)
def test_the_same_with_layers_a_tower_that_learns_and_fewer_objectives(catalog, changes):
    plain = gradients(catalog, whole, **changes)
    assert_same(plain, gradients(catalog, caching.backward, **changes, **{"training.chunk": 16}))


def test_single_precision_is_as_good_as_single_precision_can_be(catalog):
    torch.set_default_dtype(torch.float32)
    plain, cached = gradients(catalog, whole), gradients(catalog, caching.backward, **{"training.chunk": 8})
    for name, tensor in plain[1].items():
        assert tensor is None or (tensor - cached[1][name]).abs().max() < 1e-5, name


def test_what_dropout_hides_is_hidden_again(catalog):
    """The gradient equals that of features which were computed in the same pieces, with a graph, from the same random states."""
    dropout = {"model.summary_dropout": 0.4, "model.dropout": 0.3, "model.text_layers": 1, "model.fusion": "joint"}
    no_heads = {"objectives.title_image_matching": 0.0, "objectives.query_product_matching": 0.0}
    seen = []

    def pieces(run, batch, weights, done, seed):
        (inputs, pairs), chunk, parts = batch, 16, []
        for turn, state in enumerate(seed.generate_state(3)):
            torch.manual_seed(int(state))
            rows = slice(turn * chunk, min((turn + 1) * chunk, len(inputs["present"])))
            parts.append(run.model.features(caching._rows_of(inputs, rows), weights))
        features = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "scale"}
        features["scale"] = parts[0]["scale"]
        seen.append(features["q"])
        terms = objectives(features, pairs, weights, run.settings.keywords, fusion="joint", progress=done)
        total(terms, weights).backward()
        return terms, features, (~pairs["negatives"]).sum()

    plain = gradients(catalog, pieces, **dropout, **no_heads)
    assert_same(plain, gradients(catalog, caching.backward, **dropout, **no_heads, **{"training.chunk": 16}))
    still = gradients(catalog, pieces, **no_heads, **{"model.text_layers": 1, "model.fusion": "joint"})
    assert not torch.allclose(seen[0], seen[1]), "dropout hides something"
    assert still[0].keys() == plain[0].keys()


@pytest.mark.parametrize(
    ("B", "columns"), [(16, slice(None)), (21, slice(3, 20)), (9, slice(8, 9)), (64, slice(8, 24))]
)
def test_masks_survive_as_bits(B, columns):
    mask = np.random.default_rng(0).random((11, B)) < 0.4
    bits = torch.from_numpy(np.packbits(mask, axis=1))
    assert bits.shape == (11, -(-B // 8))
    np.testing.assert_array_equal(caching.unpacked(bits, B, columns).numpy(), mask[:, columns])


def test_no_array_of_the_losses_is_as_large_as_the_batch_squared(catalog, monkeypatch):
    """The masks are bits, and the losses see a few rows at a time."""
    monkeypatch.setattr(caching, "PAIRS", 4 * 45)
    seen, kernel = [], losses.info_nce
    monkeypatch.setattr(
        losses,
        "info_nce",
        lambda logits, *rest, **more: seen.append(tuple(logits.shape)) or kernel(logits, *rest, **more),
    )
    gradients(catalog, caching.backward, **{"training.chunk": 9})
    assert max(rows for rows, _ in seen) == 4
    assert {columns for _, columns in seen} == {45}


def test_a_training_in_pieces_resumes_to_the_same_weights(catalog, tmp_path):
    torch.set_default_dtype(torch.float32)
    settings = tiny(
        **{
            **ALL,
            "training.chunk": 10,
            "training.batch_size": 32,
            "model.summary_dropout": 0.3,
            "training.finetune_steps": 4,
        }
    )
    whole = train(catalog, settings, 0, tmp_path / "whole", on_step=lambda *_: None)
    train(catalog, settings, 0, tmp_path / "killed", on_step=lambda *_: None, stop_after=8)
    assert (
        train(catalog, settings, 0, tmp_path / "killed", on_step=lambda *_: None).fingerprint() == whole.fingerprint()
    )


def test_batch_norms_that_learn_are_not_cut_into_pieces(catalog, tmp_path):
    settings = tiny(**{"training.chunk": 8})
    with pytest.raises(UserError, match=r"training.chunk would cut the batch norms of test_resnet.r160_in1k"):
        train(catalog, settings, 0, tmp_path, on_step=lambda *_: None)
    train(
        catalog,
        settings.replace(**{"model.fusion": "title", "training.steps": 1}),
        0,
        tmp_path / "title",
        on_step=lambda *_: None,
    )
