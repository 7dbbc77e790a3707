"""Reads the pickles inside GEO-Bench files without running anything that they ask for.

A pickle can name any function of any module and have it called. Here the names that GEO-Bench writes stand for classes
that keep nothing and do nothing, arrays and scalars of plain numbers are put together by this file (numpy's own
`__setstate__` trusts its input), and every other name is an error.
"""

import io
import pickle
import pickletools
import re
import reprlib
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from multimae_eo.errors import DataError

_BANDS = (
    *("Band", "BandInfo", "SpectralBand", "MultiBand", "HyperSpectralBands", "ElevationBand", "Height", "Mask"),
    *("Sentinel1", "Sentinel2", "Landsat8", "CloudProbability", "SegmentationClasses"),
)
_LABELS = (
    *("LabelType", "Classification", "MultiLabelClassification", "SegmentationClasses", "Detection"),
    *("PointAnnotation", "Regression"),
)
_LOSSES = ("Loss", "Accuracy", "MultilabelAccuracy", "SegmentationAccuracy", "AccuracyScore")

# The package moved: ccb.io, geobench.io and geobench hold the same classes, and all three occur in the published files.
HARMLESS = frozenset(
    {
        *((f"{home}.dataset", name) for home in ("ccb.io", "geobench.io", "geobench") for name in _BANDS),
        *((f"{home}.label", name) for home in ("ccb.io", "geobench.io", "geobench") for name in _LABELS),
        *((f"{home}.task", name) for home in ("ccb.io", "geobench.io", "geobench") for name in _LOSSES),
        *((f"{home}.task", "TaskSpecifications") for home in ("ccb.io", "geobench.io", "geobench")),
        *(("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
        ("affine", "Affine"),
        ("rasterio.crs", "CRS"),
    }
)

_NUMBER = re.compile(r"b1|[iu][1248]|f[248]")
_MOST_OBJECTS = 1_000_000  # that one label is made of; those of GEO-Bench are made of some hundreds
_MARK = -1
_REFUSED_OPCODES = ("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID")


class _Refused(Exception):
    """What the pickle asks for, and will not get."""


class _Inert:
    """Stands for a class of another package; takes any arguments and any state, and keeps neither."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Dtype:
    """A type of plain numbers; anything else (objects, fields, dates) is refused."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise _Refused(f"numpy.dtype({reprlib.repr(code)})")
        self.type = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, order, *parts = state[:5]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in parts):
            raise _Refused(f"a numpy.dtype with the state {reprlib.repr(state)}")
        self.type = self.type.newbyteorder(order)


class _Array:
    """An array that gets its shape, type and bytes in `__setstate__`, as numpy's own protocol has it."""

    def __init__(self, kind: Any, shape: Any, code: Any):
        if kind is not _Array:
            raise _Refused("an array of another class than numpy.ndarray")
        self.values = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.values = _from_bytes(data, dtype, shape, "F" if fortran else "C")


def _from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise _Refused("an array of objects")
    return np.frombuffer(bytes(data), dtype.type).reshape(shape, order=order).astype(dtype.type.newbyteorder("="))


def _scalar(dtype: Any, data: Any) -> Any:
    return _from_bytes(data, dtype, (1,), "C")[0]


_NUMPY: dict[tuple[str, str], Callable[..., Any]] = {("numpy", "dtype"): _Dtype, ("numpy", "ndarray"): _Array}
for _core in ("numpy.core", "numpy._core"):
    _NUMPY[f"{_core}.multiarray", "_reconstruct"] = _Array
    _NUMPY[f"{_core}.multiarray", "scalar"] = _scalar
    _NUMPY[f"{_core}.numeric", "_frombuffer"] = _from_bytes


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return _NUMPY[module, name]
        if (module, name) in HARMLESS:
            return type(name, (_Inert,), {})
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("an object outside of the file (a persistent id)")


def _check_opcodes(data: bytes) -> None:
    """Look at a pickle before anything is loaded.

    Extension codes reach their objects past `find_class`; a number in the memo makes room for all numbers below it; and
    tuples of the same tuples take few bytes, and years to be hashed or shown.
    """
    stack: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(data):
        place = len(memo) if argument is None else argument
        if opcode.name in _REFUSED_OPCODES:
            raise _Refused(f"an object outside of the file (opcode {opcode.name})")
        if "PUT" in opcode.name and int(place) > len(data):
            raise ValueError(f"it asks for room for {int(place)} objects")
        if opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(int(place), 1))
            continue
        if "PUT" in opcode.name or opcode.name == "MEMOIZE":
            memo[int(place)] = stack[-1]
            continue
        if opcode.name == "DUP":
            stack.append(stack[-1])
            continue
        _advance(stack, opcode)
        if stack and stack[-1] > _MOST_OBJECTS:
            raise ValueError(f"it stands for more than {_MOST_OBJECTS} objects")


def _advance(stack: list[int], opcode: Any) -> None:
    """What an operation does to a stack of which only the sizes are known: how many objects each entry is made of."""
    taken, before = 1, list(opcode.stack_before)
    if pickletools.markobject in before:
        place = len(stack) - 1 - stack[::-1].index(_MARK)
        taken += sum(stack[place + 1 :])
        del stack[place:]
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        taken += max(0, stack.pop())
    stack += [_MARK if kind is pickletools.markobject else taken for kind in opcode.stack_after]


def loads(data: bytes, where: str) -> Any:
    """The plain values of a pickle: numbers, text, lists, dictionaries, arrays of numbers; the rest is inert.

    where: names the file in errors. Raises DataError for a global that is not on the list, and for a damaged pickle.
    """
    try:
        _check_opcodes(data)
        value = _Unpickler(io.BytesIO(data)).load()
    except _Refused as error:
        raise DataError(
            f"{where}: the pickle asks for {error}, which is not among the harmless classes of GEO-Bench. It was "
            "refused, and nothing was executed. Do not use the file; fetch it anew from its source."
        ) from None
    # Damaged bytes can make the unpickler raise nearly anything, from IndexError to MemoryError.
    except Exception as error:
        raise DataError(
            f"{where}: the pickle is damaged ({type(error).__name__}: {error}). Fetch the file anew from its source."
        ) from error
    if isinstance(value, dict):
        return {key: _finished(entry) for key, entry in value.items()}
    return _finished(value)


def _finished(value: Any) -> Any:
    return value.values if isinstance(value, _Array) else value
