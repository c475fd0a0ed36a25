"""Two-component mixture of the losses of each class, fitted in a loop as implementations of DivideMix and TURN do."""

import numpy as np
from sklearn.mixture import GaussianMixture


def p_clean(losses, labels, classes):
    p = np.zeros(len(losses))
    for c in range(classes):
        mine = labels == c
        x = losses[mine].reshape(-1, 1)
        mixture = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4).fit(x)
        p[mine] = mixture.predict_proba(x)[:, mixture.means_.argmin()]
    return p
