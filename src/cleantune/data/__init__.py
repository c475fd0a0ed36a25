"""Data in: folders, tables, datasets and arrays become rows with given labels; true labels stay apart."""

from cleantune.data.corrupt import corrupt, write_like
from cleantune.data.judged import Judged, load_judged
from cleantune.data.load import load, load_unlabelled
from cleantune.data.pairs import KIND, write_swapped
from cleantune.data.rows import Bad, Data, DataKind, Rows, Samples
from cleantune.data.spec import DataSpec

__all__ = [
    "KIND",
    "Bad",
    "Data",
    "DataKind",
    "DataSpec",
    "Judged",
    "Rows",
    "Samples",
    "corrupt",
    "load",
    "load_judged",
    "load_unlabelled",
    "write_like",
    "write_swapped",
]
