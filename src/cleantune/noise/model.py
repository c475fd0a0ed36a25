"""Settings of label noise and their text form."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from cleantune.errors import UserError, did_you_mean

Kind = Literal["none", "symmetric", "asymmetric", "pair", "matrix", "instance"]
Groups = Literal["block5", "superclass", "cifar10", "map"]


@dataclass(frozen=True)
class Noise:
    """A noise model and its settings, as `parse_noise` reads them from `kind:rate,key=value`."""

    kind: Kind = "none"
    """Kind of noise."""
    rate: float = 0.0
    """Fraction of labels passed to the noise model, 0..1; `measure_noise` gives the fraction that is wrong then."""
    include_self: bool = True
    """Symmetric: a label may be redrawn as itself, so that rate·(1 - 1/C) is wrong; false: other classes only."""
    exact: bool = False
    """Symmetric: exactly round(rate n) labels of every class become one of the others, drawn uniformly (implies that
    `include_self` is false)."""
    groups: Groups = "block5"
    """Asymmetric: `block5` (consecutive fives), `superclass` (of CIFAR-100), `cifar10` (fixed map), or `map`."""
    map: str = ""
    """Asymmetric: `from>to` pairs of class names joined by `+`, as `cat>dog+dog>cat`; sets `groups` to `map`."""
    file: str = ""
    """Matrix: CSV file of C rows of C probabilities, row = true label, column = given label."""
    generator: Literal["cores", "pdn"] = "cores"
    """Instance (written `kind=`): one projection for all classes (`cores`) or one per class (`pdn`)."""
    pixels: Literal["raw", "unit", "standardized"] = "raw"
    """Instance: pixels as 0..255, as 0..1, or standardized by dimension."""


_OPTIONS = {
    "none": (),
    "symmetric": ("include_self", "exact"),
    "asymmetric": ("groups", "map"),
    "pair": (),
    "matrix": (),
    "instance": ("kind", "pixels"),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "groups": get_args(Groups),
    "kind": ("cores", "pdn"),
    "pixels": ("raw", "unit", "standardized"),
    "include_self": ("true", "false"),
    "exact": ("true", "false"),
}


def parse_noise(text: str) -> Noise:
    """Parse `kind:rate,key=value,...`, such as `symmetric:0.6` or `instance:0.4,kind=pdn`.

    Raises:
        UserError: A kind, option or value is unknown, or the rate is outside 0..1; the message names the nearest one.
    """
    head, *rest = (piece.strip() for piece in text.split(","))
    kind, _, value = head.partition(":")
    if kind not in get_args(Kind):
        raise UserError(f'noise "{text}": there is no noise "{kind}"{did_you_mean(kind, get_args(Kind))}')
    settings: dict[str, Any] = {"kind": kind}
    if kind == "matrix":
        settings["file"] = value
        if not value:
            raise UserError(f'noise "{text}": write matrix:FILE.csv')
    elif kind != "none":
        settings["rate"] = _rate(text, value)
    for option in rest:
        settings.update(_option(text, kind, option))
    if settings.get("exact"):
        if settings.get("include_self"):
            raise UserError(f'noise "{text}": exact noise never draws the own class; leave include_self out')
        settings["include_self"] = False
    return Noise(**settings)


def _rate(text: str, value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = float("nan")
    if not 0 <= rate <= 1:
        raise UserError(f'noise "{text}": "{value}" is no rate between 0 and 1; write for example symmetric:0.6')
    return rate


def _option(text: str, kind: str, option: str) -> dict[str, Any]:
    key, _, value = option.partition("=")
    if key not in _OPTIONS[kind]:
        hint = did_you_mean(key, _OPTIONS[kind]) if _OPTIONS[kind] else "; it has none"
        raise UserError(f'noise "{text}": {kind} has no option "{key}"{hint}')
    if key == "map":
        return {"map": value, "groups": "map"}
    if value not in _CHOICES[key]:
        raise UserError(f'noise "{text}": {key} cannot be "{value}"{did_you_mean(value, _CHOICES[key])}')
    if key in ("include_self", "exact"):
        return {key: value == "true"}
    return {"generator" if key == "kind" else key: value}


def format_noise(noise: Noise) -> str:
    """Return the text that `parse_noise` reads back as this noise."""
    head = noise.kind if noise.kind == "none" else f"{noise.kind}:{noise.file or format(noise.rate, 'g')}"
    default = Noise()
    options = []
    for field in fields(noise):
        value = getattr(noise, field.name)
        if field.name in ("kind", "rate", "file") or value == getattr(default, field.name):
            continue
        if (field.name == "groups" and value == "map") or (field.name == "include_self" and noise.exact):
            continue
        name = "kind" if field.name == "generator" else field.name
        options.append(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
    return ",".join([head, *options])
