"""Reproduce the experiments of TURN's paper (arXiv:2310.17668): their files, their numbers and our results.

`cleantune.studies.turn_paper.reproduce.reproduce` runs one; the verb is `cleantune reproduce`.
"""
