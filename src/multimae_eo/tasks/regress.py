"""Regression of a value for every pixel, in the unit of the labels."""

import torch
from torch import Tensor
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from multimae_eo.tasks.task import computed


class Regression:
    """Squared error per known pixel, in standard deviations of the training labels.

    Predictions have the labels' unit.
    """

    metrics = ("rmse", "mae", "bias", "r2")
    primary = "r2"

    def __init__(self, *, std: float = 1.0):
        self.std = std
        self._rmse, self._mae, self._r2 = MeanSquaredError(squared=False), MeanAbsoluteError(), R2Score()

    def losses(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        error = (predicted.float()[:, 0] - label).masked_fill(~known, 0.0) / self.std
        return error.square().sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)

    def evidence(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        """[b, 6]: known pixels, and their sums of error, its size, its square, of the label and its square."""
        truth = label.double().masked_fill(~known, 0.0)
        error = (predicted[:, 0].double() - label.double()).masked_fill(~known, 0.0)
        parts = (known.double(), error, error.abs(), error.square(), truth, truth.square())
        return torch.stack([part.sum(dim=(1, 2)) for part in parts], dim=1).cpu()

    def score(self, evidence: Tensor) -> dict[str, float]:
        """Root mean squared and mean absolute error and bias in the labels' unit, and R2, over all known pixels."""
        number, error, size, squares, truth, truth_squares = evidence.sum(dim=0)
        if number < 2:
            return dict.fromkeys(self.metrics, float("nan"))
        rmse = computed(self._rmse, sum_squared_error=squares, total=number)
        mae = computed(self._mae, sum_abs_error=size, total=number)
        sums = {"sum_squared_error": truth_squares, "sum_error": truth, "residual": squares, "total": number}
        r2 = float(computed(self._r2, **sums)) if truth_squares * number > truth**2 else float("nan")
        return {"rmse": float(rmse), "mae": float(mae), "bias": float(error / number), "r2": r2}
