"""Photographs as arrays: opened whatever their format, brought to RGB, fitted into a square."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def opened(content: bytes, size: int | None = None) -> Image.Image:
    """An encoded photograph; where `size` pixels a side are needed, a large JPEG is decoded at a fraction of its size,
    twice that or more, in a fraction of the time."""
    image = Image.open(io.BytesIO(content))
    if size is not None:
        image.draft(None, (2 * size, 2 * size))
    return image


#: EXIF orientation -> what shows the photograph upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int:
    """How the camera was held, 1 (upright) to 8, by EXIF; 1 where nothing or nonsense is noted. No other tag is read into
    anything: one of a wrong type must not cost the photograph. Decodes the image, and raises what that raises."""
    image.load()  # TIFF is turned by its decoder, which then forgets the note
    try:
        noted = image.getexif().get(0x0112)
        return noted if noted in _TURNS else 1
    except Exception:  # Pillow raises what broken bytes lead it to
        return 1


def rgb(image: Image.Image) -> Image.Image:
    """An image as a person sees it: first frame, turned upright by its EXIF note, more than 8 bits brought to 8,
    transparency on white, RGB.

    Catalogues keep the original bytes of a photograph, so every reader goes through here.
    """
    if turn := _TURNS.get(orientation(image)):
        image = image.transpose(turn)
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
