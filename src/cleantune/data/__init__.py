"""Data in: folders, tables, datasets and arrays become rows with given labels; true labels stay apart."""

from cleantune.data.captions import KIND, write_swapped
from cleantune.data.corrupt import corrupt, write_corrupted
from cleantune.data.dataset import Data, DataKind, Rows, Samples, UnreadableImage
from cleantune.data.labeled_eval import LabeledEvalSet, load_labeled_eval_set
from cleantune.data.load import load, load_unlabeled

__all__ = [
    "KIND",
    "Data",
    "DataKind",
    "LabeledEvalSet",
    "Rows",
    "Samples",
    "UnreadableImage",
    "corrupt",
    "load",
    "load_labeled_eval_set",
    "load_unlabeled",
    "write_corrupted",
    "write_swapped",
]
