"""Object arrays out of ``.npz`` files: the same values as NumPy's, and nothing executed."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affect_rl.data.npz import load_npz
from affect_rl.errors import AffectError


def write_pickle(path: Path, content: bytes, key: str = "corpus", version: tuple[int, int] = (1, 0)) -> Path:
    """An ``.npz`` with one object array of no dimension, whose pickle is `content`."""
    with zipfile.ZipFile(path, "w") as archive, archive.open(f"{key}.npy", "w") as member:
        write = {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}[version]
        write(member, {"descr": "|O", "fortran_order": False, "shape": ()})
        member.write(content)
    return path


numbers = st.integers() | st.floats(allow_nan=False)
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
numpy_scalars = (
    words.map(np.str_)
    | st.floats(allow_nan=False).map(np.float64)
    | st.floats(width=32, allow_nan=False).map(np.float32)
    | st.integers(-(2**63), 2**63 - 1).map(np.int64)
    | st.booleans().map(np.bool_)
)
plain = st.recursive(
    st.none() | st.booleans() | numbers | words | st.binary(max_size=5)
    | st.frozensets(words, max_size=3) | st.sets(st.integers(), max_size=3) | numpy_scalars,
    lambda inner: st.lists(inner, max_size=3)
    | st.tuples(inner, inner)
    | st.dictionaries(words | words.map(np.str_) | st.integers(), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def assert_pythonic(value: Any) -> None:
    assert type(value).__module__ == "builtins"
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            assert_pythonic(entry)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(words, plain, max_size=4), st.sampled_from([3, 4]))
def test_objects_are_what_numpy_reads(tmp_path: Path, corpus: dict[str, Any], protocol: int) -> None:
    array = np.empty((), object)
    array[()] = corpus
    path = write_pickle(tmp_path / "labels.npz", pickle.dumps(array, protocol))
    found = load_npz(path)["corpus"]
    assert found == np.load(path, allow_pickle=True)["corpus"].item() == corpus
    assert_pythonic(found)


def test_arrays_of_every_kind(tmp_path: Path) -> None:
    objects = np.array([["a", None, 2], [{"x": 1}, [3], 0.5]], object)
    arrays = {
        "numbers": np.arange(6.0).reshape(2, 3),
        "words": np.array(["sad", "happy"]),
        "objects": objects,
        "columns": np.asfortranarray(objects),
        "none": np.empty((0, 2), object),
    }
    np.savez_compressed(tmp_path / "a.npz", nested={"deep": [np.arange(4).reshape(2, 2).T, objects]}, **arrays)
    found = load_npz(tmp_path / "a.npz")
    assert list(found) == ["nested", *arrays]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    numbers, nested = found["nested"]["deep"]
    np.testing.assert_array_equal(numbers, [[0, 2], [1, 3]])
    np.testing.assert_array_equal(nested, objects)


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_files_of_numpy_1_and_2(tmp_path: Path, module: bytes, version: tuple[int, int]) -> None:
    array = np.empty((), object)
    array[()] = {"video_1": {"val": np.float64(-0.4)}}
    content = re.sub(rb"cnumpy\._?core\.", b"c" + module + b".", pickle.dumps(array, 3))
    assert content.count(b"c" + module + b".multiarray") == 2
    assert load_npz(write_pickle(tmp_path / "a.npz", content, version=version)) == {
        "corpus": {"video_1": {"val": -0.4}}
    }


class Call:
    """Pickles as a call, with a state."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


RECONSTRUCT = np.empty(0).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]
POINTER = b"\x41" * 8


def array_of(dtype: Any, content: Any, shape: Any = (1,)) -> Call:
    return Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, content))


FIELDS = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
"""State of a dtype whose one field is an object, without the flag that says so: bytes pass for a pointer."""


REFUSED = [
    (lambda marker: Call(os.system, f"touch {marker}"), f"asks for {os.system.__module__}.system, which plain data"),
    (lambda marker: {"u1": {"emo": Call(Path.touch, marker)}}, "asks for pathlib"),
    (lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"), "asks for builtins.eval"),
    (lambda marker: Call(getattr, "", "join"), "asks for builtins.getattr"),
    (lambda marker: Call(np.load, marker), "asks for numpy.load"),
    (lambda marker: np.dtype, "a value is no plain one"),
    (lambda marker: np.ndarray, "a value is no plain one"),
    (lambda marker: Call(RECONSTRUCT, np.ndarray, (0,), b"b"), "an array has no content"),
    (lambda marker: array_of(Call(np.dtype, "V8", False, True, state=FIELDS), POINTER), "dtype 'V8' is not plain"),
    (lambda marker: array_of(Call(np.dtype, "i8", False, True, state=FIELDS), POINTER), "dtype with fields"),
    (lambda marker: array_of(np.dtype("O"), POINTER), "does not have its number of objects"),
    (lambda marker: array_of(np.dtype("O"), [1], (2,)), "does not have its number of objects"),
    (lambda marker: array_of(np.dtype("f8"), POINTER, (2,)), "cannot be read"),
    (lambda marker: Call(SCALAR, np.dtype("O"), POINTER), "bytes cannot stand for objects"),
    (lambda marker: Call(SCALAR, np.dtype("f8"), POINTER, state={"value": 1}), "a state was given where none belongs"),
    (lambda marker: Call(RECONSTRUCT, set, (0,), b"b"), "only plain arrays can be read"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_refused(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    marker = tmp_path / "marker"
    path = write_pickle(tmp_path / "labels.npz", pickle.dumps(make(marker), 4))
    with pytest.raises(AffectError, match=re.escape(message)) as caught:
        load_npz(path)
    assert str(caught.value).startswith(f"{path}: corpus: ") and not marker.exists()


def test_the_malicious_files_would_do_harm(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = write_pickle(tmp_path / "labels.npz", pickle.dumps(REFUSED[0][0](marker), 4))
    np.load(path, allow_pickle=True)["corpus"]
    assert marker.exists()


def test_a_state_cannot_change_a_stand_in(tmp_path: Path) -> None:
    good = pickle.dumps(np.float64(0.5), 3)
    content = b"\x80\x04cnumpy\nndarray\n(N}\x8c\x04__eq__Ndtb."  # BUILD on the class itself, with slots to set
    with pytest.raises(AffectError, match="cannot be read"):
        load_npz(write_pickle(tmp_path / "bad.npz", content))
    assert load_npz(write_pickle(tmp_path / "good.npz", good)) == {"corpus": 0.5}


def test_an_object_that_holds_itself(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(AffectError, match="cannot be read \\(RecursionError"):
        load_npz(write_pickle(tmp_path / "a.npz", pickle.dumps(endless)))


DAMAGED: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: path.rename(path.with_name("label.npz")), "labels.npz: is missing; did you mean 'label.npz'?"),
    (lambda path: path.unlink(), "labels.npz: is missing; there is no .npz beside it"),
    (lambda path: path.write_bytes(b"PK"), "labels.npz: is not an .npz file, or damaged; fetch it again"),
    (lambda path: path.write_bytes(path.read_bytes()[:-30]), "labels.npz: is not an .npz file, or damaged"),
    (lambda path: write_pickle(path, pickle.dumps({"a": 1})[:-3]), "labels.npz: corpus: cannot be read"),
    (lambda path: zipfile.ZipFile(path, "w").writestr("corpus.npy", b"text"), "labels.npz: corpus: cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), DAMAGED, ids=[message for _, message in DAMAGED])
def test_damaged_files(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    path = write_pickle(tmp_path / "labels.npz", pickle.dumps({"a": 1}))
    spoil(path)
    with pytest.raises(AffectError, match=re.escape(message)):
        load_npz(path)
