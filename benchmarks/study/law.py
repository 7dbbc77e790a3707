"""Question 8: how the reconstruction loss falls with samples seen and with model size, as a fitted law.

    python benchmarks/study/law.py [--seeds 0,1] [--work runs/study] [--jobs 2]

Encoders of three widths (48, 96, 192; four blocks, the demo's decoders), each trained anew for 250, 500, 1,000 and
2,000 steps of 32 tiles, the middle one for 4,000 too, so that every point has its whole schedule of learning rates;
these fall with the width. Loss: the sum over all views, as in training, on held-out tiles of the same world. Fitted is
L = E + A / N^a + B / D^b, N numbers in the encoder's blocks, D samples seen (Hoffmann et al. 2022, "Training
compute-optimal large language models", equation 2), by least squares of logarithms of the means over seeds; beside
each constant stands the range of the fits to one seed without one of the points, as 13 points hardly tell E from the
other terms. From 1,000 steps on tiles are seen more than once, 4,000 are seven epochs. All sizes have the same
decoders, and at the least width these take more operations than the encoder: the law gives no best size for some
operations. The rates were not tuned per width, so a may hold what that costs. Beside the loss, what users are after:
the accuracy of frozen features, the mean of k-NN and linear probe at three shares of the labels. With --size other
than demo: tiny, small and base. Prints the tables, draws docs/study_law.png, and puts the tables into docs/results.md.
`cost.py` says what the full run would cost.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from frozen import losses, probes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter
from scipy.optimize import least_squares
from show import ACCURACIES, Figures, operations, publish, turned
from study import WIDTHS, Arm, Budget, Place, arguments, measured, model, recipe_of, steps_of, times

from multimae_eo.config import SIZES
from multimae_eo.visualize import save_figure

KINDS = ("class",)
LOSS, ACCURACY = "loss", next(iter(ACCURACIES))
TIMES, LONGER = (0.25, 0.5, 1, 2), 4  # the steps of the budget
COLORS = ("#009e73", "#0072b2", "#d55e00")


def measure(arm: Arm, place: Place, budget: Budget, seed: int) -> dict[str, float]:
    """{"loss": sum over the views on held-out tiles}, that of each view, and accuracies "class all PROBE PARTITION"."""
    directory, options = model(arm, place, budget, seed)
    found = losses(directory, options)
    judged = {f"class all {k}": v for k, v in probes(directory, place, budget, seed, "class", "all").items()}
    return {LOSS: sum(found.values()), **found, **judged}


def points_of(budget: Budget) -> dict[tuple[str, int], Arm]:
    """What is trained, by size and steps; the budget's own size also for much longer."""
    points = {}
    for size in sizes_of(budget):
        own = size == budget.size
        for many in (*TIMES, LONGER) if own else TIMES:
            changes = ({} if own else {"model.size": size}) | ({} if many == 1 else {"optim.steps": times(many)})
            points[size, steps_of(changes, budget)] = Arm(f"{size}, {many} times", changes)
    return points


def sizes_of(budget: Budget) -> list[str]:
    """From narrow to wide: around the demo, or the named sizes."""
    return sorted((*WIDTHS, "demo") if budget.size == "demo" else ("tiny", "small", "base"), key=millions)


def millions(size: str) -> float:
    """Numbers in the blocks of the encoder, without tokenizers: 12 d^2 per block (matrices alone)."""
    entry = {**SIZES, **WIDTHS}[size]
    return 12e-6 * entry["dim"] ** 2 * entry["depth"]


def law(parameters: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """L(N, D); parameters: log E, log A, a, log B, b, with N in millions and D in thousands."""
    e, big_a, a, big_b, b = parameters
    return np.exp(e) + np.exp(big_a) * n**-a + np.exp(big_b) * d**-b


def fit(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The parameters of the law that come closest in logarithms, from several starts."""
    best = None
    for a in (0.1, 0.5, 1.0):
        for b in (0.1, 0.5, 1.0):
            start = np.array([np.log(0.8 * loss.min()), np.log(0.1 * loss.min()), a, np.log(np.ptp(loss) + 0.1), b])
            found = least_squares(
                lambda p: np.log(law(p, n, d)) - np.log(loss),
                start,
                bounds=([-10, -10, 0.01, -10, 0.01], [5, 5, 3, 8, 3]),
            )
            best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return best.x


def show(known: dict, budget: Budget, picture: Path) -> str:
    """The table of losses and accuracies, that of the law, and the picture."""
    figures, trained = Figures(known, budget), points_of(budget)
    seeds, steps = figures.seeds(*trained.values()), sorted({number for _, number in trained})
    cells = {"steps": [f"{s:,}" for s in steps], "samples seen": [f"{s * budget.batch:,}" for s in steps]}
    for word, what, scale, digits in (("loss", LOSS, 1.0, 2), ("accuracy, %", ACCURACY, 100.0, 1)):
        for size in sizes_of(budget):
            arms = [trained.get((size, number)) for number in steps]
            found = ["-" if arm is None else figures.of(arm, what, scale, seeds).words(digits) for arm in arms]
            cells[f"{word}, {millions(size):.2f} million"] = found
    n, d = np.array([(millions(size), number * budget.batch / 1e3) for size, number in trained]).T
    measured = {  # [points, seeds]
        what: np.array([figures.values(arm, what, seeds) for arm in trained.values()]) for what in (LOSS, ACCURACY)
    }
    mean = measured[LOSS].mean(axis=1)
    best, points = fit(n, d, mean), np.arange(len(n))
    others = [fit(n[k], d[k], loss[k]) for loss in measured[LOSS].T for k in (points != left for left in points)]
    off = 100 * np.abs(np.log(law(best, n, d)) - np.log(mean)).max()
    fitted = {"of the law": ["value (range without one point)"], "largest deviation, %": [f"{off:.1f}"]}
    for i, name in enumerate(("E", "A (N in millions)", "a", "B (D in thousands)", "b")):
        value, *without = (np.exp(p[i]) if name[0].isupper() else p[i] for p in (best, *others))
        fitted[name] = [f"{value:.2f} ({min(without):.2f} to {max(without):.2f})"]
    draw(n, d, measured, best, {millions(s): each_of(trained[s, steps[0]], budget) for s in sizes_of(budget)}, picture)
    return f"{turned(cells)}\n\n{turned(fitted)}"


def each_of(arm: Arm, budget: Budget) -> float:
    """Operations of training on a sample; the backward pass takes twice as many as the forward pass."""
    options = recipe_of(arm, budget)
    return 3 * sum(operations(options.model.config(), options.mask.num_visible))


def draw(
    n: np.ndarray,
    d: np.ndarray,
    measured: Mapping[str, np.ndarray],
    best: np.ndarray,
    each: Mapping[float, float],
    path: Path,
) -> Path:
    """Losses over samples seen and over operations, with the law as lines; accuracies over samples seen.

    n, d: of the points, numbers in millions and samples in thousands; measured: {LOSS or ACCURACY: [points, seeds]};
    each: operations of a sample by n.
    """
    figure = Figure(figsize=(12, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, 3)
    axes[1].sharey(axes[0])
    loss, accuracy = measured[LOSS], 100 * measured[ACCURACY]
    fine = np.geomspace(d.min(), d.max(), 50)
    for color, size in zip(COLORS, np.unique(n), strict=True):
        own, label = n == size, f"{size:.2f} million"
        for axis, scale in ((axes[0], 1e3), (axes[1], 1e3 * each[size])):
            axis.plot(d[own] * scale, loss[own], "o", color=color, markersize=4)
            axis.plot(fine * scale, law(best, np.full(50, size), fine), color=color, label=label)
        axes[2].plot(d[own] * 1e3, accuracy[own], "o", color=color, markersize=4)
        axes[2].plot(d[own] * 1e3, accuracy[own].mean(axis=1), color=color, label=label)
    axes[0].set_ylabel("loss on held-out tiles, sum of views")
    axes[1].set_xlabel("operations of training, encoder and decoders")
    axes[2].set_ylabel("accuracy of frozen features, %")
    axes[0].legend(title="numbers in the encoder", fontsize=8, title_fontsize=8)
    for axis in axes:
        axis.set_xscale("log")
        axis.grid(which="both", color="0.92")
        axis.set_axisbelow(True)
    for axis in axes[:2]:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
    for axis in (axes[0], axes[2]):
        axis.set_xlabel("samples seen")
        axis.set_xticks(np.unique(d) * 1e3, [f"{1e3 * number:,.0f}" for number in np.unique(d)])
        axis.xaxis.set_minor_locator(NullLocator())
    return save_figure(figure, path)


def main() -> None:
    """The command line."""
    place, budget, seeds = arguments(__doc__, seeds="0,1")
    known = measured(points_of(budget).values(), seeds, place, budget, "law")
    if place.dry:
        return
    publish(place, "law", show(known, budget, place.picture("study_law")))


if __name__ == "__main__":
    main()
