"""Losses against formulas written by hand, metrics against scikit-learn, intervals, and what training labels hold."""

import itertools
import math
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sk

from multimae_eo.config import TaskConfig
from multimae_eo.data.labelled import Description, Label, numbered_classes
from multimae_eo.errors import ConfigError, DataError
from multimae_eo.tasks.classify import Classification, MultiLabel
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import summarise
from multimae_eo.tasks.regress import Regression
from multimae_eo.tasks.segment import Segmentation
from multimae_eo.tasks.task import Task, intervals, undefined

K = 5
NAMES = ("classification", "multilabel", "segmentation", "regression")
each_task = pytest.mark.parametrize("name", NAMES)


def a_task(name: str, **options) -> Task:
    classes = () if name == "regression" else numbered_classes([f"class {i}" for i in range(K)])
    head = "convnext" if name in ("segmentation", "regression") else "linear"
    config = TaskConfig(task=name, head=head, inputs=("rgb",), classes=classes, std=4.0)
    return task_for(config, **options)


def draw(name: str, number: int = 60, seed: int = 0, absent: int | None = None) -> tuple[torch.Tensor, ...]:
    """Predictions, labels, known; a tenth (of the pixels, of dense tasks) unknown; a class that no label has."""
    random = torch.Generator().manual_seed(seed)
    if name in ("classification", "multilabel"):
        scores = torch.randn(number, K, generator=random)
        if name == "multilabel":
            label = (torch.rand(number, K, generator=random) < 0.3).float()
            label[:, absent] = 0 if absent is not None else label[:, absent]
        else:
            label = torch.randint(K, (number,), generator=random)
            scores[torch.arange(number), label] += 1
            label = label.where(label != absent, (label + 1) % K) if absent is not None else label
        return scores, label, torch.rand(number, generator=random) < 0.9
    size = (number, 9, 7)
    known = torch.rand(size, generator=random) < 0.9
    if name == "regression":
        label = 20 + 4 * torch.randn(size, generator=random)
        return (label + torch.randn(size, generator=random) - 0.3)[:, None], label, known
    label = torch.randint(K, size, generator=random)
    scores = torch.randn(number, K, 9, 7, generator=random) + 2 * F.one_hot(label, K).movedim(-1, 1)
    label = label.where(label != absent, (label + 1) % K) if absent is not None else label
    return scores, label, known


# Metrics


@pytest.mark.parametrize("absent", [None, 3])
def test_accuracy(absent):
    scores, label, known = draw("classification", absent=absent)
    task = a_task("classification")
    found = task.score(task.evidence(scores, label, known))
    truth, guess = label[known].numpy(), scores.argmax(dim=1)[known].numpy()
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert 3 in guess
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes that have no label
        assert found["accuracy_macro"] == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert tuple(found) == task.metrics


def test_intervals_of_perfect_predictions_do_not_depend_on_rare_classes(monkeypatch):
    """Resamples lack some of them."""
    monkeypatch.setattr("multimae_eo.tasks.task.RESAMPLES", 20)
    label = torch.arange(40) // 2
    for task, scores, given in (
        (Classification(20), 9 * torch.eye(20)[label], label),
        (MultiLabel(20), 18 * torch.eye(20)[label] - 9, torch.eye(20)[label]),
    ):
        evidence = task.evidence(scores, given, torch.ones(40, dtype=torch.bool))
        assert set(intervals(task, evidence, seed=0).values()) == {(1.0, 1.0, 1.0)}


def test_no_label_and_no_prediction_is_no_score():
    task = MultiLabel(3)
    found = task.score(task.evidence(torch.full((4, 3), -9.0), torch.zeros(4, 3), torch.ones(4, dtype=torch.bool)))
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("absent", [None, 3])
def test_scores_of_several_labels(absent):
    scores, label, known = draw("multilabel", absent=absent)
    task = a_task("multilabel")
    found = task.score(task.evidence(scores, label, known))
    truth, probability = label[known].numpy(), scores.sigmoid()[known].numpy()
    guess = (scores[known] > 0).numpy()
    for average in ("micro", "macro"):
        want = sk.f1_score(truth, guess, average=average, zero_division=np.nan)
        assert found[f"f1_{average}"] == pytest.approx(want, rel=1e-5)
    want = sk.average_precision_score(truth, probability, average="micro")
    assert found["map_micro"] == pytest.approx(want, rel=1e-5)
    assert tuple(found) == task.metrics


@pytest.mark.parametrize("absent", [None, 3])
def test_intersection_over_union_is_of_all_known_pixels_of_the_split(absent):
    scores, label, known = draw("segmentation", absent=absent)
    if absent is not None:
        scores[:, absent] = -9  # neither labelled nor predicted: counts nowhere
    task = a_task("segmentation")
    assert isinstance(task, Segmentation)
    evidence = task.evidence(scores, label, known)
    found = task.score(evidence)
    truth, guess = label[known].numpy(), scores.argmax(dim=1)[known].numpy()
    assert found["miou"] == pytest.approx(sk.jaccard_score(truth, guess, average="macro"), rel=1e-5)
    assert found["pixel_accuracy"] == pytest.approx(sk.accuracy_score(truth, guess), rel=1e-5)
    want = sk.jaccard_score(truth, guess, average=None, labels=range(K), zero_division=0)
    assert np.allclose(task.class_iou(evidence).numpy(), want, rtol=1e-5)
    per_image = np.mean([task.score(e[None])["miou"] for e in evidence])
    assert found["miou"] != pytest.approx(per_image, abs=1e-3)


def test_errors_of_a_regression():
    predicted, label, known = draw("regression")
    task = a_task("regression")
    found = task.score(task.evidence(predicted, label, known))
    truth, guess = label[known].double().numpy(), predicted[:, 0][known].double().numpy()
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, guess))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, guess))
    assert found["r2"] == pytest.approx(sk.r2_score(truth, guess))
    assert found["bias"] == pytest.approx((guess - truth).mean())
    assert found["bias"] < -0.2


def test_a_regression_without_variety_or_without_values_has_no_r2():
    task = Regression()
    flat = torch.full((2, 3, 3), 4.0)
    found = task.score(task.evidence(flat[:, None] + 1, flat, torch.ones(2, 3, 3, dtype=torch.bool)))
    assert found["rmse"] == pytest.approx(1)
    assert np.isnan(found["r2"])
    none = task.score(task.evidence(flat[:, None], flat, torch.zeros(2, 3, 3, dtype=torch.bool)))
    assert all(np.isnan(value) for value in none.values())


@each_task
def test_evidence_adds_up_over_any_batches(name):
    given, task = draw(name), a_task(name)
    whole = task.evidence(*given)
    for bounds in ((0, 60), (0, 1, 60), (0, 7, 30, 31, 60)):
        pairs = itertools.pairwise(bounds)
        parts = torch.cat([task.evidence(*(part[low:high] for part in given)) for low, high in pairs])
        torch.testing.assert_close(parts, whole)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))
    assert task.score(whole[order]) == pytest.approx(task.score(whole), rel=1e-5)
    assert whole.dtype == torch.float64
    assert whole.device.type == "cpu"


@each_task
def test_what_is_not_known_changes_neither_loss_nor_metric(name):
    predicted, label, known = draw(name)
    task = a_task(name, label_smoothing=0.1 * (name != "regression"), dice=0.5 * (name == "segmentation"))
    other = label.clone()
    other[~known] = (1 - label if name == "multilabel" else (label + 1) % K)[~known]
    guess = predicted.clone()
    where = known[:, None] if known.ndim == 3 else known[:, None].expand_as(predicted)
    guess = torch.where(where, predicted, predicted.flip(0) + 3)
    for a, b in zip(task.losses(predicted, label, known), task.losses(guess, other, known), strict=True):
        assert a == b
    assert torch.equal(task.evidence(predicted, label, known), task.evidence(guess, other, known))
    losses = task.losses(predicted, label, torch.zeros_like(known))
    assert torch.equal(losses, torch.zeros(60))


@pytest.mark.parametrize("name", NAMES[2:])
def test_padding_changes_neither_loss_nor_metric(name):
    predicted, label, known = draw(name)
    task = a_task(name, dice=0.5 * (name == "segmentation"))
    padded = F.pad(predicted, (0, 5, 0, 3), value=2.0), *(F.pad(x, (0, 5, 0, 3)) for x in (label, known))
    torch.testing.assert_close(task.losses(*padded), task.losses(predicted, label, known))
    torch.testing.assert_close(task.evidence(*padded), task.evidence(predicted, label, known))


def test_parts_of_a_loss_that_a_task_does_not_have_are_refused():
    with pytest.raises(ConfigError, match=r"optim\.dice is 0\.5, but only a segmentation"):
        a_task("classification", dice=0.5)
    with pytest.raises(ConfigError, match=r"optim\.label_smoothing is 0\.1, but a regression has no classes"):
        a_task("regression", label_smoothing=0.1)


def test_a_segmentation_without_a_known_pixel_has_no_value():
    scores, label, known = draw("segmentation")
    task = a_task("segmentation")
    found = task.score(task.evidence(scores, label, torch.zeros_like(known)))
    assert tuple(found) == task.metrics
    assert all(np.isnan(value) for value in found.values())


# Losses


def test_label_smoothing():
    scores, label, _ = draw("classification")
    known = torch.ones(60, dtype=torch.bool)
    target = 0.8 * F.one_hot(label, K) + 0.2 / K
    want = -(target * scores.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(Classification(K, label_smoothing=0.2).losses(scores, label, known), want)
    scores, label, _ = draw("multilabel")
    target, share = 0.8 * label + 0.1, scores.sigmoid()
    want = -(target * share.log() + (1 - target) * (1 - share).log()).mean(dim=1)
    torch.testing.assert_close(MultiLabel(K, label_smoothing=0.2).losses(scores, label, known), want)
    scores, label, known = draw("segmentation")
    target = (0.8 * F.one_hot(label, K) + 0.2 / K).movedim(-1, 1)
    pixels = -(target * scores.log_softmax(dim=1)).sum(dim=1)
    want = torch.stack([p[k].mean() for p, k in zip(pixels, known, strict=True)])
    torch.testing.assert_close(Segmentation(K, label_smoothing=0.2).losses(scores, label, known), want)


def test_dice():
    scores, label, known = draw("segmentation", number=4)
    label[2] = 1  # a sample of one class
    plain, both = (Segmentation(K, dice=weight).losses(scores, label, known) for weight in (0.0, 0.7))
    want = []
    for share, truth, counted in zip(scores.softmax(dim=1), label, known, strict=True):
        terms = []
        for c in range(K):
            p, t = share[c][counted], (truth[counted] == c).float()
            if t.any():
                terms.append(1 - 2 * (p * t).sum() / (p.sum() + t.sum()))
        want.append(sum(terms) / len(terms))
    torch.testing.assert_close(both - plain, 0.7 * torch.stack(want), atol=1e-6, rtol=1e-5)
    sure = 50 * F.one_hot(label, K).movedim(-1, 1).float()
    torch.testing.assert_close(Segmentation(K, dice=1.0).losses(sure, label, known), torch.zeros(4))


def test_the_loss_of_a_regression_is_in_deviations_of_the_labels():
    predicted, label, known = draw("regression")
    want = torch.stack(
        [((p - y)[k] / 4).square().mean() for p, y, k in zip(predicted[:, 0], label, known, strict=True)]
    )
    torch.testing.assert_close(a_task("regression").losses(predicted, label, known), want)


# Intervals


class Fixed:
    """A task whose one metric is the mean, without a value where that is below 0."""

    metrics = ("mean",)
    primary = "mean"

    def score(self, evidence: torch.Tensor) -> dict[str, float]:
        mean = float(evidence.mean())
        return {"mean": mean if mean >= 0 else float("nan")}


@each_task
def test_intervals_contain_the_value_and_are_pure_in_the_seed(name, monkeypatch):
    monkeypatch.setattr("multimae_eo.tasks.task.RESAMPLES", 50)
    task = a_task(name)
    evidence = task.evidence(*draw(name))
    found = intervals(task, evidence, seed=1)
    assert found == intervals(task, evidence, seed=1)
    assert found != intervals(task, evidence, seed=2)
    assert tuple(found) == task.metrics
    for metric, (value, low, high) in found.items():
        assert low < value < high, metric
        assert value == task.score(evidence)[metric]


def test_intervals_have_the_width_of_a_mean():
    evidence = 9 + torch.randn(400, generator=torch.Generator().manual_seed(0))
    value, low, high = intervals(Fixed(), evidence, seed=0)["mean"]
    error = 1.96 * float(evidence.std()) / 20
    assert (value - low, high - value) == pytest.approx((error, error), rel=0.12)


def test_draws_without_a_value_are_left_out_of_the_interval():
    evidence = torch.tensor([-1.0, -1.0, 3.0])
    value, low, high = intervals(Fixed(), evidence, seed=0)["mean"]
    assert value == pytest.approx(1 / 3)
    assert 0 <= low <= high <= 3
    found = intervals(Fixed(), torch.tensor([-1.0, -2.0]), seed=0)
    assert np.isnan(found["mean"]).all()
    assert undefined(found) == ["mean has no value on test"]
    assert undefined({"mean": (0.5, float("nan"), float("nan"))}) == []


# Labels of a training split


class Given:
    """A source of labels alone."""

    def __init__(self, task: str, labels: list[Label], names: tuple[str, ...] = ("water", "forest", "field")):
        self.labels = labels
        self.about = Description("own", task, ("B04",), numbered_classes(() if task == "regression" else names))
        self.ids: Mapping[str, tuple[str, ...]] = {
            "train": tuple(map(str, range(len(labels)))),
            "valid": (),
            "test": (),
        }

    def label(self, sample_id: str) -> Label:
        return self.labels[int(sample_id)]


def single(*codes: int, known: bool = True) -> list[Label]:
    return [Label(np.array(code, np.int64), np.array(known)) for code in codes]


def several(*rows: tuple[int, ...]) -> list[Label]:
    return [Label(np.array(row, np.float32), np.array(True)) for row in rows]


def mask(values: list, known: list | bool = True, kind: type = np.int64) -> Label:
    array = np.array(values, kind)
    return Label(array, np.broadcast_to(np.array(known), array.shape))


def test_classes_are_counted_and_missing_ones_named():
    found = summarise(Given("classification", [*single(0, 2, 2), *single(1, known=False)]))
    assert (found.counts, found.warnings) == ((1, 0, 2), ("missing in train: forest",))
    unknown = several((0, 1, 1))[0]._replace(known=np.array(False))
    found = summarise(Given("multilabel", [*several((1, 0, 0), (1, 0, 0)), unknown]))
    assert (found.counts, found.warnings) == ((2, 0, 0), ("missing in train: forest, field",))
    found = summarise(Given("segmentation", [mask([[0, 1], [2, 2]], [[True, True], [False, True]]), mask([[1, 1]])]))
    assert (found.counts, found.warnings) == ((1, 3, 1), ())


def test_moments_of_a_regression_are_of_the_known_values():
    known = Label(np.array([[1.0, 2.0, 3.0]]), np.array([[True] * 3]))
    found = summarise(Given("regression", [known, mask([[5, 99]], [[True, False]], np.float32)]))
    assert (found.mean, found.std) == pytest.approx((2.75, np.std([1, 2, 3, 5])))
    assert found.warnings == ()


NOWHERE = mask([[0, 1]], False)


@pytest.mark.parametrize(
    ("task", "labels", "says"),
    [
        ("classification", single(1, 1), "holds one class only, 'forest'; expected two"),
        ("classification", single(1, 2, known=False), "holds no known label; expected two"),
        ("segmentation", [mask([[2, 2]]), NOWHERE], "holds one class only, 'field'"),
        ("segmentation", [NOWHERE], "holds no known label"),
        ("multilabel", several((0, 0, 0)), "holds no known label"),
        ("regression", [mask([[7, 7]], kind=np.float32)] * 3, "all values are 7; expected values that differ"),
        ("regression", [mask([[0, 1]], False, np.float32)], "holds no known value"),
    ],
)
def test_labels_that_teach_nothing_are_refused(task, labels, says):
    with pytest.raises(DataError, match=f"'own', split 'train'.*{says}"):
        summarise(Given(task, labels))
