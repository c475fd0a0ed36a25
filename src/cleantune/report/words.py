"""Numbers as a reader takes them in, and the report's judgment of a run in sentences."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import Any, NamedTuple

from cleantune.storage.readers import finite, value_at
from cleantune.storage.run_dir import RunDir
from cleantune.utils.format import count, duration, percent, points

METHODS = {"robust": "Robust", "turn": "TURN", "ce": "CE", "gce": "GCE", "elr": "ELR", "coteaching": "Co-teaching",
           "nmtune": "NMTune", "dividemix": "DivideMix", "unicon": "UNICON", "mixmatch": "MixMatch"}  # fmt: skip


class Gain(NamedTuple):
    """How the delivered model compares with the baseline on the same samples; shares."""

    ours: float
    baseline: float
    difference: float
    standard_error: float
    """Binomial, the two accuracies taken as independent: an upper bound, as both saw the same samples."""


class Tile(NamedTuple):
    """One key number."""

    name: str
    value: str
    note: str


def sentence(text: Any) -> str:
    """A text that begins and ends as a sentence does; empty for None."""
    words = str(text).strip() if text else ""
    words = words[:1].upper() + words[1:]
    return words if not words or words[-1] in ".!?" else f"{words}."


def method_name(run: RunDir) -> str:
    """The method as the papers write it."""
    name = str(run.summary["method"])
    return METHODS.get(name, name)


def model_name(run: RunDir) -> str | None:
    """The last part of the model's path or hub id; None where features came without a model."""
    name = run.get("model.name")
    return (PurePath(str(name)).name or str(name)) if name else None


def data_name(run: RunDir) -> str | None:
    """The last part of the path that the config names as data."""
    for path in ("data.data", "data.path", "data"):
        name = value_at(run.config, path)
        if isinstance(name, str) and name:
            return PurePath(name).name or name
    return None


def delivered_phase(run: RunDir) -> str | None:
    """The phase whose model lies in `model/`, or `best` for the best epoch on validation."""
    phase = run.get("selected_model")
    return str(phase) if phase else None


def last_phase(run: RunDir) -> str | None:
    """The phase that made the run's last model: a probe after fine-tuning is a head on the fine-tuned backbone."""
    phases = [str(row["phase"]) for row in run.metrics]
    return "tune" if "tune" in phases else phases[-1] if phases else None


def kept_earlier(run: RunDir) -> bool:
    """Whether an earlier phase's model was delivered because the last did harm."""
    return delivered_phase(run) not in (None, "best", last_phase(run))


def accuracy(run: RunDir, split: str) -> float | None:
    """Accuracy of the delivered model on `test` or `validation`, as a share."""
    return run.number(f"accuracy.{split}")


def accuracy_after(run: RunDir, phase: str | None, split: str) -> float | None:
    """Accuracy at the end of a phase, as a share, whether or not its model was delivered."""
    by_phase = run.get("accuracy.by_phase")
    return finite(value_at(by_phase.get(phase), split)) if isinstance(by_phase, dict) else None


def gain(run: RunDir, split: str) -> Gain | None:
    """The delivered model against the CE linear probe on a split; None where either was not measured."""
    ours, size = accuracy(run, split), run.number(f"samples.{split}")
    baseline = run.number(f"baseline.accuracy.{split}")
    if ours is None or baseline is None or not size:
        return None
    error = math.sqrt((ours * (1 - ours) + baseline * (1 - baseline)) / size)
    return Gain(ours, baseline, ours - baseline, error)


def phase_words(phase: str | None) -> str:
    """What a phase's model is, for a reader who does not know the phases."""
    words = {
        "tune": "the fine-tuned model",
        "probe": "the probe on frozen features",
        "best": "the model of the best epoch on validation",
    }
    return words.get(str(phase), f"the model of phase “{phase}”")


def verdict(run: RunDir) -> list[str]:
    """The run judged: accuracy against the baseline, then what was delivered and why."""
    return [_accuracy_sentence(run), *_delivery_sentences(run)]


def _accuracy_sentence(run: RunDir) -> str:
    split = "test" if accuracy(run, "test") is not None else "validation"
    ours, compared, name = accuracy(run, split), gain(run, split), method_name(run)
    if ours is None:
        return f"{name} ran to its end, but there was neither a test nor a validation split to measure it on."
    place = "on the test split" if split == "test" else "on the validation split"
    lead, tail = "", ""
    if split == "validation":
        lead = "There is no labeled test split. "
        tail = " Validation labels are given labels, wrong ones among them: this compares, it does not measure."
    if compared is None:
        return f"{lead}{name} reaches {percent(ours)} {place}.{tail}"
    base = f"a plain CE linear probe on the same features ({percent(compared.baseline)})"
    error = f"{100 * compared.standard_error:.1f} points"
    gap = f"{abs(100 * compared.difference):.1f} ± {error}"
    if abs(compared.difference) <= 2 * compared.standard_error:
        difference = f"{points(compared.difference)} ± {error}"
        body = f"reaches {percent(ours)} {place}: no clear difference from {base}, {difference}."
    elif compared.difference > 0:
        body = f"reaches {percent(ours)} {place}, {gap} above {base}."
    else:
        body = f"reaches only {percent(ours)} {place}, {gap} below {base}. Here the plain probe is the better model."
    return f"{lead}{name} {body}{tail}"


def _delivery_sentences(run: RunDir) -> list[str]:
    phase, last = delivered_phase(run), last_phase(run)
    if phase is None:
        return []
    why = sentence(run.get("selection_reason"))
    if not kept_earlier(run):
        return [f"Delivered in model/ is {phase_words(phase)}. {why}".strip()]
    harmed = accuracy_after(run, last, "test")
    aside = "" if harmed is None else f" (it ended at {percent(harmed)} on test)"
    return [f"Do no harm: delivered in model/ is {phase_words(phase)}, not {phase_words(last)}{aside}. {why}".strip()]


def tiles(run: RunDir) -> list[Tile]:
    """The key numbers, each with what it is measured by."""
    return [*_accuracy_tiles(run), *_noise_tiles(run), *_cost_tiles(run)]


def _accuracy_tiles(run: RunDir) -> list[Tile]:
    split = "test" if accuracy(run, "test") is not None else "validation"
    ours, size, compared = accuracy(run, split), run.number(f"samples.{split}"), gain(run, split)
    found = []
    if ours is not None:
        error = f"± {100 * math.sqrt(ours * (1 - ours) / size):.1f}, " if size else ""
        samples = f"{count(size)} {'samples' if split == 'test' else 'given labels'}"
        found.append(Tile(f"{split} accuracy", percent(ours), f"{error}{samples}"))
    if compared is not None:
        note = f"± {100 * compared.standard_error:.1f} points; CE probe {percent(compared.baseline)}"
        found.append(Tile("gain over CE probe", points(compared.difference), note))
    return found


def _noise_tiles(run: RunDir) -> list[Tile]:
    found = []
    rate, true_rate = run.number("noise.estimated_rate"), run.number("noise.true_rate")
    if rate is not None:
        note = "of the given labels are wrong" if true_rate is None else f"truly {percent(true_rate)}"
        found.append(Tile("estimated noise rate", percent(rate), note))
    issues = run.number("issues.count")
    if issues is None:
        issues = float(run.labels["is_label_issue"].sum())
    share = percent(issues / max(len(run.labels), 1))
    return [*found, Tile("issues found", count(issues), f"{share} of {count(len(run.labels))} labels")]


def _cost_tiles(run: RunDir) -> list[Tile]:
    seconds, forward_passes, train = (
        run.number(p) for p in ("cost.seconds.total", "cost.forward_passes", "samples.train")
    )
    if seconds is None:
        return []
    if not forward_passes or not train:
        return [Tile("cost", duration(seconds), "forward_passes not counted")]
    return [
        Tile(
            "cost",
            duration(seconds),
            f"{count(forward_passes)} forward_passes = {forward_passes / train:.1f} × training set",
        )
    ]
