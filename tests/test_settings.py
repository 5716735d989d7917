"""Settings: every preset survives a file, unknown keys and wrong types are errors that say which."""

import pytest

from makelib.runtime import UserError
from makelib.settings import from_dict, preset, read_yaml, to_dict, write_yaml


@pytest.mark.parametrize("name", ["smoke", "quick", "full", "pretrained"])
def test_presets_survive_yaml(name, tmp_path):
    settings = preset(name)
    write_yaml(settings, tmp_path / "settings.yaml")
    assert read_yaml(tmp_path / "settings.yaml") == settings
    assert from_dict(to_dict(settings)) == settings
    assert settings.name == name


def test_replace_changes_one_leaf_and_nothing_else():
    changed = to_dict(preset("quick").replace(**{"training.steps": 7, "model.fusion": "mean"}))
    expected = to_dict(preset("quick"))
    expected["training"]["steps"], expected["model"]["fusion"] = 7, "mean"
    assert changed == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.stepz": 1}, "training.stepz"),
        ({"nowhere.steps": 1}, "nowhere.steps"),
        ({"training.steps": "many"}, "training.steps"),
        ({"model.fusion": "sum"}, "model.fusion"),
        ({"training": 3}, "training"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        preset("quick").replace(**changes)


def test_whole_numbers_are_numbers():
    assert preset("quick").replace(**{"training.learning_rate": 1}).training.learning_rate == 1.0


def test_unknown_preset():
    with pytest.raises(UserError, match=r"'fast'.*quick, smoke, pretrained, full"):
        preset("fast")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "Cannot read"), ("- 1", "mapping"), ("", "mapping"), ("training: {stepz: 1}", "stepz")],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "s.yaml")
    with pytest.raises(UserError, match="Cannot read"):
        read_yaml(tmp_path / "missing.yaml")


def test_a_retired_setting_is_told_and_does_nothing(capsys):
    assert preset("smoke").replace(**{"evaluation.resamples": 20, "training.steps": 2}).training.steps == 2
    assert "evaluation.resamples does nothing any more" in capsys.readouterr().err
