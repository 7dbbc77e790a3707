"""What a task is to training and evaluation: losses per sample, and metrics from what is kept of each sample."""

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

# Resamples of a bootstrap interval.
RESAMPLES = 1000


class Task(Protocol):
    """Losses and metrics of one kind of label.

    metrics: their names; primary: the one that "best" means, larger is better. Predictions are what `Predictor` gives;
    labels and `known` are batches of `data.labelled.Label`.
    """

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def primary(self) -> str: ...

    def losses(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        """Mean loss of each sample over its known labels [b]; 0 where it has none."""
        ...

    def evidence(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        """What metrics need of each sample [b, ...], in float64 on the CPU."""
        ...

    def score(self, evidence: Tensor) -> dict[str, float]:
        """Metrics over the samples of some evidence [n, ...]; NaN where one has no value."""
        ...


def computed(metric: Metric, **states: Tensor) -> Tensor:
    """A metric of torchmetrics from its states, which are sums over samples."""
    metric.reset()
    for name, value in states.items():
        setattr(metric, name, value)
    metric._update_count = 1
    return metric.compute()


def intervals(task: Task, evidence: Tensor, *, seed: int) -> dict[str, tuple[float, float, float]]:
    """{metric: (value, low, high)}: 95 % percentile intervals of a bootstrap over samples (Efron, 1979)."""
    values = task.score(evidence)
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    draws: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(RESAMPLES):
        chosen = torch.from_numpy(random.integers(0, len(evidence), len(evidence)))
        for name, value in task.score(evidence[chosen]).items():
            draws[name].append(value)
    return {name: (value, *_percentiles(draws[name])) for name, value in values.items()}


def _percentiles(draws: list[float]) -> tuple[float, float]:
    known = np.asarray(draws)[np.isfinite(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def undefined(metrics: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """A warning for every metric that has no value."""
    return [f"{name} has no value on test" for name, (value, *_) in metrics.items() if not math.isfinite(value)]
