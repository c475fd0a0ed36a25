"""Data: folders, tables, datasets and arrays as rows with given labels; true labels are kept apart from them."""

from cleantune.data.captions import CAPTION_NOISE, write_swapped_captions
from cleantune.data.corrupt import corrupt, write_corrupted
from cleantune.data.dataset import Data, DataKind, Rows, Samples, UnreadableImage
from cleantune.data.labeled_eval import LabeledEvalSet, load_labeled_eval_set
from cleantune.data.load import load, load_unlabeled

__all__ = [
    "CAPTION_NOISE",
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
    "write_swapped_captions",
]
