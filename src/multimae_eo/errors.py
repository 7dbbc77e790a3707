"""The errors that users can cause; each says what is wrong, where, what was expected and got, and how to mend it."""

import difflib
import re
import reprlib
from collections.abc import Iterable


class MultiMAEError(ValueError):
    """Base of every error a user can cause; the command line prints it without a traceback and exits with 2."""


class ConfigError(MultiMAEError):
    """An option has an impossible value, or options contradict each other."""


class UnknownNameError(ConfigError):
    """A modality, view, band, class or option has no such name; the nearest known one is suggested."""

    def __init__(self, what: str, name: str, known: Iterable[str]):
        known = list(known)
        near = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
        nearest = next((k for k in known if near and k.lower() == near[0]), None)
        hint = f" Did you mean '{nearest}'?" if nearest else ""
        super().__init__(f"unknown {what} '{name}'.{hint} Known: {', '.join(known)}.")


class SizeError(MultiMAEError):
    """An image size or shape does not fit the model."""


class BatchError(MultiMAEError):
    """A batch lacks something the model needs, or has too few valid tokens."""


class DataError(MultiMAEError):
    """A data file is missing, truncated, or not laid out as its format says."""


class StatisticsError(DataError):
    """Band statistics are missing for a product, or are not numbers."""


class GridError(DataError):
    """Rasters that should lie on one grid differ in reference system, transform or shape."""


class CheckpointError(MultiMAEError):
    """A checkpoint cannot be read, or its tensors do not fit the model."""


class UnreadError(DataError):
    """A tile or an image could not be read this time; it may be read again, or be left out."""


class DivergedError(MultiMAEError):
    """The loss or its gradient was not finite for too many steps in a row."""


class TerminatedError(MultiMAEError):
    """The run was told to end (SIGTERM), and can go on later; the command line exits with 75."""


class WriteError(MultiMAEError):
    """A result could not be written: the disk is full or went away. What is finished is kept."""


class IncompleteError(MultiMAEError):
    """A result is written, but a part of what it is made of could not be read; the command line exits with 3."""


def shown(value: object) -> str:
    """A value in a message, short whatever it is; some cannot be shown, such as numbers of thousands of digits."""
    try:
        return reprlib.repr(value)
    except Exception:  # raised by its own __repr__
        return f"a {type(value).__name__}"


def reason(error: BaseException) -> str:
    """The message of a user error; of one raised in a loading process, without that process's traceback."""
    text = str(error)
    if text.startswith("Caught "):
        text = re.split(r"\n(?:[\w.]+\.)?\w+Error: ", text)[-1]
    return text.strip()
