"""How the studies show what they found: tables in Markdown, and differences with their intervals as pictures."""

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import t as student
from study import DOCS, Arm, Budget, Place, arguments, key_of, measured, recipe_of

from multimae_eo.visualize import save_figure

sys.path.append(str(Path(__file__).resolve().parents[1]))
from step import operations
from write_tables import put, table

SCREENED = 2  # the first seeds, which all arms get; what they suggest is confirmed with others, which suggested nothing

# What most models are judged by, and how that is called: frozen features of all that labelled tiles have. The first one
# decides: the mean over both protocols and all shares of the labels; the others say where a difference comes from.
ACCURACIES = {
    " & ".join(f"class all {probe} {share}x" for probe in ("linear", "knn-20") for share in ("0.01", "0.10", "1.00")): (
        "mean of six"
    ),
    "class all linear 0.01x": "linear, 1 %",
    "class all linear 0.10x": "linear, 10 %",
    "class all linear 1.00x": "linear, 100 %",
    "class all knn-20 0.01x": "k-NN, 1 %",
    "class all knn-20 0.10x": "k-NN, 10 %",
    "class all knn-20 1.00x": "k-NN, 100 %",
    "class rgb-only linear 1.00x": "RGB, linear, 100 %",
    "shifted-class all linear 1.00x": "shifted, linear, 100 %",
    "shifted-class all knn-20 1.00x": "shifted, k-NN, 100 %",
    "moved all linear 1.00x": "moved there, linear, 100 %",
    "moved all knn-20 1.00x": "moved there, k-NN, 100 %",
}


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval of Student's t; of two seeds or one, which only screen, the range."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Of one number per seed; of none, an interval that says so."""
        if not values:
            return cls(math.nan, math.nan, math.nan, 0)
        mean, count = statistics.mean(values), len(values)
        if count <= SCREENED:
            return cls(mean, min(values), max(values), count)
        half = float(student.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5
        return cls(mean, mean - half, mean + half, count)

    @property
    def decided(self) -> bool:
        """Whether there is an interval, and 0 lies outside."""
        return self.count > SCREENED and (self.low > 0 or self.high < 0)

    def words(self, digits: int, sign: str = "", *, bold: bool = False) -> str:
        """The mean and the interval (of two seeds both); bold, if asked for, where that leaves out 0."""
        if not self.count:
            return "-"
        between = "to" if self.count > SCREENED else "and"
        text = f"{self.mean:{sign}.{digits}f} ({self.low:{sign}.{digits}f} {between} {self.high:{sign}.{digits}f})"
        return f"**{text}**" if bold and self.decided else text


@dataclass(frozen=True)
class Figures:
    """Records of one budget, by arm, seed and what was measured."""

    records: Mapping[tuple[str, int], Mapping[str, Any]]
    budget: Budget

    def seeds(self, *arms: Arm, screening: bool = False) -> list[int]:
        """Those that all of some arms have: the first, if asked for or where there are no others, else the others."""
        of = [{s for k, s in self.records if k == key_of(arm, self.budget)} for arm in arms]
        first = sorted({s for _, s in self.records})[:SCREENED]
        both = sorted(set.intersection(*of))
        fresh = [] if screening else [seed for seed in both if seed not in first]
        return fresh or [seed for seed in both if seed in first]

    def values(self, arm: Arm, what: str, seeds: Sequence[int]) -> list[float]:
        """One figure per seed; of several, "a & b", the mean. None where the arm was not measured so with each seed."""
        found = [self.records[key_of(arm, self.budget), seed]["measured"] for seed in seeds]
        names = what.split(" & ")
        if not all(row.keys() >= set(names) for row in found):
            return []
        return [statistics.mean(row[name] for name in names) for row in found]

    def of(self, arm: Arm, what: str, scale: float = 1.0, seeds: Sequence[int] | None = None) -> Interval:
        """Over some seeds, or those of the arm."""
        seeds = self.seeds(arm) if seeds is None else seeds
        return Interval.of([scale * value for value in self.values(arm, what, seeds)])

    def difference(
        self, arm: Arm, base: Arm, what: str, scale: float = 1.0, seeds: Sequence[int] | None = None
    ) -> Interval:
        """Arm minus base, over some seeds, or those of both, paired."""
        seeds = self.seeds(arm, base) if seeds is None else seeds
        own, others = self.values(arm, what, seeds), self.values(base, what, seeds)
        both = zip(own, others, strict=True) if own and others else ()
        return Interval.of([scale * (value - other) for value, other in both])


def forest(
    rows: Mapping[str, Mapping[str, Interval]],
    path: Path,
    *,
    title: str,
    unit: str,
    columns: int = 5,
    same_axis: bool = True,
) -> Path:
    """Draw differences with their intervals: {what: {arm: difference}}, a panel per what, a line per arm.

    Blue: 95 % intervals, filled where they leave out 0; grey: the range of two seeds, which only screened.
    """
    count = len(rows)
    lines = -(-count // columns)
    arms = list(next(iter(rows.values())))
    size = (2.4 * min(columns, count) + 1.6, lines * (0.28 * len(arms) + 0.9) + 0.7)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(lines, min(columns, count), squeeze=False, sharex=same_axis, sharey=True)
    for axis, (what, found) in zip(axes.flat, rows.items(), strict=False):
        axis.axvline(0, color="0.6", linewidth=1)
        for height, interval in enumerate(found.values()):
            sure = interval.count > SCREENED
            color, face = "#0072b2" if sure else "0.55", "#0072b2" if interval.decided else "white"
            axis.plot([interval.low, interval.high], [height, height], color=color, linewidth=1.5 if sure else 0.8)
            axis.plot(interval.mean, height, "o" if sure else "|", color=color, markerfacecolor=face, markersize=5)
        axis.set_title(what, fontsize=8)
        axis.set_yticks(range(len(arms)), arms, fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.grid(axis="x", color="0.92")
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in list(axes.flat)[count:]:
        axis.set_axis_off()
    for axis in list(axes.flat)[max(0, count - columns) : count]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
    figure.supxlabel(unit, fontsize=8)
    return save_figure(figure, path)


@dataclass(frozen=True)
class Question:
    """Arms that are compared with a base: all on the first two seeds, those that are confirmed on the others too.

    battery: the module that measures. measures: {what was measured, or several joined by " & " whose mean counts: what
    that is called}; the first `deciding` ones decide, the others say where a difference comes from. same_axis: whether
    what was measured has one unit; operations: whether the table has those of training, over the base's.
    """

    name: str
    title: str
    base: Arm
    arms: Sequence[Arm]
    confirmed: Sequence[str]
    measures: Mapping[str, str]
    deciding: int = 1
    battery: str = "frozen"
    scale: float = 100.0
    unit: str = "accuracy, %"
    digits: int = 1
    same_axis: bool = True
    operations: bool = False

    def show(self, figures: Figures, picture: Path) -> str:
        """A table of what decides, one of all that was measured, folded, and the picture of the differences."""
        names, short = ["seeds", *self.measures.values()], ["seeds", *["operations"] * self.operations]
        for word in list(self.measures.values())[: self.deciding]:
            short += [word, f"minus {self.base.name}"]
        values, differences, decides, found = (
            {self.unit: names},
            {f"minus {self.base.name}": names},
            {self.unit: short},
            {},
        )
        for arm in (self.base, *self.arms):
            for screening in (False, True):
                seeds = figures.seeds(arm, self.base, screening=screening)
                if screening and seeds == figures.seeds(arm, self.base):
                    continue
                name = f"{arm.name}, screening" if screening else arm.name
                head = ", ".join(map(str, seeds))
                own = [figures.of(arm, what, self.scale, seeds).words(self.digits) for what in self.measures]
                values[name] = [head, *own]
                cells = [""] * len(own)
                if arm is not self.base:
                    found[name] = [
                        figures.difference(arm, self.base, what, self.scale, seeds) for what in self.measures
                    ]
                    cells = [i.words(self.digits, "+", bold=n < self.deciding) for n, i in enumerate(found[name])]
                    differences[name] = [head, *cells]
                pairs = zip(own[: self.deciding], cells, strict=False)
                cost = [relative(arm, self.base, figures.budget)] if self.operations else []
                decides[name] = [head, *cost, *(cell for pair in pairs for cell in pair)]
        panels = {
            word: {name: intervals[i] for name, intervals in found.items()}
            for i, word in enumerate(self.measures.values())
        }
        title = f"{self.title}: difference from {self.base.name}\n{figures.budget.words()}"
        unit = f"difference, in points ({self.unit})" if self.same_axis else f"difference, {self.unit}"
        forest(panels, picture, title=title, unit=unit, same_axis=self.same_axis)
        everything = f"{turned(values)}\n\n{turned(differences)}"
        return f"{turned(decides)}\n\n{folded('All that was measured', everything)}"

    def answer(self, description: str | None) -> None:
        """The command line: train what is missing, print the table, draw the picture; put both into the docs.

        With records of its own, a trial writes the picture into its working folder instead.
        """
        place, budget, seeds = arguments(description)
        known = measured((self.base, *self.arms), seeds[:SCREENED], place, budget, self.battery)
        sure = [arm for arm in self.arms if arm.name in self.confirmed]
        if sure:
            known = measured((self.base, *sure), seeds[SCREENED:], place, budget, self.battery)
        if place.dry:
            return
        publish(place, self.name, self.show(Figures(known, budget), place.picture(f"study_{self.name}")))
        minutes = [row["seconds"] / 60 for row in known.values()]
        print(f"\n{len(minutes)} models on record, {min(minutes):.0f} to {max(minutes):.0f} minutes each")


def relative(arm: Arm, base: Arm, budget: Budget) -> str:
    """The operations of an arm's training over those of another's, in words."""
    if "init" in arm.changes:
        return "-"
    found = []
    for one in (arm, base):
        options = recipe_of(one, budget)
        each = sum(operations(options.model.config(), options.mask.num_visible))
        found.append(each * (options.optim.steps or 0) * options.optim.batch_size)
    return f"{found[0] / found[1]:.2f}"


def publish(place: Place, name: str, text: str) -> None:
    """Print a text, and put it between its markers in docs/results.md, unless this is a trial."""
    print(text)
    if place.official:
        put(DOCS / "results.md", name, text)


def folded(title: str, text: str) -> str:
    """Markdown that opens on demand."""
    return f'<details markdown="1">\n<summary>{title}</summary>\n\n{text}\n\n</details>'


def turned(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns under their names in Markdown, turned to rows where these are fewer."""
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    if len(columns) > len(rows):
        rows = list(zip(*rows, strict=True))
    return table(rows[0], rows[1:])
