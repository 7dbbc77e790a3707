"""Regression of a value for every pixel, in the unit of the labels."""

import torch
from torch import Tensor
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score


class Regression:
    """Squared error per known pixel, in standard deviations of the training labels.

    Predictions have the labels' unit.
    """

    metrics = ("rmse", "mae", "bias", "r2")
    primary = "r2"

    def __init__(self, *, std: float = 1.0):
        self.std = std

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
        rmse, mae, r2 = MeanSquaredError(squared=False), MeanAbsoluteError(), R2Score()
        rmse.sum_squared_error, rmse.total = squares, number
        mae.sum_abs_error, mae.total = size, number
        r2.sum_squared_error, r2.sum_error, r2.residual, r2.total = truth_squares, truth, squares, number
        for metric in (rmse, mae, r2):
            metric._update_count = 1
        known = {"rmse": float(rmse.compute()), "mae": float(mae.compute()), "bias": float(error / number)}
        return {**known, "r2": float(r2.compute()) if truth_squares * number > truth**2 else float("nan")}
