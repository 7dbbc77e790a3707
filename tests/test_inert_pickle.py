"""Pickles of GEO-Bench are read, hostile ones are refused before anything of theirs runs, damaged ones are errors."""

import ast
import copyreg
import io
import os
import pickle
import struct

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from geobench_files import original_classes, pickled  # noqa: E402

from multimae_eo.data import inert_pickle  # noqa: E402
from multimae_eo.errors import DataError  # noqa: E402


class Calls:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def text(value: str) -> bytes:
    """Opcodes that push a short string."""
    data = value.encode()
    return b"\x8c" + struct.pack("<B", len(data)) + data


def call_of(module: str, name: str, *args: str) -> bytes:
    """A pickle that calls module.name with strings, written by hand: no import is needed to make it."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + b"".join(map(text, args)) + b"tR."


def refused(data: bytes, match: str) -> None:
    with pytest.raises(DataError, match="nothing was executed") as error:
        inert_pickle.loads(data, "'file.hdf5'")
    assert match in str(error.value)
    assert "'file.hdf5'" in str(error.value)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "touched"


def hostile(target) -> dict[str, tuple[bytes, str]]:
    shell, python = f"touch {target}", f"open({str(target)!r}, 'w').close()"
    attack = Calls(os.system, shell)
    with original_classes() as (band, _, _):
        victim = band("B02")
        victim.args = (attack,)  # runs while the state of an allowed class is built
        state = pickle.dumps({"label": victim}, protocol=4)
    return {
        "os.system": (pickle.dumps({"label": attack}), "posix.system"),
        "posix.system by hand": (call_of("posix", "system", shell), "posix.system"),
        "eval": (pickle.dumps(Calls(eval, python)), "builtins.eval"),
        "exec of Python 2": (b"c__builtin__\nexec\n(S" + repr(python).encode() + b"\ntR.", "__builtin__.exec"),
        "getattr": (call_of("builtins", "getattr", "x", "y"), "builtins.getattr"),
        "INST": (b"(S" + repr(shell).encode() + b"\nios\nsystem\n.", "os.system"),
        "OBJ": (b"(cos\nsystem\nS" + repr(shell).encode() + b"\no.", "os.system"),
        "inside a list": (pickle.dumps([1, [2, [attack]]]), "posix.system"),
        "inside a state": (state, "posix.system"),
        "as a key": (pickle.dumps({("a", attack): 1}), "posix.system"),
        "path through an allowed class": (
            call_of("geobench.dataset", "Sentinel2.__init__.__globals__", shell),
            "geobench.dataset.Sentinel2.__init__.__globals__",
        ),
        "another name of an allowed module": (call_of("geobench.dataset", "os.system", shell), "os.system"),
        "subprocess": (call_of("subprocess", "getoutput", shell), "subprocess.getoutput"),
        "numpy.load": (call_of("numpy", "load", str(target)), "numpy.load"),
        "numpy.save": (call_of("numpy", "save", str(target), "x"), "numpy.save"),
        "numpy.fromfile": (call_of("numpy", "fromfile", str(target)), "numpy.fromfile"),
        "numpy's runner": (call_of("numpy.testing._private.utils", "runstring", python, ""), "runstring"),
        "numpy.f2py": (call_of("numpy.distutils.exec_command", "exec_command", shell), "exec_command"),
        "numpy.core._internal": (call_of("numpy.core._internal", "eval", python), "numpy.core._internal.eval"),
    }


@pytest.mark.parametrize("name", hostile("anywhere"))
def test_hostile_pickles_are_refused_and_run_nothing(name, target):
    data, named = hostile(target)[name]
    refused(data, named)
    assert not target.exists()


def test_the_attack_is_real(target):
    """Python's own unpickler does run it, so the tests above prove something."""
    with original_classes():
        pickle.loads(hostile(target)["inside a state"][0])
    assert target.exists()


def test_objects_of_numpy_are_refused(target):
    attack = Calls(os.system, f"touch {target}")
    inner = pickle.dumps(attack)
    dtype = b"\x80\x04" + text("numpy") + text("dtype") + b"\x93(" + text("O8") + b"tR."
    refused(dtype, "numpy.dtype('O8')")
    refused(pickle.dumps(np.array([{}, None], dtype=object), protocol=4), "numpy.dtype('O8')")
    refused(pickle.dumps(np.zeros(2, [("a", "i4")]), protocol=4), "numpy.dtype('V4')")
    refused(pickle.dumps(np.datetime64("2020-01-01"), protocol=4), "numpy.dtype('M8')")
    # An object scalar would unpickle its bytes once more, with numpy's own unpickler.
    scalar = b"\x80\x04" + text("numpy.core.multiarray") + text("scalar") + b"\x93(" + text("O")
    refused(scalar + b"C" + struct.pack("<B", len(inner)) + inner + b"tR.", "array of objects")
    # A type of plain numbers whose state says that it holds objects.
    state = b"(K\x03" + text("|") + b"N" + text("names") + b"NJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb."
    refused(b"\x80\x04" + text("numpy") + text("dtype") + b"\x93(" + text("i8") + b"tR" + state, "numpy.dtype with")
    assert not target.exists()


def test_objects_outside_of_the_file_are_refused():
    refused(b"\x80\x02K\x07Q.", "BINPERSID")
    refused(b"Pname\n.", "PERSID")
    refused(b"\x80\x02\x82\x07.", "EXT1")
    copyreg.add_extension("os", "system", 0x1234)
    try:
        pickle.loads(b"\x80\x02\x83\x34\x12.")  # from now on it is found without a look-up
        refused(b"\x80\x02\x83\x34\x12.", "EXT2")
    finally:
        copyreg.remove_extension("os", "system", 0x1234)


def test_a_class_of_numpy_other_than_its_array_is_refused():
    memory_map = b"\x80\x04" + text("numpy.core.multiarray") + text("_reconstruct") + b"\x93("
    refused(memory_map + text("numpy") + text("memmap") + b"\x93K\x00\x85C\x01btR.", "numpy.memmap")
    refused(memory_map + text("numpy") + text("dtype") + b"\x93K\x00\x85C\x01btR.", "another class")


DAMAGED = {
    "empty": b"",
    "cut": pickled(["02 - Blue"], 3)[:-20],
    "text": b"not a pickle",
    "zeros": bytes(50),
    "no such memo": b"\x80\x04h\x05.",
    "stack underflow": b"\x80\x04R.",
    "call of a number": b"\x80\x04K\x01)R.",
    "huge memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "array without bytes": pickle.dumps(np.arange(3), protocol=4)[:-10] + b".",
    "unpicklable out-of-band buffer": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pickles_are_errors_of_the_data(name):
    with pytest.raises(DataError, match=r"^'file.hdf5': the pickle is damaged \("):
        inert_pickle.loads(DAMAGED[name], "'file.hdf5'")


@pytest.mark.parametrize(
    ("protocol", "core"), [(3, "numpy._core"), (3, "numpy.core"), (4, "numpy._core"), (5, "numpy._core")]
)
def test_numbers_of_numpy_are_read(protocol, core):
    content = {
        "scalar": np.int64(41),
        "real": np.float32(1.5),
        "swapped": np.array([1, 2], ">i4"),
        "list": [1, 0, 1],
        "hot": np.array([0, 1, 1], np.int64),
        "flags": np.array([True, False]),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    data = pickle.dumps(content, protocol=protocol)
    if protocol == 3:  # later protocols have the lengths of names before them
        data = data.replace(b"numpy._core", core.encode())
        assert core.encode() + b".multiarray" in data
    loaded = inert_pickle.loads(data, "here")
    assert loaded["scalar"] == 41
    assert isinstance(loaded["scalar"], np.int64)
    assert loaded["real"] == 1.5
    assert loaded["list"] == [1, 0, 1]
    for key in ("swapped", "hot", "flags", "columns"):
        assert np.array_equal(loaded[key], content[key]), key
    assert loaded["flags"].dtype == bool
    loaded["hot"][0] = 1  # the array is its own


def test_what_is_harmless_keeps_nothing_and_does_nothing():
    loaded = inert_pickle.loads(pickled(["02 - Blue"], 3, original_globals=True), "here")
    assert loaded["label"] == 3
    assert loaded["bands_order"] == ["02 - Blue"]
    band = loaded["02 - Blue"]["band_info"]
    assert type(band).__name__ == "Sentinel2"
    assert not vars(band)
    assert type(band).__module__ == "multimae_eo.data.inert_pickle"


def test_every_harmless_name_takes_any_arguments():
    for module, name in inert_pickle.HARMLESS:
        loaded = inert_pickle.loads(call_of(module, name, "one", "two"), "here")
        assert type(loaded).__name__ == name


def test_real_pickles_are_read(shared):
    files = sorted((shared / "real/geobench").rglob("*.hdf5"))
    assert len(files) >= 10
    for path in files:
        with h5py.File(path) as file:
            loaded = inert_pickle.loads(ast.literal_eval(file.attrs["pickle"]), str(path))
            assert set(file) <= {*loaded}
    specs = inert_pickle.loads((shared / "real/geobench/classification_v1.0/m-eurosat/task_specs.pkl").read_bytes(), "")
    assert type(specs).__name__ == "TaskSpecifications"


def test_loading_reads_no_more_than_the_bytes():
    """Trailing bytes are not unpickled."""
    tail = io.BytesIO()
    pickle.dump({"label": 1}, tail)
    assert inert_pickle.loads(tail.getvalue() + call_of("posix", "system", "false"), "here") == {"label": 1}
