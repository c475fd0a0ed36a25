"""Ours beside the paper's: tables in the paper's own shape, for the console, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cleantune.studies.turn_paper.numbers import KEYS, Note, notes, numbers

if TYPE_CHECKING:
    import pandas as pd

WARNING = (
    "Stand-in: made-up images and tiny random networks. It shows that the experiment runs; its numbers say nothing "
    "about the methods."
)
"""Stands in every output of a stand-in."""
NAMES = {"ce": "CE", "gce": "GCE", "elr": "ELR", "coteaching": "Co-teaching", "dividemix": "DivideMix",
         "unicon": "UNICON", "turn": "TURN"}  # fmt: skip
TUNING = {"head": "LP", "all": "FFT"}
GEOMETRY = ("cka", "neighbors", "silhouette", "probe")
"""Columns of the analysis of features."""


class Value(NamedTuple):
    """What stands in a place of a table."""

    ours: str
    paper: str = ""
    marks: str = ""


@dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    heads: tuple[str, ...]
    """The first is that of the labels."""
    rows: tuple[tuple[str, tuple[Value, ...]], ...]


@dataclass(frozen=True)
class Layout:
    """How a block is laid out: what each table is about, what names its columns, and what stands in them."""

    about: tuple[str, ...]
    column: str
    values: str
    """`both`: best / last, or `last`."""


LAYOUTS = {
    "table2": Layout(("data", "model"), "noise", "both"),
    "table3": Layout(("data",), "model", "both"),
    "table4": Layout(("data", "noise"), "model", "last"),
    "table5": Layout(("data", "noise"), "model", "both"),
}


def beside(found: pd.DataFrame, block: str) -> pd.DataFrame:
    """The found cells with the paper's `paper_best`, `paper_last` and the others in columns beside them."""
    theirs = numbers(block).rename(columns={c: f"paper_{c}" for c in ("samples", "purity", "best", "last")})
    return found.merge(theirs, on=list(KEYS), how="left")


def sheets(found: pd.DataFrame, block: str) -> list[Sheet]:
    """The tables of a block; `found` as `beside` gives it."""
    marked = notes(block)
    if block in LAYOUTS:
        return _grids(found, LAYOUTS[block], marked)
    if block == "table9":
        return _cleansing(found, marked)
    if block == "figure2":
        return _geometry(found)
    return _costs(found)


def called(row: Any) -> str:
    """The label of a cell's row: its variant, else how and by what it was tuned."""
    if row.variant:
        return str(row.variant)
    name = NAMES.get(row.method, row.method)
    return f"LP-FFT {name}" if (row.method, row.scope) == ("turn", "all") else f"{TUNING[row.scope]} {name}"


def _grids(found: pd.DataFrame, layout: Layout, marked: Sequence[Note]) -> list[Sheet]:
    out = []
    for about, part in _parts(found, list(layout.about)):
        columns = list(dict.fromkeys(part[layout.column]))
        labeled = part.assign(label=[called(row) for row in part.itertuples()])
        rows = []
        for label, cells in _parts(labeled, ["label"]):
            values = [_value(cells[cells[layout.column] == name], layout.values, marked) for name in columns]
            rows.append((label, tuple(values)))
        out.append(Sheet(about, ("", *columns), tuple(rows)))
    return out


def _parts(table: pd.DataFrame, columns: list[str]) -> list[tuple[str, pd.DataFrame]]:
    groups = table.groupby(columns, sort=False, dropna=False)
    return [(", ".join(str(k) for k in key if k != "none"), part) for key, part in groups]


def _value(cells: pd.DataFrame, which: str, marked: Sequence[Note]) -> Value:
    """Ours over the seeds, and the paper's."""
    if not len(cells):
        return Value("")
    first = cells.iloc[0]
    both = which == "both"
    names = ("accuracy_best_validation", "accuracy_last") if both else ("accuracy_last",)
    theirs = [first[name] for name in (("paper_best", "paper_last") if both else ("paper_last",))]
    paper = " / ".join(f"{v:.2f}" for v in theirs) if all(v == v for v in theirs) else ""
    return Value(" / ".join(_mean(cells, name, 100, 1) for name in names), paper, _marks(first, marked))


def _mean(cells: pd.DataFrame, name: str, scale: float, digits: int) -> str:
    """Mean over the seeds that ended, ± their standard deviation where there are several."""
    values = scale * cells.loc[cells["status"] == "done", name].dropna().astype(float)
    if not len(values):
        return "failed" if (cells["status"] == "failed").any() else "–"
    spread = f" ± {values.std():,.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():,.{digits}f}{spread}"


def _marks(row: Any, marked: Sequence[Note]) -> str:
    key = tuple(row[name] for name in KEYS)
    return "".join(note.mark for note in marked if key in note.cells)


def _cleansing(found: pd.DataFrame, marked: Sequence[Note]) -> list[Sheet]:
    out = []
    for about, part in _parts(found, ["data", "model", "noise"]):
        rows = []
        for label, cells in _parts(part, ["variant"]):
            first = cells.iloc[0]
            samples = Value(_mean(cells, "selected", 1, 0), f"{first.paper_samples:,.0f}")
            purity = Value(_mean(cells, "purity", 100, 1), f"{first.paper_purity:.2f}")
            recall = Value(_mean(cells, "recall", 100, 1))
            rows.append((label, (samples, purity, recall, _value(cells, "both", marked))))
        heads = ("", "samples of the last cleansing", "purity (%)", "recall (%)", "best / last (%)")
        out.append(Sheet(about, heads, tuple(rows)))
    return out


def _geometry(found: pd.DataFrame) -> list[Sheet]:
    out = []
    heads = ("features", "CKA to untouched", "20-NN accuracy (%)", "silhouette", "linear probe (%)", "last (%)")
    for about, part in _parts(found, ["data", "model"]):
        cells = part[part["status"] == "done"]
        once = cells.drop_duplicates("seed")  # the noise does not touch them
        rows = [("untouched", _numbers(once, "untouched_", None))] if len(cells) else []
        for noise, own in _parts(part, ["noise"]):
            rows.append((f"after {noise}", _numbers(own, "", own)))
        out.append(Sheet(about, heads, tuple(rows)))
    return out


def _numbers(cells: pd.DataFrame, prefix: str, accuracy: pd.DataFrame | None) -> tuple[Value, ...]:
    scales = {"cka": (1, 3), "neighbors": (100, 1), "silhouette": (1, 3), "probe": (100, 1)}
    values = [Value(_mean(cells, f"{prefix}{name}", *scales[name])) for name in GEOMETRY]
    return (*values, Value("" if accuracy is None else _mean(accuracy, "accuracy_last", 100, 1)))


def _costs(found: pd.DataFrame) -> list[Sheet]:
    heads = ("", "best / last (%)", "forward_passes, features cached", "forward_passes, nothing cached", "seconds")
    out = []
    for about, part in _parts(found, ["data", "model", "noise"]):
        labeled = part.assign(label=[called(row) for row in part.itertuples()])
        rows = []
        for label, cells in _parts(labeled, ["label"]):
            spent = [Value(_mean(cells, name, 1, 0)) for name in ("forward_passes", "forward_passes_uncached")]
            rows.append((label, (_value(cells, "both", ()), *spent, Value(_mean(cells, "seconds", 1, 1)))))
        out.append(Sheet(about, heads, tuple(rows)))
    return out


def markdown(made: Sequence[Sheet], title: str, block: str, synthetic: bool, failed: Sequence[str]) -> str:
    """All tables with their footnotes as Markdown."""
    lines = [f"# {title}", ""]
    if synthetic:
        lines += [f"**{WARNING}**", ""]
    lines += [legend(made), ""]
    for sheet in made:
        lines += [f"## {sheet.title}", "", "| " + " | ".join(sheet.heads) + " |", "|" + "---|" * len(sheet.heads)]
        lines += ["| " + " | ".join([label, *map(_cell, values)]) + " |" for label, values in sheet.rows]
        lines.append("")
    lines += [f"- {footnote(note)}" for note in shown_notes(made, block)]
    if failed:
        lines += ["", "Failed:", "", *(f"- {line}" for line in failed)]
    return "\n".join(lines) + "\n"


def _cell(value: Value) -> str:
    paper = f" ({value.paper})" if value.paper else ""
    return f"{value.ours}{paper}{f' [{value.marks}]' if value.marks else ''}"


def legend(made: Sequence[Sheet]) -> str:
    """What stands in the places."""
    paper = any(value.paper for sheet in made for _, row in sheet.rows for value in row)
    best = (
        "Test accuracy in %; best is that of the epoch with the best validation accuracy, last that of the last epoch."
    )
    return f"Ours{', and in brackets the paper' + chr(39) + 's' if paper else ''}. {best}"


def shown_notes(made: Sequence[Sheet], block: str) -> list[Note]:
    """The notes about the whole block, and those whose mark stands somewhere."""
    used = {mark for sheet in made for _, row in sheet.rows for value in row for mark in value.marks}
    return [note for note in notes(block) if not note.mark or note.mark in used]


def footnote(note: Note) -> str:
    """A note with its mark and, where there is one, the claim it is about."""
    mark = f"[{note.mark}] " if note.mark else ""
    return f"{mark}{f'The paper: “{note.claim}” ' if note.claim else ''}{note.text}"


def console(made: Sequence[Sheet], block: str, synthetic: bool) -> str:
    """All tables with their footnotes as aligned text."""
    lines = [f"{WARNING}\n"] if synthetic else []
    lines.append(legend(made))
    for sheet in made:
        grid = [list(sheet.heads), *([label, *map(_cell, values)] for label, values in sheet.rows)]
        widths = [max(len(row[k]) for row in grid) for k in range(len(sheet.heads))]
        lines += ["", sheet.title]
        lines += ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in grid]
    lines += ["", *(footnote(note) for note in shown_notes(made, block))]
    return "\n".join(lines)
