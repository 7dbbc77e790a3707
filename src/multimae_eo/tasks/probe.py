"""Frozen evaluation: k nearest neighbours, a linear probe, and a linear segmentation probe."""

import itertools
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from multimae_eo.config import HeadName, ModelConfig, TaskConfig
from multimae_eo.data.labelled import Description, SplitName
from multimae_eo.errors import ConfigError
from multimae_eo.heads import LinearDenseHead
from multimae_eo.optim import learning_rate
from multimae_eo.tasks.features import Frozen
from multimae_eo.tasks.kinds import task_for
from multimae_eo.tasks.labels import LabelSummary
from multimae_eo.tasks.task import Task

NEIGHBOURS = (5, 20)
# Of the weights exp(cosine / T) of 20 neighbours (Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
# Discrimination", CVPR 2018); five neighbours have equal votes.
TEMPERATURE = 0.07
# Inverse strengths of regularisation that validation chooses from, and learning rates of the dense probe.
STRENGTHS = tuple(10.0**e for e in range(-5, 4))
RATES = (1e-4, 1e-3, 1e-2)
DENSE_STEPS, DENSE_BATCH = 1000, 32


@dataclass(frozen=True)
class Probe:
    """What one protocol found: evidence on the test split, what was chosen on valid, and what is to be known."""

    protocol: str
    evidence: Tensor
    settings: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)


def probe_task(about: Description, labels: LabelSummary, inputs: tuple[str, ...]) -> TaskConfig:
    """The task of a probe as a configuration."""
    head: HeadName = "linear_dense" if about.dense else "linear"
    return TaskConfig(
        task=about.task,
        head=head,
        inputs=inputs,
        classes=about.classes,
        unit=about.unit,
        mean=labels.mean,
        std=labels.std,
    )


def nearest(task: Task, config: TaskConfig, features: Mapping[SplitName, Frozen]) -> list[Probe]:
    """k-NN in cosine distance, for k of 5 and 20; deterministic. Raises ConfigError for labels of pixels."""
    if config.dense:
        raise ConfigError("k-NN needs one label per image; choose the protocol linear for labels of pixels.")
    train, test = features["train"], features["test"]
    began = time.perf_counter()
    count = min(max(NEIGHBOURS), len(train.values))
    index = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(train.values)
    distances, places = index.kneighbors(test.values)
    votes = one_hot(train.label, config)[places]
    probes = []
    for k in NEIGHBOURS:
        weight = np.exp((1 - distances[:, :k]) / TEMPERATURE) if k > 5 else np.ones_like(distances[:, :k])
        share = (weight[..., None] * votes[:, :k]).sum(axis=1) / weight.sum(axis=1)[:, None]
        few = (f"{len(train.values)} training images, fewer than {k} neighbours",) if len(train.values) < k else ()
        settings = {"k": k, "weights": "exp" if k > 5 else "equal"}
        seconds = time.perf_counter() - began
        probes.append(Probe(f"knn-{k}", _evidence(task, config, share, test), settings, few, seconds))
    return probes


def one_hot(label: np.ndarray, config: TaskConfig) -> np.ndarray:
    """Labels as numbers of 0 and 1 [n, classes]."""
    return label if config.task == "multilabel" else np.eye(config.num_outputs)[label]


def _evidence(task: Task, config: TaskConfig, share: np.ndarray, test: Frozen) -> Tensor:
    """The evidence of probabilities [n, classes], given to the task as scores."""
    clipped = torch.from_numpy(np.clip(share, 1e-7, 1 - 1e-7))
    scores = clipped.logit() if config.task == "multilabel" else clipped.log()
    return task.evidence(scores, torch.from_numpy(np.array(test.label)), torch.from_numpy(np.array(test.known)))


def linear(
    task: Task, config: TaskConfig, features: Mapping[SplitName, Frozen], *, refit_on_valid: bool = False
) -> Probe:
    """L-BFGS logistic regression on standardised features, C chosen on valid; deterministic.

    refit_on_valid: fit again on train and valid with the C that was chosen, as torchgeo-bench does.
    """
    began = time.perf_counter()
    train, valid, test = (features[name] for name in ("train", "valid", "test"))
    found: list[tuple[float, float, Any]] = []
    notes: set[str] = set()
    for strength in STRENGTHS:
        model = _fit(config, strength, train.values, train.label, notes)
        score = task.score(_evidence(task, config, _probability(model, config, valid.values), valid))[task.primary]
        found.append((score if np.isfinite(score) else -np.inf, strength, model))
    best = max(found, key=lambda entry: entry[0])
    if refit_on_valid:
        values = np.concatenate([train.values, valid.values])
        label = np.concatenate([train.label, valid.label])
        best = (best[0], best[1], _fit(config, best[1], values, label, notes))
    if best[1] in (STRENGTHS[0], STRENGTHS[-1]):
        notes.add(f"C of {best[1]:g} is at the end of its grid")
    evidence = _evidence(task, config, _probability(best[2], config, test.values), test)
    settings = {"C": best[1], "refit_on_valid": refit_on_valid, f"valid_{task.primary}": round(float(best[0]), 6)}
    return Probe("linear", evidence, settings, tuple(sorted(notes)), time.perf_counter() - began)


def _fit(config: TaskConfig, strength: float, values: np.ndarray, label: np.ndarray, notes: set[str]) -> Any:
    regression = LogisticRegression(C=strength, max_iter=1000)
    kind = OneVsRestClassifier(regression) if config.task == "multilabel" else regression
    model = make_pipeline(StandardScaler(), kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(values, label.astype(np.int64))
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        notes.add(f"logistic regression with C of {strength:g} did not converge in 1000 iterations")
    return model


def _probability(model: Any, config: TaskConfig, values: np.ndarray) -> np.ndarray:
    """[n, classes]; 0 for a class that training had no image of."""
    if config.task == "multilabel":  # of a single label, scikit-learn gives the probabilities of 0 and 1
        return model.predict_proba(values)[:, -config.num_outputs :]
    full = np.zeros((len(values), config.num_outputs))
    full[:, model.classes_] = model.predict_proba(values)
    return full


def dense_linear(
    task: Task, config: TaskConfig, model: ModelConfig, features: Mapping[SplitName, Frozen], *, seed: int
) -> Probe:
    """A linear layer from the frozen tokens of a place to the pixels of its patch; AdamW, learning rate from valid."""
    began = time.perf_counter()
    found = []
    for rate in RATES:
        head = _train_head(task, config, model, features["train"], rate=rate, seed=seed)
        score = task.score(_head_evidence(task, config, head, features["valid"]))[task.primary]
        found.append((score if np.isfinite(score) else -np.inf, rate, head))
    score, rate, head = max(found, key=lambda entry: entry[0])
    evidence = _head_evidence(task, config, head, features["test"])
    settings = {"lr": rate, "steps": DENSE_STEPS, "batch": DENSE_BATCH, f"valid_{task.primary}": round(float(score), 6)}
    ends = (f"learning rate of {rate:g} is at the end of its grid",) if rate in (RATES[0], RATES[-1]) else ()
    return Probe("linear", evidence, settings, ends, time.perf_counter() - began)


def _train_head(
    task: Task, config: TaskConfig, model: ModelConfig, train: Frozen, *, rate: float, seed: int
) -> LinearDenseHead:
    torch.manual_seed(seed)
    head = LinearDenseHead(config.inputs, model.dim, model.patch_size, config.num_outputs)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.0)
    random = np.random.Generator(np.random.Philox(key=[seed, 1]))
    number = len(train.values)
    order = itertools.chain.from_iterable(random.permutation(number) for _ in itertools.count())
    for step in range(DENSE_STEPS):
        chosen = np.sort(list(itertools.islice(order, min(DENSE_BATCH, number))))
        predicted, label, known = _head_predictions(config, head, train, chosen)
        loss = task.losses(predicted, label, known).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = learning_rate(step, peak=rate, steps=DENSE_STEPS, warmup_steps=0, warmup_lr=0)
        optimizer.step()
    return head.eval()


def _head_predictions(
    config: TaskConfig, head: LinearDenseHead, frozen: Frozen, chosen: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    label, known = (torch.from_numpy(np.array(part[chosen])) for part in (frozen.label, frozen.known))
    predicted = head(frozen.seen(chosen))[..., : label.shape[-2], : label.shape[-1]]
    return predicted * config.std + config.mean if config.task == "regression" else predicted, label, known


@torch.no_grad()
def _head_evidence(task: Task, config: TaskConfig, head: LinearDenseHead, frozen: Frozen) -> Tensor:
    batches = np.array_split(np.arange(len(frozen.values)), -(-len(frozen.values) // 64))
    return torch.cat([task.evidence(*_head_predictions(config, head, frozen, chosen)) for chosen in batches])


def run_probes(
    config: TaskConfig,
    model: ModelConfig,
    features: Mapping[SplitName, Frozen],
    protocols: tuple[str, ...],
    *,
    seed: int = 0,
    refit_on_valid: bool = False,
) -> list[Probe]:
    """The probes of some protocols ("knn", "linear") on frozen features."""
    task, probes = task_for(config), []
    if not config.dense:
        features = {split: part.rows(np.flatnonzero(part.known)) for split, part in features.items()}
    for protocol in protocols:
        if protocol == "knn":
            probes += nearest(task, config, features)
        elif config.dense:
            probes.append(dense_linear(task, config, model, features, seed=seed))
        else:
            probes.append(linear(task, config, features, refit_on_valid=refit_on_valid))
    return probes
