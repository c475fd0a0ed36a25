"""Probability of each label to be wrong, for `fit` and `audit`: probes, a noise model, and scores."""
