"""Make tables in the shape of the paper's, with our numbers and its, for the console, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cleantune.report.wording import display_method
from cleantune.studies.compare.matrix import TUNINGS
from cleantune.studies.grid import DONE, FAILED
from cleantune.studies.turn_paper.numbers import KEYS, Note, notes, numbers

if TYPE_CHECKING:
    import pandas as pd

WARNING = (
    "Synthetic: synthetic images and tiny random networks. This run shows that the experiment works; its numbers say "
    "nothing about the methods."
)
"""Warning in every output of a synthetic run."""

GEOMETRY = ("cka", "neighbors", "silhouette", "probe")
"""Columns of the feature analysis."""


class Value(NamedTuple):
    """A value of a table: ours, the paper's, and marks of footnotes."""

    ours: str
    paper: str = ""
    marks: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table."""

    title: str
    heads: tuple[str, ...]
    """Column heads; the first is of the row labels."""
    rows: tuple[tuple[str, tuple[Value, ...]], ...]


@dataclass(frozen=True)
class Layout:
    """The layout of a block: keys of its tables, key of their columns, and the values shown."""

    keys: tuple[str, ...]
    column: str
    values: str
    """`both` (best / last) or `last`."""


LAYOUTS = {
    "table2": Layout(("data", "model"), "noise", "both"),
    "table3": Layout(("data",), "model", "both"),
    "table4": Layout(("data", "noise"), "model", "last"),
    "table5": Layout(("data", "noise"), "model", "both"),
}


def with_paper_numbers(frame: pd.DataFrame, block: str) -> pd.DataFrame:
    """Return the cells with the paper's numbers in the columns `paper_best`, `paper_last` and so on."""
    theirs = numbers(block).rename(columns={c: f"paper_{c}" for c in ("samples", "purity", "best", "last")})
    return frame.merge(theirs, on=list(KEYS), how="left")


def sheets(frame: pd.DataFrame, block: str) -> list[Sheet]:
    """Return the tables of a block from the frame of `with_paper_numbers`."""
    marked = notes(block)
    if block in LAYOUTS:
        return _grids(frame, LAYOUTS[block], marked)
    if block == "table9":
        return _selection(frame, marked)
    if block == "figure2":
        return _geometry(frame)
    return _costs(frame)


def row_label(row: Any) -> str:
    """Return the label of a cell's row: its variant, or tuning and method."""
    if row.variant:
        return str(row.variant)
    name = display_method(row.method)
    return f"LP-FFT {name}" if (row.method, row.scope) == ("turn", "all") else f"{TUNINGS[row.scope]} {name}"


def _grids(frame: pd.DataFrame, layout: Layout, marked: Sequence[Note]) -> list[Sheet]:
    out = []
    for about, part in _parts(frame, list(layout.keys)):
        columns = list(dict.fromkeys(part[layout.column]))
        labeled = part.assign(label=[row_label(row) for row in part.itertuples()])
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
    """Return our value over the seeds with the paper's."""
    if not len(cells):
        return Value("")
    first = cells.iloc[0]
    both = which == "both"
    names = ("accuracy_best_validation", "accuracy_last") if both else ("accuracy_last",)
    theirs = [first[name] for name in (("paper_best", "paper_last") if both else ("paper_last",))]
    paper = " / ".join(f"{v:.2f}" for v in theirs) if all(v == v for v in theirs) else ""
    return Value(" / ".join(_mean(cells, name, 100, 1) for name in names), paper, _marks(first, marked))


def _mean(cells: pd.DataFrame, name: str, scale: float, digits: int) -> str:
    """Return the mean over the finished seeds, ± their standard deviation if there are several."""
    values = scale * cells.loc[cells["status"] == DONE, name].dropna().astype(float)
    if not len(values):
        return "failed" if (cells["status"] == FAILED).any() else "–"
    spread = f" ± {values.std():,.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():,.{digits}f}{spread}"


def _marks(row: Any, marked: Sequence[Note]) -> str:
    key = tuple(row[name] for name in KEYS)
    return "".join(note.mark for note in marked if key in note.cells)


def _selection(frame: pd.DataFrame, marked: Sequence[Note]) -> list[Sheet]:
    out = []
    for about, part in _parts(frame, ["data", "model", "noise"]):
        rows = []
        for label, cells in _parts(part, ["variant"]):
            first = cells.iloc[0]
            samples = Value(_mean(cells, "selected", 1, 0), f"{first.paper_samples:,.0f}")
            purity = Value(_mean(cells, "purity", 100, 1), f"{first.paper_purity:.2f}")
            recall = Value(_mean(cells, "recall", 100, 1))
            rows.append((label, (samples, purity, recall, _value(cells, "both", marked))))
        heads = ("", "samples of the last selection", "purity (%)", "recall (%)", "best / last (%)")
        out.append(Sheet(about, heads, tuple(rows)))
    return out


def _geometry(frame: pd.DataFrame) -> list[Sheet]:
    out = []
    heads = ("features", "CKA to untouched", "20-NN accuracy (%)", "silhouette", "linear probe (%)", "last (%)")
    for about, part in _parts(frame, ["data", "model"]):
        cells = part[part["status"] == DONE]
        once = cells.drop_duplicates("seed")  # the same for all noises
        rows = [("untouched", _numbers(once, "untouched_", None))] if len(cells) else []
        for noise, after in _parts(part, ["noise"]):
            rows.append((f"after {noise}", _numbers(after, "", after)))
        out.append(Sheet(about, heads, tuple(rows)))
    return out


def _numbers(cells: pd.DataFrame, prefix: str, accuracy: pd.DataFrame | None) -> tuple[Value, ...]:
    scales = {"cka": (1, 3), "neighbors": (100, 1), "silhouette": (1, 3), "probe": (100, 1)}
    values = [Value(_mean(cells, f"{prefix}{name}", *scales[name])) for name in GEOMETRY]
    return (*values, Value("" if accuracy is None else _mean(accuracy, "accuracy_last", 100, 1)))


def _costs(frame: pd.DataFrame) -> list[Sheet]:
    heads = ("", "best / last (%)", "forward passes, features cached", "forward passes, no cache", "seconds")
    out = []
    for about, part in _parts(frame, ["data", "model", "noise"]):
        labeled = part.assign(label=[row_label(row) for row in part.itertuples()])
        rows = []
        for label, cells in _parts(labeled, ["label"]):
            spent = [Value(_mean(cells, name, 1, 0)) for name in ("forward_passes", "forward_passes_uncached")]
            rows.append((label, (_value(cells, "both", ()), *spent, Value(_mean(cells, "seconds", 1, 1)))))
        out.append(Sheet(about, heads, tuple(rows)))
    return out


def markdown(tables: Sequence[Sheet], title: str, block: str, synthetic: bool, failed: Sequence[str]) -> str:
    """Return all tables with their footnotes as Markdown."""
    lines = [f"# {title}", ""]
    if synthetic:
        lines += [f"**{WARNING}**", ""]
    lines += [legend(tables), ""]
    for sheet in tables:
        lines += [f"## {sheet.title}", "", "| " + " | ".join(sheet.heads) + " |", "|" + "---|" * len(sheet.heads)]
        lines += ["| " + " | ".join([label, *map(_cell, values)]) + " |" for label, values in sheet.rows]
        lines.append("")
    lines += [f"- {footnote(note)}" for note in shown_notes(tables, block)]
    if failed:
        lines += ["", "Failed:", "", *(f"- {line}" for line in failed)]
    return "\n".join(lines) + "\n"


def _cell(value: Value) -> str:
    paper = f" ({value.paper})" if value.paper else ""
    return f"{value.ours}{paper}{f' [{value.marks}]' if value.marks else ''}"


def legend(tables: Sequence[Sheet]) -> str:
    """Return the explanation of the values."""
    paper = any(value.paper for sheet in tables for _, row in sheet.rows for value in row)
    values = "Our results, with the paper's in brackets." if paper else "Our results."
    return f"{values} Test accuracy in %: best of the epoch with the best validation accuracy, last of the last epoch."


def shown_notes(tables: Sequence[Sheet], block: str) -> list[Note]:
    """Return the notes about the block, and those whose mark occurs in a table."""
    used = {mark for sheet in tables for _, row in sheet.rows for value in row for mark in value.marks}
    return [note for note in notes(block) if not note.mark or note.mark in used]


def footnote(note: Note) -> str:
    """Return a note with its mark and, if there is one, the paper's claim that it is about."""
    mark = f"[{note.mark}] " if note.mark else ""
    return f"{mark}{f'The paper: “{note.claim}” ' if note.claim else ''}{note.text}"


def console_text(tables: Sequence[Sheet], block: str, synthetic: bool) -> str:
    """Return all tables with their footnotes as aligned text."""
    lines = [f"{WARNING}\n"] if synthetic else []
    lines.append(legend(tables))
    for sheet in tables:
        grid = [list(sheet.heads), *([label, *map(_cell, values)] for label, values in sheet.rows)]
        widths = [max(len(row[k]) for row in grid) for k in range(len(sheet.heads))]
        lines += ["", sheet.title]
        lines += ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in grid]
    lines += ["", *(footnote(note) for note in shown_notes(tables, block))]
    return "\n".join(lines)
