"""Data in: folders, tables, datasets and arrays become rows with given labels; true labels stay apart."""

from cleantune.config.data import DataSpec
from cleantune.data.captions import KIND, write_swapped
from cleantune.data.corrupt import corrupt, write_like
from cleantune.data.dataset import Bad, Data, DataKind, Rows, Samples
from cleantune.data.labeled_eval import Judged, load_judged
from cleantune.data.load import load, load_unlabeled

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
    "load_unlabeled",
    "write_like",
    "write_swapped",
]
