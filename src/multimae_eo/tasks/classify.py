"""Classification of whole images: one label of several classes, or any number of labels."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_average_precision,
    multiclass_accuracy,
    multilabel_f1_score,
)


class Classification:
    """One class per image: cross-entropy; accuracy over images, and averaged over classes that have a label."""

    metrics = ("accuracy", "accuracy_macro")
    primary = "accuracy"

    def __init__(self, num_classes: int, *, label_smoothing: float = 0.0):
        self.num_classes, self.label_smoothing = num_classes, label_smoothing

    def losses(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        losses = F.cross_entropy(predicted.float(), label, reduction="none", label_smoothing=self.label_smoothing)
        return losses.masked_fill(~known, 0.0)

    def evidence(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        """[b, 2]: predicted class and label, of the known ones."""
        return torch.stack([predicted.argmax(dim=1), label], dim=1)[known].double().cpu()

    def score(self, evidence: Tensor) -> dict[str, float]:
        if not len(evidence):
            return dict.fromkeys(self.metrics, float("nan"))
        predicted, label = evidence.long().T
        recall = multiclass_accuracy(predicted, label, self.num_classes, average="none", validate_args=False)
        there = torch.bincount(label, minlength=self.num_classes) > 0
        return {"accuracy": float((predicted == label).double().mean()), "accuracy_macro": float(recall[there].mean())}

    def confusion(self, evidence: Tensor) -> Tensor:
        """[k, k]: images of each label (rows) that are predicted as each class."""
        (predicted, label), number = evidence.long().T, self.num_classes
        return torch.bincount(label * number + predicted, minlength=number**2).view(number, number)


class MultiLabel:
    """Any number of labels per image: binary cross-entropy; F1 at a probability of one half, average precision.

    F1 has no value of a class without label and prediction, which no average counts.
    """

    metrics = ("f1_micro", "f1_macro", "map_micro")
    primary = "f1_micro"

    def __init__(self, num_classes: int, *, label_smoothing: float = 0.0):
        self.num_classes, self.label_smoothing = num_classes, label_smoothing

    def losses(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        target = label * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(predicted.float(), target, reduction="none").mean(dim=1)
        return losses.masked_fill(~known, 0.0)

    def evidence(self, predicted: Tensor, label: Tensor, known: Tensor) -> Tensor:
        """[b, 2 k]: probabilities, then labels, of the known ones."""
        return torch.cat([predicted.sigmoid(), label], dim=1)[known].double().cpu()

    def score(self, evidence: Tensor) -> dict[str, float]:
        if not len(evidence):
            return dict.fromkeys(self.metrics, float("nan"))
        probability, label = evidence.split(self.num_classes, dim=1)
        probability, label, number = probability.float(), label.long(), self.num_classes
        there = ((probability > 0.5) | (label > 0)).any(dim=0)
        micro = multilabel_f1_score(probability, label, number, average="micro", validate_args=False)
        single = multilabel_f1_score(probability, label, number, average="none", validate_args=False)
        return {
            "f1_micro": float(micro) if there.any() else float("nan"),
            "f1_macro": float(single.view(-1)[there].mean()),
            # Micro-averaged: every image and label is one decision.
            "map_micro": self._average_precision(probability.flatten(), label.flatten()),
        }

    def _average_precision(self, probability: Tensor, label: Tensor) -> float:
        if not label.any():
            return float("nan")
        return float(binary_average_precision(probability, label, validate_args=False))
