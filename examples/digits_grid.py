"""The work of the demo: a few hundred classifiers for handwritten digits, each cross-validated as one task.

scikit-learn is imported inside the functions: it is built on the nodes and need not be installed here.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from typing import Any

import fallow

app = fallow.App("digits", env=fallow.Env(pip=["scikit-learn>=1.5", "numpy>=2"]))

FOLDS = 5
HELD_OUT = 0.2
SEED = 7


def configurations() -> list[dict[str, Any]]:
    """Every configuration of the search, in a fixed order that mixes cheap and dear ones."""
    grid: list[dict[str, Any]] = []
    for c, gamma, scale in itertools.product(
        (0.03, 0.1, 0.3, 1, 3, 10, 30, 100), (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3), (False, True)
    ):
        grid.append({"model": "support vectors", "C": c, "gamma": gamma, "scale": scale})
    for neighbours, power, weights in itertools.product(range(1, 17, 2), (1, 2), ("uniform", "distance")):
        grid.append({"model": "neighbours", "n_neighbors": neighbours, "p": power, "weights": weights})
    for c in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300):
        grid.append({"model": "logistic", "C": c})
    for kind, trees, features in itertools.product(
        ("forest", "extra trees"), (30, 60, 120), ("sqrt", "log2", 0.3, 0.5)
    ):
        grid.append({"model": kind, "n_estimators": trees, "max_features": features})
    for layers, alpha, rate in itertools.product(
        ((24,), (48,), (32, 16)), (1e-5, 1e-3, 0.1, 1.0), (0.001, 0.003, 0.01)
    ):
        grid.append({"model": "network", "hidden_layer_sizes": layers, "alpha": alpha, "learning_rate_init": rate})
    # A fixed stride that shares no factor with the length visits each once.
    return [grid[(index * 89) % len(grid)] for index in range(len(grid))]


@functools.cache
def data() -> Any:
    """(training images, held-out images, training labels, held-out labels); loaded once per worker."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    return train_test_split(images, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED)


def make_model(configuration: dict[str, Any]) -> Any:
    """The scikit-learn estimator of one configuration."""
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
    from sklearn.svm import SVC

    settings = dict(configuration)
    kind = settings.pop("model")
    scale = settings.pop("scale", kind in ("logistic", "network"))
    if kind == "support vectors":
        model = SVC(**settings)
    elif kind == "neighbours":
        model = KNeighborsClassifier(**settings)
    elif kind == "logistic":
        model = LogisticRegression(max_iter=300, **settings)
    elif kind == "network":
        model = MLPClassifier(max_iter=60, random_state=SEED, **settings)
    elif kind == "forest":
        model = RandomForestClassifier(random_state=SEED, **settings)
    else:
        model = ExtraTreesClassifier(random_state=SEED, **settings)
    return make_pipeline(MinMaxScaler(), model) if scale else model


def node_name() -> str:
    """Which of the demo's nodes this task runs on."""
    return os.environ.get("DEMO_NODE", "?")


@app.function(timeout=120, retries=1)
def evaluate(configuration: dict[str, Any]) -> dict[str, Any]:
    """Cross-validate one configuration. Times are unix seconds."""
    import warnings

    from sklearn.model_selection import StratifiedKFold, cross_val_score

    images, _, labels, _ = data()
    started = time.time()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = cross_val_score(make_model(configuration), images, labels, cv=folds)
    return {
        "configuration": configuration,
        "score": float(scores.mean()),
        "spread": float(scores.std()),
        "started": started,
        "ended": time.time(),
        "node": node_name(),
    }


@app.function()
def warm_up(seconds: float) -> str:
    """Load the data on a node and keep it busy for a moment, so that others get their share."""
    data()
    time.sleep(seconds)
    return node_name()


@app.function(timeout=120)
def final_check(configuration: dict[str, Any]) -> dict[str, Any]:
    """Train on all training images and look at those that no search has seen."""
    from sklearn.metrics import confusion_matrix

    train_images, test_images, train_labels, test_labels = data()
    model = make_model(configuration).fit(train_images, train_labels)
    guesses = model.predict(test_images)
    return {
        "accuracy": float((guesses == test_labels).mean()),
        "confusion": confusion_matrix(test_labels, guesses).tolist(),
        "held_out": len(test_labels),
    }
