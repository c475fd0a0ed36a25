"""Conclusions of a run as sentences, key numbers, and display names."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any, NamedTuple

from cleantune.storage.readers import finite, value_at
from cleantune.storage.run_dir import RunDir
from cleantune.utils.format import count, duration, percent, points

METHOD_NAMES = {
    "robust": "Robust", "turn": "TURN", "ce": "CE", "gce": "GCE", "elr": "ELR", "coteaching": "Co-teaching",
    "nmtune": "NMTune", "mlp": "MLP", "dividemix": "DivideMix", "unicon": "UNICON",
}  # fmt: skip
"""Methods as their papers write them."""

PHASE_NAMES = {
    "tune": "the fine-tuned model",
    "probe": "the probe on frozen features",
    "best": "the model of the best epoch on validation",
}
"""Models by the phase that trained them; `best` is the best epoch on validation."""


class Gain(NamedTuple):
    """Accuracy of the selected model and of the baseline on the same samples, as fractions."""

    accuracy: float
    baseline: float
    difference: float
    standard_error: float
    """Binomial standard error for independent samples: an upper bound, since both models saw the same samples."""


class Tile(NamedTuple):
    """One key number."""

    name: str
    value: str
    note: str


def display_method(name: str) -> str:
    """Return the display name of a method, or the name itself if there is none."""
    return METHOD_NAMES.get(name, name)


def sentence(text: Any) -> str:
    """Return a text with a capital letter and a final period; an empty text for None."""
    line = str(text).strip() if text else ""
    line = line[:1].upper() + line[1:]
    return line if not line or line[-1] in ".!?" else f"{line}."


def model_name(run: RunDir) -> str | None:
    """Return the last part of the model's path or hub id; None for features without a model."""
    name = run.get("model.name")
    return (PurePath(str(name)).name or str(name)) if name else None


def data_name(run: RunDir) -> str | None:
    """Return the last part of the data's path in the configuration."""
    for path in ("data.data", "data.path", "data"):
        name = value_at(run.config, path)
        if isinstance(name, str) and name:
            return PurePath(name).name or name
    return None


def selected_phase(run: RunDir) -> str | None:
    """Return the phase of the model in `model/`, or `best` for the best epoch on validation."""
    phase = run.get("selected_model")
    return str(phase) if phase else None


def last_phase(run: RunDir) -> str | None:
    """Return the phase of the last model; a probe after fine-tuning is a head on the fine-tuned backbone."""
    phases = [str(row["phase"]) for row in run.metrics]
    return "tune" if "tune" in phases else phases[-1] if phases else None


def is_fallback(run: RunDir) -> bool:
    """Return whether an earlier phase's model was selected because fine-tuning lowered validation accuracy."""
    return selected_phase(run) not in (None, "best", last_phase(run))


def accuracy(run: RunDir, split: str) -> float | None:
    """Return the accuracy of the selected model on `test` or `validation`, as a fraction."""
    return run.number(f"accuracy.{split}")


def accuracy_after(run: RunDir, phase: str | None, split: str) -> float | None:
    """Return the accuracy at the end of a phase, as a fraction, whether or not its model was selected."""
    by_phase = run.get("accuracy.by_phase")
    return finite(value_at(by_phase.get(phase), split)) if isinstance(by_phase, dict) else None


def gain(run: RunDir, split: str) -> Gain | None:
    """Compare the selected model with the CE linear probe; None if one of them was not measured on the split."""
    selected, size = accuracy(run, split), run.number(f"samples.{split}")
    baseline = run.number(f"baseline.accuracy.{split}")
    if selected is None or baseline is None or not size:
        return None
    error = math.sqrt((selected * (1 - selected) + baseline * (1 - baseline)) / size)
    return Gain(selected, baseline, selected - baseline, error)


def describe_phase(phase: str | None) -> str:
    """Return a description of a phase's model."""
    return PHASE_NAMES.get(str(phase), f"the model of phase “{phase}”")


def conclusions(run: RunDir) -> list[str]:
    """Return the conclusions of a run: accuracy against the baseline, then the selected model and the reason."""
    return [_accuracy_sentence(run), *_selection_sentences(run)]


def noise_sentences(run: RunDir) -> list[str]:
    """Return the estimated noise rate with its range, or why there is none; then the true rate, where it is known."""
    rate, true_rate = run.number("noise.estimated_rate"), run.number("noise.true_rate")
    if rate is not None:
        interval = f" (range {spread})" if (spread := _noise_range(run)) else ""
        sentences = [f"An estimated {percent(rate)} of the labels of training and validation are wrong{interval}."]
    elif is_identifiable(run):
        sentences = ["The run estimated no noise rate."]
    else:
        reason = sentence(f"the number of wrong labels cannot be identified: {run.get('noise.reason')}")
        sentences = [reason, "No label is an issue; all are ranked."]
    return sentences if true_rate is None else [*sentences, f"By the true labels, {percent(true_rate)} are wrong."]


def is_identifiable(run: RunDir) -> bool:
    """Return whether the run can tell wrong labels from an unsure model."""
    return run.get("noise.identifiable") is not False


def tiles(run: RunDir) -> list[Tile]:
    """Return the key numbers with their uncertainty or reference."""
    return [*_accuracy_tiles(run), *_noise_tiles(run), *_cost_tiles(run)]


def _measured_split(run: RunDir) -> str:
    return "test" if accuracy(run, "test") is not None else "validation"


def _accuracy_sentence(run: RunDir) -> str:
    split = _measured_split(run)
    selected, compared, name = accuracy(run, split), gain(run, split), display_method(str(run.summary["method"]))
    if selected is None:
        return f"{name} finished, but there is neither a test nor a validation split to measure it on."
    lead, tail = "", ""
    if split == "validation":
        lead = "There is no labeled test split. "
        tail = " Validation labels are given labels, some of them wrong: use this number for comparison only."
    if compared is None:
        return f"{lead}{name} reaches {percent(selected)} on the {split} split.{tail}"
    base = f"a CE linear probe on the same features ({percent(compared.baseline)})"
    error = f"{100 * compared.standard_error:.1f} points"
    gap = f"{abs(100 * compared.difference):.1f} ± {error}"
    if abs(compared.difference) <= 2 * compared.standard_error:
        difference = f"{points(compared.difference)} ± {error}"
        body = f"reaches {percent(selected)} on the {split} split: no clear difference from {base}, {difference}."
    elif compared.difference > 0:
        body = f"reaches {percent(selected)} on the {split} split, {gap} above {base}."
    else:
        body = f"reaches {percent(selected)} on the {split} split, {gap} below {base}. The linear probe is better here."
    return f"{lead}{name} {body}{tail}"


def _selection_sentences(run: RunDir) -> list[str]:
    phase, last = selected_phase(run), last_phase(run)
    if phase is None:
        return []
    reason = sentence(run.get("selection_reason"))
    if not is_fallback(run):
        return [f"The folder model/ has {describe_phase(phase)}. {reason}".strip()]
    after = accuracy_after(run, last, "test")
    aside = "" if after is None else f" ({percent(after)} on test)"
    return [f"Fallback: model/ has {describe_phase(phase)}, not {describe_phase(last)}{aside}. {reason}".strip()]


def _accuracy_tiles(run: RunDir) -> list[Tile]:
    split = _measured_split(run)
    selected, size, compared = accuracy(run, split), run.number(f"samples.{split}"), gain(run, split)
    out = []
    if selected is not None:
        error = f"± {100 * math.sqrt(selected * (1 - selected) / size):.1f}, " if size else ""
        samples = f"{count(size)} {'samples' if split == 'test' else 'given labels'}"
        out.append(Tile(f"{split} accuracy", percent(selected), f"{error}{samples}"))
    if compared is not None:
        note = f"± {100 * compared.standard_error:.1f} points; CE probe {percent(compared.baseline)}"
        out.append(Tile("gain over CE probe", points(compared.difference), note))
    return out


def _noise_tiles(run: RunDir) -> list[Tile]:
    out = []
    rate, true_rate = run.number("noise.estimated_rate"), run.number("noise.true_rate")
    notes = [_noise_range(run), "" if true_rate is None else f"true rate {percent(true_rate)}"]
    note = "; ".join(note for note in notes if note)
    if rate is not None:
        out.append(Tile("estimated noise rate", percent(rate), note or "of the given labels are wrong"))
    elif not is_identifiable(run):
        out.append(Tile("estimated noise rate", "cannot tell", note))
    issues = run.number("issues.count")
    if issues is None:
        issues = float(run.labels["is_label_issue"].sum())
    fraction = percent(issues / max(len(run.labels), 1))
    return [*out, Tile("label issues", count(issues), f"{fraction} of {count(len(run.labels))} labels")]


def _noise_range(run: RunDir) -> str:
    """Return the range of the estimated noise rate, empty where there is none."""
    bounds = run.get("noise.estimated_range")
    return " to ".join(percent(bound) for bound in bounds) if bounds else ""


def _cost_tiles(run: RunDir) -> list[Tile]:
    seconds, passes, train = (run.number(p) for p in ("cost.seconds.total", "cost.forward_passes", "samples.train"))
    if seconds is None:
        return []
    if not passes or not train:
        return [Tile("cost", duration(seconds), "no forward passes")]
    return [Tile("cost", duration(seconds), f"{count(passes)} forward passes = {passes / train:.1f} × training set")]
