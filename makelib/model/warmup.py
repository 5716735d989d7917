"""The image warm-up: a from-scratch encoder learns to name what it sees, once per catalogue."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F

from makelib.data.catalog import Catalog
from makelib.model.batches import augment
from makelib.model.encoders import ImageEncoder, mean_pool
from makelib.model.keywords import WordTables
from makelib.model.optim import schedule
from makelib.runtime import atomic_file, code_version, fingerprint, progress
from makelib.settings import Settings


def warms_up(settings: Settings) -> bool:
    """Whether the image encoder of these settings needs to learn to see first: there is one, and it starts from nothing."""
    return (
        settings.model.fusion != "title" and settings.training.image_warmup > 0 and not settings.model.image_pretrained
    )


def warm_up_images(catalog: Catalog, settings: Settings) -> Path:
    """Teach a from-scratch image encoder to see before it is asked to retrieve; once per catalogue, for all variants and seeds.

    Stands in for the pretrained backbone that one would name with `model.image_backbone` where downloads are possible: the
    encoder predicts, from the image alone, the words that shoppers typed before they clicked the product and those of its title
    (softmax over words, after Joulin et al. 2016). Only products seen in training take part. Returns a safetensors file
    with the encoder's weights, kept in the catalogue's cache.
    """
    model, training = settings.model, settings.training
    shape = {"image_size": model.image_size, "levels": model.image_levels, "width": model.width}
    decides = {
        name: value
        for name, value in dataclasses.asdict(training).items()
        if name.startswith("image_warmup") or name in ("warmup", "weight_decay", "augment_images")
    }
    key = fingerprint(model.image_backbone, shape, decides, catalog.fingerprint, code_version())
    file = catalog.folder / ".cache" / f"image-encoder-{key}.safetensors"
    if file.is_file():
        return file
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels, has_image = catalog.images(model.image_size)
    more, of = catalog.further_images(model.image_size)
    tables = WordTables.of(catalog)
    said = (tables.typed + tables.titles).tocsr()
    useful = has_image & catalog.seen & (said.getnnz(axis=1) > 0)
    rows = np.concatenate([np.flatnonzero(useful), of[useful[of]]])  # the product of each photograph
    said, pixels = said[rows], np.concatenate([pixels[useful], more[useful[of]]])
    torch.manual_seed(0)
    encoder = ImageEncoder(model.image_backbone, **shape).to(device).train()
    words = torch.nn.Linear(model.width, said.shape[1]).to(device)
    parameters = [*encoder.parameters(), *words.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=training.weight_decay)
    random, steps = np.random.default_rng(0), training.image_warmup if len(rows) else 0
    size = min(training.image_warmup_batch, len(rows))
    bar = progress(range(steps), description="image encoder", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = training.image_warmup_rate * schedule(step, steps, training.warmup)
        chosen = random.choice(len(rows), size, replace=False)
        target = torch.from_numpy(said[chosen].toarray()).float().to(device)
        shown = augment(pixels[chosen], random.random((size, 4))) if training.augment_images else pixels[chosen]
        logits = words(mean_pool(encoder(torch.from_numpy(shown).to(device))))
        loss = F.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with atomic_file(file) as draft:
        safetensors.torch.save_file({name: t.contiguous().cpu() for name, t in encoder.state_dict().items()}, draft)
    return file
