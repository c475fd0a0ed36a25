"""Run transfer studies: tunings on the frozen features of several backbones, tested in and out of domain.

Source: the protocol of arXiv:2309.17002; all tunings use identical cached features.
"""

from cleantune.studies.transfer.run import run
from cleantune.studies.transfer.study import Study, make_synthetic, read, relocate, study_from_dict

__all__ = ["Study", "make_synthetic", "read", "relocate", "run", "study_from_dict"]
