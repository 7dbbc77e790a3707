"""Semantic segmentation: a class for every pixel; intersection over union over the whole split."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from multimae_eo.tasks.task import computed


class Segmentation:
    """Cross-entropy per known pixel, with or without Dice; unknown pixels count nowhere.

    dice: weight of the Dice loss of each sample over the classes it has (Milletari et al., V-Net, 2016).
    """

    metrics = ("miou", "pixel_accuracy")
    primary = "miou"

    def __init__(self, num_classes: int, *, label_smoothing: float = 0.0, dice: float = 0.0):
        self.num_classes, self.label_smoothing, self.dice = num_classes, label_smoothing, dice
        self._jaccard = {
            average: MulticlassJaccardIndex(num_classes, average=average, validate_args=False)
            for average in ("macro", "none")
        }
        self._accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)

    def losses(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        scores = predicted.float()
        pixels = F.cross_entropy(scores, label, reduction="none", label_smoothing=self.label_smoothing)
        number = known.sum(dim=(1, 2))
        losses = pixels.masked_fill(~known, 0.0).sum(dim=(1, 2)) / number.clamp(min=1)
        return losses + self.dice * self._dice(scores, label, known) if self.dice else losses

    def _dice(self, scores: Tensor, label: Tensor, known: Tensor) -> Tensor:
        share = scores.softmax(dim=1).masked_fill(~known[:, None], 0.0)
        truth = F.one_hot(label, self.num_classes).permute(0, 3, 1, 2) * known[:, None]
        common, total = (share * truth).sum(dim=(2, 3)), share.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
        there = truth.any(dim=3).any(dim=2)
        loss = 1 - 2 * common / total.clamp(min=1e-6)
        return loss.masked_fill(~there, 0.0).sum(dim=1) / there.sum(dim=1).clamp(min=1)

    def evidence(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        """[b, k, k]: confusion matrix of each sample over its known pixels, rows are labels."""
        sample = torch.arange(len(label), device=label.device)[:, None, None]
        cell = (sample * self.num_classes + label) * self.num_classes + predicted.argmax(dim=1)
        counts = torch.bincount(cell[known], minlength=len(label) * self.num_classes**2)
        return counts.reshape(len(label), self.num_classes, self.num_classes).double().cpu()

    def score(self, evidence: Tensor) -> dict[str, float]:
        matrix = evidence.sum(dim=0).long()
        right, pixels = matrix.diag().sum(), matrix.sum()
        if not pixels:
            return dict.fromkeys(self.metrics, float("nan"))
        rest = {"tn": (self.num_classes - 2) * pixels + right, "fp": pixels - right, "fn": pixels - right}
        return {
            "miou": float(computed(self._jaccard["macro"], confmat=matrix)),
            "pixel_accuracy": float(computed(self._accuracy, tp=right, **rest)),
        }

    def confusion(self, evidence: Tensor) -> Tensor:
        """[k, k]: pixels of each label (rows) that are predicted as each class."""
        return evidence.sum(dim=0).long()

    def class_iou(self, evidence: Tensor) -> Tensor:
        """Intersection over union of each class [k]; 0 for a class that neither labels nor predictions have."""
        return computed(self._jaccard["none"], confmat=evidence.sum(dim=0).long())
