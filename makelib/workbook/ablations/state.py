"""What the ablation explorer shows, as one value; and settings written by people, such as `model.fusion=gate`."""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from typing import Any

import yaml

from makelib.runtime import UserError
from makelib.settings import Settings, differences

#: levels of confidence that the widget offers
LEVELS = (0.9, 0.95, 0.99)
#: the study that holds every trained arm, those of no study included
EVERYTHING = "everything trained"
#: parts of the settings that decide an arm
PARTS = ("text", "model", "keywords", "objectives", "training", "index")


@dataclass(frozen=True)
class State:
    """Everything that decides what the ablation explorer shows.

    Attributes:
        study, variants, reference: what is compared with what. metric, segment, seeds: on which scores.
        level: confidence of intervals; 1 - level is what a p value must stay below.
        against: the variant whose queries are looked at, beside the reference.
        place: which query, counted from the one that `against` wins by most; 0: none. rank: which product is explained.
        setting, values: a sweep, such as `training.steps` over `[60, 120]`; on top of `reference`.
    """

    study: str = ""
    variants: tuple[str, ...] = ()
    reference: str = ""
    metric: str = "Rel@10"
    segment: str = "all"
    seeds: tuple[int, ...] = ()
    level: float = 0.95
    against: str = ""
    place: int = 0
    rank: int = 0
    setting: str = ""
    values: tuple[Any, ...] = ()


def parts_of(settings: Settings) -> tuple:
    """What of the settings decides an arm, as a key."""
    return tuple(getattr(settings, part) for part in PARTS)


def changed(base: Settings, settings: Settings) -> dict[str, Any]:
    """Settings of an arm that differ from those of `base`, by name."""
    return {name: value for name, value in differences(base, settings).items() if name.split(".")[0] in PARTS}


def written(changes: dict[str, Any]) -> str:
    """Changes as `read_changes` reads them; also the name of an arm that belongs to no study."""
    return ", ".join(
        f"{name}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for name, value in changes.items()
    )


def read_changes(text: str) -> dict[str, Any]:
    """`model.fusion=gate, training.steps=100` as a dictionary, values as in YAML. Raises `UserError` for what is none."""
    try:
        tree = yaml.safe_load("{" + re.sub(r"([\w.]+)\s*=\s*", r"\1: ", text) + "}")
    except yaml.YAMLError:
        tree = None
    if not isinstance(tree, dict) or None in tree.values():
        raise UserError(f"{text!r} is no list of settings; write it as model.fusion=gate, training.steps=100.")
    return {str(name): _number(value) for name, value in tree.items()}


def read_values(text: str) -> tuple[Any, ...]:
    """Values of a sweep, `60, 120, 240`. Raises `UserError` for what is no list of values."""
    try:
        values = yaml.safe_load(f"[{text.strip().removeprefix('[').removesuffix(']')}]")
    except yaml.YAMLError:
        raise UserError(f"{text!r} is no list of values; write it as 60, 120, 240.") from None
    return tuple(_number(value) for value in values)


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value  # YAML takes 1e-3 for a word
    except ValueError:
        return value


def names(settings: Settings) -> list[str]:
    """Every setting that an arm may change, by name."""
    return [f"{part}.{field.name}" for part in PARTS for field in dataclasses.fields(getattr(settings, part))]


def completions(settings: Settings, typed: str) -> list[str]:
    """How the last of the changes in `typed` may go on: a setting's name, then its values."""
    before, comma, last = typed.rpartition(",")
    head, last = f"{before}, " if comma else "", last.strip()
    name, equals, _ = last.partition("=")
    if not equals:
        return [f"{head}{known}=" for known in names(settings) if last in known]
    part, _, field = name.strip().partition(".")
    if name.strip() not in names(settings):
        return []
    kind = typing.get_type_hints(type(getattr(settings, part)))[field]
    values = ("true", "false") if kind is bool else typing.get_args(kind) or (getattr(getattr(settings, part), field),)
    return [f"{head}{name.strip()}={value}" for value in values]
