"""What a model is fed from a scene: which modalities, read as which products, and what to say of those it lacks."""

from collections.abc import Callable, Iterable, Mapping

from multimae_eo.config import ModelConfig, TaskConfig
from multimae_eo.errors import ConfigError
from multimae_eo.maps.mapping import Feed
from multimae_eo.modalities import Categorical, Modality, fed_by


def bands_of(names: Iterable[str], modalities: Mapping[str, Modality]) -> list[str]:
    """The bands of some modalities."""
    return [band for name in names for band in modalities[name].bands]


# What is said of the product that the bands of a modality are of.
Stated = Callable[[Modality], str | None]


def feed_of(bands: tuple[str, ...], stated: Stated, config: ModelConfig, task: TaskConfig | None) -> Feed:
    """What a model is fed from some bands: modalities with at least half of theirs, and the product of each.

    The product is the one that the task was trained on, else what is stated; raises ConfigError where these contradict
    each other, or nothing says it.
    """
    names = task.inputs if task is not None else config.input_modalities
    fed, products = {}, {}
    for name in fed_by(bands, {name: config.modalities[name] for name in names}):
        fed[name] = config.modalities[name]
        products[name] = product_index(stated, fed[name], task)
    if not fed:
        raise ConfigError(
            f"the scene has too few bands ({' '.join(bands)}) of any input: {', '.join(names)}; at least half of "
            "the bands of one are needed."
        )
    return Feed(bands, fed, products)


def product_index(stated: Stated, modality: Modality, task: TaskConfig | None) -> int:
    """The product that a modality of a scene is read as."""
    if isinstance(modality, Categorical):
        return 0
    said = stated(modality)
    trained = task.products.get(modality.name) if task is not None else None
    known = {p for p in modality.products if task is None or p != task.dataset}
    if trained is not None and trained in known and said is not None and said != trained:
        raise ConfigError(
            f"the checkpoint was trained on {modality.name} of product {trained}, the scene has {said}. Take a scene "
            f"of {trained}, or say what it is: --source.NAME.product {trained}."
        )
    chosen = trained if trained is not None else said
    if chosen is None:
        raise ConfigError(
            f"nothing says which product the scene's {modality.name} is of; give one of "
            f"{', '.join(modality.products)}: --source.NAME.product ..."
        )
    return modality.products.index(chosen)


def missing(feed: Feed, task: TaskConfig, *, droppable: bool, allowed: bool) -> list[str]:
    """Notes on the inputs that the scene lacks; raises ConfigError where the checkpoint was always given them."""
    absent = [name for name in task.inputs if name not in feed.modalities]
    if not absent:
        return []
    if not droppable and not allowed:
        raise ConfigError(
            f"the scene lacks {', '.join(absent)}: the checkpoint was trained with {', '.join(task.inputs)}, always "
            "with all of them, so none may be left out. Add a source, fine-tune with data.drop_modality, or take the "
            "loss: --allow-missing true."
        )
    return [f"Without {', '.join(absent)}: the scene lacks them."]
