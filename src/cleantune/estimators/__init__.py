"""Classifiers on arrays with scikit-learn's interface."""

from cleantune.estimators.classifiers import LinearProbe, MLPTune, NMTune, RobustProbe

__all__ = ["LinearProbe", "MLPTune", "NMTune", "RobustProbe"]
