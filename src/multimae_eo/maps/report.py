"""A run as one page of HTML that needs nothing else: curves, panels, results, confusion matrix, subsets, a map."""

import base64
import csv
import html
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.image
import numpy as np

from multimae_eo.documents import read_json
from multimae_eo.errors import ConfigError, DataError, MultiMAEError, shown
from multimae_eo.maps.curves import COLORS, chart
from multimae_eo.maps.options import ReportOptions
from multimae_eo.maps.preview import Preview, preview

PANELS = 6  # pictures of reconstructions on a page, the first and the last among them

_STYLE = """:root{--ink:#1a1a1a;--soft:#5b5b5b;--line:#d9d9d9;--accent:#1f5f8b}
*{box-sizing:border-box}body{color:var(--ink);background:#fff;font:16px/1.45 system-ui,sans-serif;margin:0 auto;
max-width:76rem;padding:1rem}h1{margin:.2rem 0;overflow-wrap:anywhere}h2{margin:2.2rem 0 .4rem;font-size:1.25rem}
p,dl{color:var(--soft);max-width:52rem}.wide{overflow-x:auto}table{border-collapse:collapse;
font-variant-numeric:tabular-nums}th,td{padding:.25rem .6rem;text-align:right}th:first-child{text-align:left}
thead th{border-bottom:2px solid var(--ink)}tbody th{font-weight:400}.charts{display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(15rem,1fr))}figure{margin:0}figcaption{font-size:.85rem}
svg{width:100%;height:auto;display:block}img{max-width:100%}.key i{display:inline-block;width:.9rem;height:.9rem;
margin:0 .35rem 0 .9rem;vertical-align:-.1rem;border:1px solid var(--line)}.matrix td,.matrix th{font-size:.8rem;
padding:.2rem .35rem}.matrix td{text-align:center;min-width:2.6rem}.matrix thead th{vertical-align:bottom;
writing-mode:vertical-rl;border:0}.matrix thead th:first-child{writing-mode:horizontal-tb}
.map{overflow:auto;border:1px solid var(--line);max-height:85vh}
.map div{position:relative;width:calc(100%*var(--zoom,1))}
.map img{width:100%;max-width:none;display:block;image-rendering:pixelated}
.map img+img{position:absolute;inset:0;clip-path:inset(0 0 0 var(--cut,50%))}
.map div::after{content:"";position:absolute;top:0;bottom:0;left:var(--cut,50%);border-left:2px solid #fff;
box-shadow:0 0 3px #000}.tools{display:flex;gap:.8rem;align-items:center;flex-wrap:wrap;margin:.5rem 0}
input[type=range]{flex:1 1 14rem;accent-color:var(--accent)}button{font:inherit;padding:.15rem .7rem}
pre{overflow:auto;background:#f5f5f5;padding:.8rem;font-size:.85rem}"""

_SCRIPT = """document.querySelectorAll('[data-map]').forEach(function(box){
var inner=box.querySelector('.map div'),zoom=1;
var cut=box.querySelector('input');
if(cut)cut.addEventListener('input',function(e){inner.style.setProperty('--cut',e.target.value+'%')});
box.querySelectorAll('button').forEach(function(b){b.addEventListener('click',function(){
zoom=Math.min(16,Math.max(1,zoom*Number(b.dataset.by)));inner.style.setProperty('--zoom',zoom)})})});
document.querySelectorAll('[data-panels]').forEach(function(box){var all=box.querySelectorAll('figure');
function show(i){all.forEach(function(f,k){f.hidden=k!=i})}var range=box.querySelector('input');
if(range)range.addEventListener('input',function(e){show(Number(e.target.value))});show(all.length-1)});"""


def write_report(options: ReportOptions) -> Path:
    """Write the page of a run; returns its path. Raises ConfigError where the folder holds nothing to show."""
    run = options.run
    if not run.is_dir():
        raise ConfigError(f"'{run}' is no folder; name the folder of a run.")
    maps = [options.map] if options.map is not None else sorted(run.glob("*.tif"))
    parts = [part for read in (_curves, _panels, _results, _subsets) for part in _read(read, run)]
    for path in maps:
        parts += _map(preview(path, options.before))
    if not parts:
        raise ConfigError(f"'{run}' holds no metrics.csv, results.json, pictures or maps: is it the folder of a run?")
    title = f"Run {run.resolve().name}"
    config = run / "config.yaml"
    text = html.escape(config.read_text(errors="replace")) if config.exists() else ""
    settings = f"<h2>Options</h2><pre>{text}</pre>" if text else ""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts, settings, f"<script>{_SCRIPT}</script>"])
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'
    out = options.out or run / "report.html"
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.write_text(page)
        os.replace(partial, out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"'{out}' cannot be written: {error.strerror}. Give another --out.") from error
    return out


def _read(read: Callable[[Path], Iterator[str]], run: Path) -> list[str]:
    try:
        return list(read(run))
    except MultiMAEError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, csv.Error) as error:
        where = "metrics.csv" if read is _curves else "results.json" if read is _results else "a table or picture"
        raise DataError(f"'{run}': {where} is damaged ({shown(error)}). Mend it, or delete it.") from error


def _curves(run: Path) -> Iterator[str]:
    """Every quantity over the steps, training and validation together."""
    if not (run / "metrics.csv").exists():
        return
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(n.split("/", 1)[1] for n in (rows[0] if rows else {}) if "/" in n))
    charts = []
    for name in names:
        series = {}
        for kind, prefix in (("training", "train"), ("validation", "val")):
            found = [(r["step"], r.get(f"{prefix}/{name}")) for r in rows]
            points = [(float(step), float(value)) for step, value in found if value]
            points = [p for p in points if math.isfinite(p[1])]
            if points:
                series[kind] = points
        if series:
            charts.append(f"<figure>{chart(series, name)}<figcaption>{html.escape(name)}</figcaption></figure>")
    if charts:
        key = "".join(f'<i style="background:{c}"></i>{name}' for name, c in COLORS.items())
        yield f'<h2>Curves</h2><p class="key">{key}, over steps</p><div class="charts">{"".join(charts)}</div>'


def _panels(run: Path) -> Iterator[str]:
    """Pictures of the run; those of several steps behind a slider."""
    steps = sorted((run / "panels").glob("*.png"))
    chosen = [steps[i] for i in sorted({round(x) for x in np.linspace(0, len(steps) - 1, min(PANELS, len(steps)))})]
    if not chosen and (run / "reconstruction.png").exists():
        chosen = [run / "reconstruction.png"]
    if chosen:
        last, figures = len(chosen) - 1, "".join(_figure(p) for p in chosen)
        slider = f'<input type="range" aria-label="step" min="0" max="{last}" value="{last}">'
        tools = f'<div class="tools"><span>earlier</span>{slider}<span>later</span></div>' if last else ""
        yield f'<h2>Reconstructions</h2><section data-panels>{tools}<div class="wide">{figures}</div></section>'
    if (run / "predictions.png").exists():
        yield f'<h2>Predictions</h2><div class="wide">{_figure(run / "predictions.png")}</div>'


def _figure(path: Path) -> str:
    name = html.escape(path.stem.replace("_", " "))
    return f'<figure><img alt="{name}" src="{_embedded(path)}"><figcaption>{name}</figcaption></figure>'


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _results(run: Path) -> Iterator[str]:
    """Metrics with their intervals, and the confusion matrix."""
    path = run / "results.json"
    if not path.exists():
        return
    content = read_json(path, DataError)
    found = {name: content[name] for name in ("best", "last") if isinstance(content.get(name), dict)}
    if found:
        metrics = list(next(iter(found.values())))
        lines = [[name, *(_interval(values[m]) for m in metrics)] for name, values in found.items()]
        intro = "<h2>Results on test</h2><p>Value and 95 % bootstrap interval over images.</p>"
        yield intro + _table(["checkpoint", *metrics], lines)
    if content.get("confusion"):
        yield _confusion(content["classes"], np.array(content["confusion"], float))


def _interval(values: Sequence[float | None]) -> str:
    value, low, high = (math.nan if v is None else v for v in values)
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _confusion(names: Sequence[str], matrix: np.ndarray) -> str:
    """Rows are labels; shares of each row, darker where larger."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    head = "".join(f"<th scope='col'>{html.escape(n)}</th>" for n in names)
    rows = []
    for name, row, total in zip(names, shares, matrix.sum(axis=1), strict=True):
        cells = "".join(
            f"<td style='background:rgba(31,95,139,{share:.2f});color:{'#fff' if share > 0.55 else '#1a1a1a'}'>"
            f"{100 * share:.0f}</td>"
            for share in row
        )
        rows.append(f"<tr><th scope='row'>{html.escape(name)}</th>{cells}<td>{total:,.0f}</td></tr>")
    about = "<p>Per label (rows) the share of each prediction (columns) in per cent, and the number of labels.</p>"
    table = f"<thead><tr><th></th>{head}<th>labels</th></tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<h2>Confusion matrix</h2>{about}<div class='wide'><table class='matrix'>{table}</table></div>"


def _subsets(run: Path) -> Iterator[str]:
    """Tables of evaluation without some modalities."""
    for path in sorted(run.glob("*.csv")):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or "inputs" not in rows[0] or "dropped" not in rows[0]:
            continue
        metrics = [n for n in rows[0] if f"{n}_low" in rows[0]]
        lines = [[r["inputs"].replace("+", ", "), *(_interval(_ends(r, m)) for m in metrics)] for r in rows]
        intro = f"<h2>Without some modalities</h2><p>{html.escape(path.name)}: 95 % intervals.</p>"
        yield intro + _table(["inputs", *metrics], lines)


def _ends(row: Mapping[str, str], metric: str) -> list[float]:
    """A metric with the ends of its interval."""
    return [float(row[f"{metric}{end}"] or "nan") for end in ("", "_low", "_high")]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th scope='col'>{html.escape(h)}</th>" for h in head)
    body = "".join(
        f"<tr><th scope='row'>{html.escape(line[0])}</th>{''.join(f'<td>{html.escape(c)}</td>' for c in line[1:])}</tr>"
        for line in lines
    )
    return f"<div class='wide'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _map(shown: Preview) -> Iterator[str]:
    """A map, over what it was made from where that is given, with a slider between the two."""
    key = "".join(
        f"<span><i style='background:{color}'></i>{html.escape(name)}</span>" for name, color in shown.legend.items()
    )
    images, tools, cut = f'<img alt="map" src="{_picture(shown.after)}">', "", ' style="--cut:0%"'
    if shown.before is not None:
        images, cut = f'<img alt="before" src="{_picture(shown.before)}">{images}', ""
        slider = '<input type="range" aria-label="before and after" min="0" max="100" value="50">'
        tools = f"<span>before</span>{slider}<span>after</span>"
    for by, name, sign in (("1.5", "larger", "+"), ("0.6667", "smaller", "−")):
        tools += f'<button type="button" data-by="{by}" aria-label="{name}">{sign}</button>'
    pictures = f'<div class="map"><div{cut}>{images}</div></div><p class="key">{key}</p>'
    intro = f"<h2>{html.escape(shown.title)}</h2><p>{html.escape(shown.about)}</p>"
    yield f'{intro}<section data-map><div class="tools">{tools}</div>{pictures}</section>'


def _picture(pixels: np.ndarray) -> str:
    """Pixels [h, w, 3 or 4], 0 to 255, as a data address."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
