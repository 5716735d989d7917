"""The image encoder: what it sees, and how pictures reach it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from makelib.model.encoders import ImageEncoder

BACKBONE = "test_resnet.r160_in1k"


def pictures(*colours, size=32):
    return torch.from_numpy(np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours]))


def encoder(**changes):
    torch.manual_seed(0)
    return ImageEncoder(BACKBONE, **{"image_size": 32, "levels": (0, 1, 2, 3), "width": 16, **changes})


@pytest.mark.parametrize(("size", "grid"), [(16, 1), (32, 2), (48, 3), (64, 4)])
def test_levels_of_any_size_meet_on_the_grid_of_the_last(size, grid):
    encode = encoder(image_size=size).eval()
    maps = encode.maps(pictures((255, 0, 0), (9, 9, 9), size=size))
    assert maps.shape == (2, grid**2, 32 + 32 + 48 + 192 + 64)
    assert encode(pictures((255, 0, 0), size=size)).shape == (1, grid**2, 16)


def test_maps_stand_for_the_pixels_that_they_were_made_of():
    encode = encoder().eval()
    shown = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    torch.testing.assert_close(encode(encode.maps(shown)), encode(shown))


def test_a_colour_falls_into_the_nearest_bin():
    bins = encoder().eval().maps(pictures((0, 0, 0), (255, 0, 0), (255, 255, 255)))[:, :, -64:]
    assert bins.argmax(dim=2).tolist() == [[0] * 4, [48] * 4, [63] * 4]  # red varies slowest


def test_every_level_is_heard():
    shown = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    maps = encoder().eval().maps(shown).detach()
    for level in maps.split([32, 32, 48, 192, 64], dim=2):
        assert level.square().mean().sqrt() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("backbone", "mean"), [(BACKBONE, (0.5, 0.5, 0.5)), ("resnet18.a1_in1k", (0.485, 0.456, 0.406))]
)
def test_pictures_are_normalised_as_the_backbone_was_trained(backbone, mean):
    encode = ImageEncoder(backbone, image_size=32, levels=(1, 2), width=8)
    np.testing.assert_allclose(encode.mean.flatten() / 255, mean, rtol=1e-6)


def test_a_patch_begins_as_the_mean_under_its_cell_and_can_look_elsewhere():
    encoder = ImageEncoder("test_resnet.r160_in1k", image_size=64, levels=(0, 3), width=8).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    # the finer level of the patches, beside its plain mean under each cell (other places weigh e^-4 of it)
    level = encoder.backbone((pixels.permute(0, 3, 1, 2).float() - encoder.mean) / encoder.std)[0]
    plain = torch.nn.functional.adaptive_avg_pool2d(level, encoder.grid).flatten(2).transpose(1, 2)
    begun = encoder.maps(pixels)[..., : level.shape[1]]
    other = torch.nn.functional.layer_norm(plain, plain.shape[-1:])
    assert torch.nn.functional.cosine_similarity(begun, other, dim=-1).min() > 0.95
    with torch.no_grad():  # the first patch looks at one pixel's place of this level alone
        encoder.where.fill_(-100.0)
        encoder.where[0, 5, 7] = 100.0
    seen = encoder.maps(pixels)[:, 0, : level.shape[1]]
    places = torch.nn.functional.adaptive_avg_pool2d(encoder.where[:1], level.shape[2:])[0]
    looked = (level.flatten(2) * (places.flatten() == places.max()))[..., places.flatten() == places.max()].mean(dim=-1)
    expected = torch.nn.functional.layer_norm(looked, looked.shape[-1:])
    assert torch.allclose(seen, expected, atol=1e-4)
