"""The checkpoint of a release: a tiny model of the synthetic world in half precision, below 15 MB, and its model card.

    python benchmarks/study/release.py [--work runs/study] [--steps 2000] [--seeds 0]

Trains `recipe: v2` with narrow decoders, stores the weights as 16-bit numbers (they are read as float32), checks what
that costs, judges them beside what has learned nothing on labelled tiles of other places, and leaves a folder that
`multimae_eo.load` reads and the Hub takes: runs/study/release. The card and its picture go into docs too.
"""

import shutil
from pathlib import Path

import torch
from frozen import losses, probes
from show import turned
from study import DOCS, PARTITIONS, Arm, Budget, Place, arguments, model, worlds

from multimae_eo import checkpoint, visualize
from multimae_eo.integrations.hub import HubModel
from multimae_eo.modalities import RECIPE_INPUTS
from multimae_eo.raster import Batch
from multimae_eo.tasks.features import Init
from multimae_eo.tasks.run import build

LARGEST = 15_000_000  # bytes of the whole folder
PICTURE = "model_card.png"
# Land cover is predicted and not fed (docs/results.md); narrow decoders leave the room to the encoder.
RELEASED = Arm(
    "release",
    {
        "model.inputs": list(RECIPE_INPUTS["v2"]),
        "model.decoder_dim": 64,
        "model.decoder_depth": 1,
    },
)
INITS: dict[str, Init] = {
    "these weights": "pretrained",
    "random weights": "random",
    "band statistics": "band_statistics",
    "random convolutions": "random_convolutions",
}
LIMITS = (
    "it has never seen a real image. It shows how checkpoints are used, and is a start for tests; it is no model to "
    "map anything with."
)


def main() -> None:
    """The command line."""
    place, budget, (seed, *_) = arguments(__doc__, seeds="0", size="tiny", steps=2_000)
    if place.dry:
        print(f"{budget.words()}; into {place.work / 'release'}")
        return
    worlds(place, budget, seed, "frozen")
    directory, options = model(RELEASED, place, budget, seed)
    out = place.work / "release"
    shutil.rmtree(out, ignore_errors=True)
    spoilt = store(directory, out)
    card = card_of(out, place, budget, seed, spoilt)
    (out / "README.md").write_text(card)
    task, data = build(options)
    batch, mask = task.prepare(next(iter(data.validation_batches())))
    first: Batch = {name: type(raster)(*(part[:3] for part in raster)) for name, raster in batch.items()}
    visible = mask._replace(visible=mask.visible[:3])
    visualize.save_panels(
        checkpoint.load_model(out), first, visible, out / PICTURE, names=["1", "2", "3"], title="Held-out tiles"
    )
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{card}\n{out}: {size / 1e6:.1f} MB")
    if size > LARGEST:
        raise SystemExit(f"{size} bytes are more than {LARGEST}")
    if place.official:
        (DOCS / "model_card.md").write_text(card.split("---\n", 2)[2].lstrip())
        shutil.copy(out / PICTURE, DOCS / PICTURE)


def store(directory: Path, out: Path) -> float:
    """Write the weights as 16-bit numbers; returns the largest difference of features, over their scale."""
    mae = checkpoint.load_model(directory)
    checkpoint.save(checkpoint.load_model(directory).half(), out, extra=checkpoint.read_content(directory)["extra"])
    random = torch.Generator().manual_seed(0)
    images = 3000 * torch.rand(8, 3, 56, 56, generator=random)
    given = {"bands": ["B04", "B03", "B02"], "units": "dn", "product": "L2A"}
    with torch.no_grad():
        before, after = (encoder(images, **given) for encoder in (mae.encoder, checkpoint.load(out)))
    return float((before - after).abs().max() / before.abs().max())


def card_of(out: Path, place: Place, budget: Budget, seed: int, spoilt: float) -> str:
    """The model card: what goes in and out, and how it compares with what has learned nothing."""
    _, options = model(RELEASED, place, budget, seed)
    names = {f"{probe} {share}": (probe, share) for probe in ("linear", "knn-20") for share in PARTITIONS}
    rows = {"accuracy, %": [f"{p.replace('knn-20', 'k-NN')}, {100 * float(s[:-1]):.0f} %" for p, s in names.values()]}
    for word, init in INITS.items():
        found = probes(out, place, budget, seed, "class", "all", init)
        rows[word] = [f"{100 * found[name]:.1f}" for name in names]
    of_views = losses(out, options)
    text = str(
        HubModel.from_pretrained(str(out)).generate_model_card(
            data=f"a synthetic world of multimae-eo ({budget.words()}), seed {seed}; no real image",
            license="apache-2.0",
            limits=LIMITS,
        )
    )
    return "\n".join(
        [
            text.rstrip(),
            f"- 16-bit weights change features of RGB by at most {100 * spoilt:.2f} % of the largest",
            *("", "## How good it is", ""),
            "Frozen features of Sentinel-2 and elevation, shares of the labels, one seed; twelve states of the ground",
            "of synthetic places that it has not seen; the protocol is that of the project's page of results.",
            *("", turned(rows), ""),
            "Loss on held-out tiles: " + ", ".join(f"`{view}` {loss:.3f}" for view, loss in of_views.items()) + ".",
            "",
            f"![Held-out tiles: what is there, what was shown, what the model makes of it]({PICTURE})",
            "",
        ]
    )


if __name__ == "__main__":
    main()
