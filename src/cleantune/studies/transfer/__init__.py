"""Transfer studies: what frozen backbones are worth on tasks in and out of domain, by which tuning.

Source: the protocol of arXiv:2309.17002 (nmtune spec 1.3 to 1.5 and 5): all tunings on identical cached features.
"""

from cleantune.studies.transfer.running import run
from cleantune.studies.transfer.standin import synthetic as rehearsed
from cleantune.studies.transfer.study import Study, placed, read, study

__all__ = ["Study", "placed", "read", "rehearsed", "run", "study"]
