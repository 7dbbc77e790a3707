"""Results as tables in HTML and Markdown, beside published numbers where protocol and metric are the same."""

import csv
import html
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from multimae_eo.errors import DataError
from multimae_eo.whole import written

Row = Mapping[str, str]
# {label of a model: {data set: its rows, one per seed}}
Models = dict[str, dict[str, list[Row]]]

_LABELLED = {
    **{"m-eurosat": (0.907, 0.985), "m-bigearthnet": (0.602, 0.706), "m-so2sat": (0.449, 0.610)},
    **{"m-brick-kiln": (0.974, 0.991), "m-forestnet": (0.462, 0.626), "m-pv4ger": (0.961, 0.985)},
}
_MAPPED = {
    **{"m-cashew-plant": (0.373, 0.498), "m-SA-crop-type": (0.264, 0.311), "m-chesapeake": (0.559, 0.717)},
    **{"m-NeonTree": (0.450, 0.586), "m-nz-cattle": (0.654, 0.814), "m-pv4ger-seg": (0.931, 0.943)},
}
# The range of the baselines of 2023: the normaliser files of GEO-Bench 1.0 (github.com/ServiceNow/geo-bench).
RANGES: Mapping[str, tuple[float, float]] = {**_LABELLED, **_MAPPED}

INITS = {
    "pretrained": "pre-trained",
    "random": "random weights",
    "random_convolutions": "random convolutions",
    "band_statistics": "band statistics",
}
PROTOCOLS = {
    "knn-5": "5 nearest neighbours, frozen features",
    "knn-20": "20 nearest neighbours, frozen features",
    "linear": "linear, frozen features",
    "finetune": "fine-tuning",
}
# Published numbers are of all training samples.
_ALL_SAMPLES = ("default", "1.00x")
_NEEDED = ("dataset", "protocol", "partition", "setting", "init", "seed", "metric", "value")
# What makes two runs of one seed two models, and a checkpoint always.
_VARIANTS = ("checkpoint", "head", "statistics", "settings")
_FACTS = ("inputs", "bands", "absent_bands", "statistics", "head", "settings", "notes", "warnings")
_NO_VALUE = "no value"
_TITLE, _RULE = "Results", "published by others"


class Cell(NamedTuple):
    """One cell of a table; below: what stands below the text, in small."""

    text: str = ""
    below: str = ""
    best: bool = False


class Section(NamedTuple):
    """One table: the first cell of a line is its label; notes: {data set: lines}."""

    title: str
    head: list[Cell]
    ours: list[list[Cell]]
    peers: list[list[Cell]]
    remarks: list[str]
    notes: dict[str, list[str]]


def normalised(dataset: str, value: float) -> float | None:
    """(value - lowest) / (highest - lowest) of the baselines of GEO-Bench; None for other sets.

    `value` is a fraction: of accuracy, of micro-averaged F1 for m-bigearthnet, of mean IoU for maps.
    """
    if dataset not in RANGES:
        return None
    low, high = RANGES[dataset]
    return (value - low) / (high - low)


def read_results(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a results.csv, as strings; a last row that was cut off is dropped; raises DataError."""
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), reader.fieldnames or []
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot read the results: {error.strerror}") from error
    if missing := [name for name in _NEEDED if name not in names]:
        raise DataError(
            f"{os.fspath(path)}: no results: the first line lacks {', '.join(missing)}. Give another --out."
        )
    if rows and None in rows[-1].values():
        rows.pop()
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(f"{os.fspath(path)}: result {number} has not {len(names)} values. Delete its line.")
    return rows


@cache
def read_peers() -> tuple[dict[str, str], ...]:
    """Published results: dataset, protocol, metric, model, value (a fraction), source, note (what differs there)."""
    text = resources.files("multimae_eo.tasks").joinpath("peers.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def write_report(results: Path, out: Path) -> tuple[Path, Path]:
    """Write report.html and report.md to the folder `out`, each at once; raises DataError."""
    rows = read_results(results)
    partitions = list(dict.fromkeys((row["protocol"], row["partition"]) for row in rows))
    partitions.sort(key=lambda pair: [*PROTOCOLS, pair[0]].index(pair[0]))
    sections = [
        _section(*pair, [row for row in rows if (row["protocol"], row["partition"]) == pair]) for pair in partitions
    ]
    made_by = {"checkpoint": "checkpoint", "version": "multimae-eo", "torch": "torch"}
    versions = dict.fromkeys(", ".join(f"{n} {row[k]}" for k, n in made_by.items() if row.get(k)) for row in rows)
    intro = (
        "Numbers are percent; the normalised mean is a fraction. Below each number is its 95 % bootstrap interval over "
        "the test samples, of several seeds the mean of their intervals. Bold: the best of our models. "
        "Normalised: 0 and 1 are the lowest and the highest baseline of GEO-Bench in 2023; those for maps saw only "
        f"colours, so more bands may exceed 1. {'; '.join(filter(None, versions)) or 'There are no results yet.'}"
    )
    out.mkdir(parents=True, exist_ok=True)
    texts = {"report.html": _html(sections, intro), "report.md": _markdown(sections, intro)}
    for name, text in texts.items():
        with written(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / "report.html", out / "report.md"


def _section(protocol: str, partition: str, rows: Sequence[Row]) -> Section:
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    datasets.sort(key=lambda name: [*RANGES, name].index(name))
    models = _models(rows)
    metrics = {name: _metric(name, protocol, [row for row in rows if row["dataset"] == name]) for name in datasets}
    spread = {name for name in datasets if any(len(sets.get(name, ())) > 1 for sets in models.values())}
    head = [Cell("model")]
    for name in datasets:
        head.append(Cell(name, metrics[name]))
        head += [Cell(f"{name} ±", "standard deviation over seeds")] if name in spread else []
    if scored := sum(name in RANGES for name in datasets):
        head.append(Cell("normalised mean", f"of {scored} set{'s' * (scored > 1)}"))
    published, remarks = _published(protocol, partition, rows, metrics)
    return Section(
        f"{PROTOCOLS.get(protocol, protocol)} ({protocol}), partition {partition}",
        head,
        _lines(models, metrics, spread, bold=True),
        _lines(published, metrics, spread, bold=False),
        remarks,
        {name: _notes(name, models) for name in datasets},
    )


def _models(rows: Sequence[Row]) -> Models:
    """One model per start of its weights, setting and checkpoint, and per variant where a seed ran with several."""
    values = defaultdict(set)
    for row in rows:
        run = (row["dataset"], row["seed"], row.get("checkpoint"))
        for field in _VARIANTS:
            values[field, row["init"], row["setting"], run if field != "checkpoint" else ()].add(row.get(field))
    several = {key[:3] for key, found in values.items() if len(found) > 1}
    models: dict[str, dict[str, dict[str, Row]]] = {}
    for row in sorted(rows, key=lambda row: [*INITS, row["init"]].index(row["init"])):
        fields = [field for field in _VARIANTS if (field, row["init"], row["setting"]) in several]
        names = [INITS.get(row["init"], row["init"]), row["setting"], *(f"{f} {row.get(f) or 'none'}" for f in fields)]
        # Of the same run twice, the later one counts.
        models.setdefault(", ".join(names), {}).setdefault(row["dataset"], {})[row["seed"]] = row
    return {label: {name: list(runs.values()) for name, runs in sets.items()} for label, sets in models.items()}


def _metric(dataset: str, protocol: str, rows: Sequence[Row]) -> str:
    """The metric of the published numbers where our rows have it, or else ours."""
    published = {peer["metric"] for peer in read_peers() if (peer["dataset"], peer["protocol"]) == (dataset, protocol)}
    return next((name for name in published if any(row.get(name) for row in rows)), rows[0]["metric"])


def _value(row: Row, metric: str, end: str = "") -> float:
    own = row.get(end.removeprefix("_") or "value", "") if row["metric"] == metric else ""
    text = row.get(metric + end) or own
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise DataError(f"{metric}{end} of {row['dataset']} is no number: '{text}'") from None


def _mean(metric: str, runs: Sequence[Row], end: str = "") -> float:
    """Over the seeds; not a number if any of them has no value."""
    return statistics.fmean(_value(row, metric, end) for row in runs)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else _NO_VALUE


def _lines(models: Models, metrics: Mapping[str, str], spread: set[str], *, bold: bool) -> list[list[Cell]]:
    """One per model: its label, its mean and interval per data set, the spread over seeds, its normalised mean."""
    scored = [name for name in metrics if name in RANGES]
    means = {label: {name: _mean(metrics[name], runs) for name, runs in sets.items()} for label, sets in models.items()}
    scores = {}
    for label, sets in models.items():
        # The ranges are those of scores with class 0.
        fit = [n for n in scored if n in sets and not any(_option(r, "ignore_class0") for r in sets[n])]
        found = (normalised(name, _mean(_range_metric(name), sets[name])) for name in fit)
        scores[label] = [score for score in found if score is not None and math.isfinite(score)]
    # Means over fewer sets cannot be the best.
    ranks = {label: (len(own), statistics.fmean(own)) for label, own in scores.items() if own}
    lines = []
    for label, sets in models.items():
        line = [Cell(label)]
        for name, metric in metrics.items():
            known = [m[name] for m in means.values() if math.isfinite(m.get(name, math.nan))]
            best = bold and bool(known) and means[label].get(name) == max(known)
            line.append(_cell(metric, sets.get(name, ()), best=best))
            line += [Cell(_deviation(metric, sets.get(name, ())))] if name in spread else []
        if scored:
            number, mean = ranks.get(label, (0, math.nan))
            some = f"{number} of {len(scored)} sets" if 0 < number < len(scored) else ""
            best = bold and number > 0 and ranks[label] == max(ranks.values())
            line.append(Cell(f"{mean:.2f}" if number else "", some, best))
        lines.append(line)
    return lines


def _cell(metric: str, runs: Sequence[Row], *, best: bool) -> Cell:
    if not runs:
        return Cell()
    mean, low, high = (_mean(metric, runs, end) for end in ("", "_low", "_high"))
    known = all(math.isfinite(number) for number in (mean, low, high))
    return Cell(_percent(mean), f"{_percent(low)} to {_percent(high)}" if known else "", best)


def _deviation(metric: str, runs: Sequence[Row]) -> str:
    values = [_value(row, metric) for row in runs]
    if len(values) < 2:
        return ""
    return (
        f"{_percent(statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan)} ({len(values)} seeds)"
    )


def _range_metric(dataset: str) -> str:
    return "f1_micro" if dataset == "m-bigearthnet" else "miou" if dataset in _MAPPED else "accuracy"


def _option(row: Row, name: str) -> bool:
    """Whether a row's settings say that an option is on."""
    try:
        settings = json.loads(row.get("settings") or "{}")
        return {**settings, **settings.get("options", {})}.get(name) is True
    except (ValueError, AttributeError, TypeError):
        return False


def _published(
    protocol: str, partition: str, rows: Sequence[Row], metrics: Mapping[str, str]
) -> tuple[Models, list[str]]:
    """Published models of the same protocol and metric, and what is to be said of them below the table."""
    peers = [peer for peer in read_peers() if peer["protocol"] == protocol and partition in _ALL_SAMPLES]
    peers = [peer for peer in peers if metrics.get(peer["dataset"]) == peer["metric"]]
    other = {row["dataset"] for row in rows if protocol == "linear" and not _option(row, "refit_on_valid")}
    hidden = [name for name in metrics if name in other and any(peer["dataset"] == name for peer in peers)]
    models: Models = {}
    sources: dict[tuple[str, str], int] = {}
    for peer in peers:
        if peer["dataset"] not in other:
            number = sources.setdefault((peer["source"], peer["note"]), len(sources) + 1)
            models.setdefault(f"{peer['model']} ({number})", {})[peer["dataset"]] = [peer]
    remarks = [f"({number}) {source}: {note}." for (source, note), number in sources.items()]
    if hidden:
        remarks.append(
            "Published numbers were refit on the training and validation samples together. Not all of these models "
            f"were, so none are shown for {', '.join(hidden)}."
        )
    elif not models:
        remarks.append("No published numbers under the same protocol, partition and metric to set beside these.")
    return models, remarks


def _notes(dataset: str, models: Models) -> list[str]:
    """What is to be known of a data set; a line that does not hold for all models names those it holds for."""
    found: dict[str, dict[str, None]] = {}
    runs = {label: sets[dataset] for label, sets in models.items() if dataset in sets}
    for label, rows in runs.items():
        texts = [f"seed{'s' * (len(rows) > 1)} {', '.join(row['seed'] for row in rows)}"]
        for row in rows:
            counts = [f"{row.get(f'{split}_samples') or 'unknown'} {split}" for split in ("train", "valid", "test")]
            texts.append(f"samples: {', '.join(counts)}")
            texts += [f"{field.replace('_', ' ')}: {row[field]}" for field in _FACTS if row.get(field)]
        if all(row.get("last_value") for row in rows):
            last = statistics.fmean(float(row["last_value"]) for row in rows)
            texts.append(f"{rows[0]['metric']} of the last checkpoint: {_percent(last)}")
        for text in texts:
            found.setdefault(text, {})[label] = None
    return [text if len(names) == len(runs) else f"{text} [{'; '.join(names)}]" for text, names in found.items()]


# Wide tables scroll below a label that stays; on paper nothing scrolls.
_STYLE = """body{color:#1a1a1a;background:#fff;font:16px/1.45 system-ui,sans-serif;margin:1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;vertical-align:top}thead th{border-bottom:2px solid #1a1a1a}
tbody th{font-weight:400}th:first-child{text-align:left;position:sticky;left:0;background:#fff}
th:first-child{max-width:min(16rem,40vw)}
.peers{border-top:2px solid #1a1a1a;color:#444}.peers .rule{font-style:italic}
small{display:block;font-weight:400;color:#555;white-space:nowrap}
ul,p{max-width:50rem}li,dd{overflow-wrap:anywhere}h2{margin-top:2.5rem}h3{margin-bottom:0;font-size:1rem}
@media print{body{font-size:9pt;margin:0}.wide{overflow:visible}
th,td{padding:.15rem .3rem}th:first-child{position:static;max-width:none}tr{break-inside:avoid}@page{size:landscape}}"""


def _html(sections: Sequence[Section], intro: str) -> str:
    def cell(one: Cell, tag: str) -> str:
        text = f"<b>{html.escape(one.text)}</b>" if one.best else html.escape(one.text)
        return f"<{tag}>{text}" + (f"<small>{html.escape(one.below)}</small>" if one.below else "") + f"</{tag[:2]}>"

    def lines(found: Sequence[Sequence[Cell]]) -> str:
        rows = (cell(line[0], 'th scope="row"') + "".join(cell(one, "td") for one in line[1:]) for line in found)
        return "".join(f"<tr>{row}</tr>\n" for row in rows)

    def listed(texts: Sequence[str]) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>\n"

    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{_TITLE}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{_TITLE}</h1><p>{html.escape(intro)}</p>\n"
    ]
    for one in sections:
        head = "".join(cell(column, 'th scope="col"') for column in one.head)
        rule = f'<tr><th scope="rowgroup" class="rule" colspan="{len(one.head)}">{_RULE}</th></tr>\n'
        peers = f'<tbody class="peers">{rule}{lines(one.peers)}</tbody>' if one.peers else ""
        parts.append(
            f'<section><h2>{html.escape(one.title)}</h2><div class="wide" tabindex="0"><table><thead><tr>{head}</tr>'
            f"</thead>\n<tbody>{lines(one.ours)}</tbody>{peers}</table></div>\n{listed(one.remarks)}"
            + "".join(f"<h3>{html.escape(name)}</h3>{listed(texts)}" for name, texts in one.notes.items())
            + "</section>\n"
        )
    return "".join(parts) + "</body></html>\n"


def _markdown(sections: Sequence[Section], intro: str) -> str:
    def plain(text: str) -> str:
        text = " ".join(html.escape(text, quote=False).split())
        return "".join(f"\\{letter}" if letter in "\\`*|[]" else letter for letter in text)

    def row(line: Sequence[Cell]) -> str:
        texts = (f"**{plain(one.text)}**" if one.best else plain(one.text) for one in line)
        below = (f" ({plain(one.below)})" if one.below else "" for one in line)
        return f"| {' | '.join(map(''.join, zip(texts, below, strict=True)))} |"

    parts = [f"# {_TITLE}", plain(intro)]
    for one in sections:
        ours, peers = [row(line) for line in one.ours], [row(line) for line in one.peers]
        rule = [f"| *{_RULE}* |{' |' * (len(one.head) - 1)}"] if peers else []
        table = [row(one.head), f"|---|{'---:|' * (len(one.head) - 1)}", *ours, *rule, *peers]
        parts += [f"## {plain(one.title)}", "\n".join(table), "\n".join(f"- {plain(text)}" for text in one.remarks)]
        for name, texts in one.notes.items():
            parts += [f"### {plain(name)}", "\n".join(f"- {plain(text)}" for text in texts)]
    return "\n\n".join(parts) + "\n"
