"""Photographs as arrays: opened whatever their format, brought to RGB, fitted into a square."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps


def opened(content: bytes, size: int | None = None) -> Image.Image:
    """An encoded photograph; where `size` pixels a side are needed, a large JPEG is decoded at a fraction of its size,
    twice that or more, in a fraction of the time."""
    image = Image.open(io.BytesIO(content))
    if size is not None:
        image.draft(None, (2 * size, 2 * size))
    return image


def rgb(image: Image.Image) -> Image.Image:
    """An image as a person sees it: first frame, turned upright by its EXIF note, more than 8 bits brought to 8,
    transparency on white, RGB.

    Catalogues keep the original bytes of a photograph, so every reader goes through here.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel, which `convert` would cut off at 255
        levels = np.asarray(image, dtype=np.float64)
        white = (
            1.0
            if image.mode == "F" and levels.max(initial=0) <= 1
            else 65535.0
            if levels.max(initial=0) > 255
            else 255.0
        )
        image = Image.fromarray((levels.clip(0, white) * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fit(image: Image.Image, size: int) -> np.ndarray:
    """An image fitted into a white square: uint8 (size, size, 3), aspect ratio kept."""
    image = rgb(image)
    scale = size / max(image.size)
    inner = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR
    )  # fmt: skip
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return np.asarray(canvas)
