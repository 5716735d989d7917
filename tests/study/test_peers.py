"""Pretrained dual encoders as rivals: tiny checkpoints in the layouts that the libraries publish, read from a folder, no network."""

import json

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from open_clip import create_model
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.push_to_hf_hub import save_config_for_hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from makelib.data.sources.bazaar.world import generate
from makelib.runtime import UserError
from makelib.settings import preset
from makelib.study import peers
from makelib.study.arms import queries_of
from makelib.study.experiment import Experiment
from makelib.study.lines import lines_of, note_of

SETTINGS = preset("smoke").replace(
    **{
        "bazaar.products": 120, "bazaar.queries": 100, "bazaar.clicks": 1200, "training.steps": 40, "training.batch_size": 32,
        "training.learning_rate": 1e-2, "training.evaluations": 2, "text.vocabulary": 300, "ablation.workers": 1,
    }
)  # fmt: skip
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 32, "patch_size": 16}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return generate(SETTINGS.bazaar, tmp_path_factory.mktemp("world") / "bazaar")


@pytest.fixture(scope="module")
def words(catalog):
    """A tokenizer of whole words, as a folder of `transformers` holds one."""
    known = sorted({word for text in (*catalog.products["title"], *catalog.queries["query"]) for word in text.split()})
    ids = {word: number for number, word in enumerate(["<pad>", "<start>", "<end>", "<unk>", *known])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def folders(words, tmp_path_factory):
    """A CLIP and a SigLIP as `transformers` saves them, a CLIP as `open_clip` does, and a BERT, which is none."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    text = {
        **TEXT,
        "vocab_size": len(words),
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))
    siglip = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=VISION))
    for name, model, processor in (
        ("tiny-clip", clip, CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)),
        ("tiny-siglip", siglip, SiglipImageProcessor(size={"height": 32, "width": 32})),
        ("tiny-bert", BertModel(BertConfig(vocab_size=len(words), **TEXT)), None),
    ):
        for part in filter(None, (model, words, processor)):
            part.save_pretrained(root / name)
    architecture = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    config = root / "tiny-open-clip" / "open_clip_config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"model_cfg": architecture, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}))
    model = create_model(f"local-dir:{config.parent}")
    safetensors.torch.save_file(model.state_dict(), config.parent / HF_SAFE_WEIGHTS_NAME)
    save_config_for_hf(model, config, architecture)
    return root


def peer_of(folders, name):
    return peers.load_peer(f"local-dir:{folders / name}").eval()


NAMES = ("tiny-clip", "tiny-siglip", "tiny-open-clip")


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_read_in_its_own_layout(name, folders, catalog):
    peer = peer_of(folders, name)
    assert peer.name == name
    rows = np.arange(40)
    found = peers.read(peer, catalog, rows[:7], rows)
    width = 24 if "siglip" not in name else 32
    assert found.queries.shape == (7, width)
    assert found.titles.shape == found.images.shape == (40, width)
    there = catalog.present[rows, 1]
    assert 0 < there.sum() < 40 or there.all()
    one = int(np.flatnonzero(there)[-1])
    assert torch.allclose(found.images[one], peer.images([catalog.image(one)])[0], atol=1e-5)
    assert torch.allclose(found.queries[3], peer.texts([catalog.queries["query"][3]])[0], atol=1e-5)
    assert (found.images[~there] == 0).all()
    assert (found.images[there].norm(dim=1) > 0).all()


def test_vectors_are_those_of_the_library(folders, catalog, words):
    peer, model = peer_of(folders, "tiny-clip"), CLIPModel.from_pretrained(folders / "tiny-clip").eval()
    titles = ["red dress", "a much longer title of a red dress"]
    theirs = [model.get_text_features(**words([title], return_tensors="pt")).pooler_output[0] for title in titles]
    assert torch.allclose(peer.texts(titles), torch.stack(theirs), atol=1e-5)  # padding changes nothing


def test_a_product_is_the_mean_of_what_is_there():
    generator = torch.Generator().manual_seed(0)
    titles, images = (5 * torch.randn(4, 6, generator=generator) for _ in range(2))
    present = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = peers.Read(titles[:2], titles, images, present)
    adapters = peers.Adapters(6)
    unit = torch.nn.functional.normalize
    queries, products = adapters(found)
    assert torch.allclose(queries, unit(titles[:2], dim=-1))
    assert torch.allclose(products[0], unit(unit(titles[0], dim=-1) + unit(images[0], dim=-1), dim=-1), atol=1e-6)
    assert torch.allclose(products[1], unit(titles[1], dim=-1), atol=1e-6)
    assert torch.allclose(products[2], unit(images[2], dim=-1), atol=1e-6)
    assert torch.allclose(adapters(found, (False, True))[1], unit(images, dim=-1), atol=1e-6)


@pytest.mark.parametrize("fine_tune", [False, True])
def test_what_is_trained_finds_more(folders, catalog, fine_tune):
    peer = peer_of(folders, "tiny-clip")
    before = {name: tensor.clone() for name, tensor in peer.state_dict().items()}
    found = peers.read_all(peer, catalog)
    rows = queries_of(catalog, SETTINGS, "validation")
    adapters, now = peers.train(peer, found, catalog, SETTINGS, 0, fine_tune)
    scores = [
        peers.scored(each, at, catalog, rows, SETTINGS)["Recall@100"].mean()
        for each, at in ((peers.Adapters(24), found), (adapters, now))
    ]
    assert scores[1] > scores[0]
    moved = [name for name, tensor in peer.state_dict().items() if not torch.equal(tensor, before[name])]
    assert bool(moved) == fine_tune
    again = peers.train(peer_of(folders, "tiny-clip"), found, catalog, SETTINGS, 0, fine_tune)[0]
    for name, tensor in adapters.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clip", "names no pretrained encoder"),
        ("local-dir:/nowhere", "holds no model in safetensors"),
        ("open_clip:No-Such-B-32/openai", "cannot load"),
        ("tiny-bert", "is no dual encoder"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(name, said, folders):
    with pytest.raises(UserError, match=said) as caught:
        peers.load_peer(f"local-dir:{folders / name}" if name == "tiny-bert" else name)
    assert "transformers:<owner>/<name>" in str(caught.value)


def test_peers_are_lines_of_a_study_and_stand_in_its_costs(folders, catalog, tmp_path, monkeypatch):
    asked = {
        "ablation.peers": [f"local-dir:{folders / 'tiny-clip'}"], "seeds": [0, 1],
        "ablation.peer_modes": ["zero-shot", "adapted"], "training.steps": 3, "training.image_warmup": 0,
    }  # fmt: skip
    experiment = Experiment(tmp_path / "run", SETTINGS.replace(**asked), catalog)
    experiment.run.mkdir()
    rows = experiment.study("modal_adaptation", ["adaptive"])
    lines = [f"tiny-clip {mode}" for mode in ("zero-shot", "zero-shot title", "zero-shot image", "adapted")]
    means = {row["variant"]: row for row in rows if (row["metric"], row["segment"]) == ("Recall@100", "all")}
    assert set(lines) <= set(means)
    assert means[lines[0]]["per_seed"][0] == means[lines[0]]["per_seed"][1]
    assert means[lines[3]]["per_seed"][0] != means[lines[3]]["per_seed"][1]
    compared = {(row["variant"], row["reference"]) for row in rows}
    assert {("adaptive", line) for line in lines} <= compared
    costs = experiment.costs("modal_adaptation", ["adaptive"])
    assert costs.loc["bm25", "parameters"] == 0
    assert costs.loc[lines[3], "parameters"] - costs.loc[lines[0], "parameters"] == 3 * (24 * 24 + 24) + 1
    assert (costs.loc[[*lines, "adaptive"], "megaflops_per_product"] > 0).all()
    assert (costs["trials"] == 0).all()
    kept = lines_of(experiment.run)
    assert set(kept[lines[3]]) == {0, 1}
    assert set(kept["bm25"]) == {None}
    assert note_of(kept[lines[0]][None])["learned"] == 0
    assert note_of(kept[lines[3]][1])["learned"] == 3 * (24 * 24 + 24) + 1
    monkeypatch.setattr(peers, "_line", lambda *_: pytest.fail("computed again"))
    again = Experiment(experiment.run, experiment.settings, catalog).peers
    pd.testing.assert_frame_equal(again[lines[3]][1], pd.read_parquet(kept[lines[3]][1] / "per_query.parquet"))
