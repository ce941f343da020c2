"""Reading ``.npz`` files that hold Python objects, without executing what their pickles ask for.

NumPy stores an array of objects as a pickle, and a pickle may name any function to be called. It may also hand
`numpy.dtype` and `numpy.ndarray` a state that lets bytes pass for pointers, so that allowing NumPy's own
constructors is not safe either. Here the few names that a pickled array needs are read as the stand-ins below,
which build plain values from checked parts; any other name is refused. The format of the members is that of
`numpy.lib.format`, and the states are those that NumPy's ``__reduce__`` methods write.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from affect_rl.data.validation import near
from affect_rl.errors import AffectError

_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def load_npz(path: Path | str) -> dict[str, Any]:
    """The arrays of an ``.npz`` file by name; an array of one object and no dimension is that object itself.

    Objects may be numbers, text, bytes, None, dictionaries, lists, tuples, sets and arrays, in any nesting.
    NumPy scalars come back as Python's own.

    Raises:
        AffectError: the file is missing or damaged, or an object asks for anything else; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(other.name for other in path.parent.glob("*.npz"))
        raise AffectError(f"{path}: is missing; {near(path.name, there) if there else 'there is no .npz beside it'}")
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                member.removesuffix(".npy"): _read_member(archive, member, f"{path}: {member.removesuffix('.npy')}")
                for member in archive.namelist()
            }
    except zipfile.BadZipFile:
        raise AffectError(f"{path}: is not an .npz file, or damaged; fetch it again") from None


def _read_member(archive: zipfile.ZipFile, member: str, where: str) -> Any:
    try:
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            _, _, dtype = _READ_HEADER[version](stream)
            if dtype.hasobject:
                return _plain(_Unpickler(stream, where).load())
        with archive.open(member) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except (AffectError, zipfile.BadZipFile):
        raise
    except Exception as error:  # the pickle module promises no set of exceptions for damaged input
        raise AffectError(f"{where}: cannot be read ({type(error).__name__}: {error}); fetch the file again") from None


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the stand-ins and nothing else."""

    def __init__(self, stream: IO[bytes], where: str) -> None:
        super().__init__(stream)
        self._where = where

    def find_class(self, module: str, name: str) -> type:
        known = f"{module.replace('numpy.core.', 'numpy._core.').replace('__builtin__', 'builtins')}.{name}"
        if known not in _STAND_INS:
            raise AffectError(
                f"{self._where}: asks for {module}.{name}, which plain data does not need, so it was not loaded; "
                "get the file from its publisher, or write it again with plain values"
            )
        return _STAND_INS[known]


class _StandIn:
    def __setstate__(self, state: Any) -> None:
        """Refuse a state, also one that a pickle sets on the class itself and that would outlive the reading."""
        raise ValueError("a state was given where none belongs")


class _Dtype(_StandIn):
    """For `numpy.dtype`: bool, number, text, bytes or object, without fields, subarrays or metadata."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"b1|[iuf]\d+|[US]\d*|O8?", code):
            raise ValueError(f"dtype {code!r} is not plain")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *structure = state
        if any(part is not None for part in structure[:3]):
            raise ValueError("a dtype with fields is not plain")
        self.dtype = self.dtype.newbyteorder(order)


class _NdArray(_StandIn):
    """For `numpy.ndarray`, which pickles name only as the type to reconstruct."""


class _Array(_StandIn):
    """For ``_reconstruct``, which makes an empty array that takes its content as a state."""

    def __init__(self, kind: type, shape: tuple[int, ...], code: bytes) -> None:
        if kind is not _NdArray:
            raise ValueError("only plain arrays can be read")
        self._state: tuple[tuple[int, ...], np.dtype, bool, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self._state = (shape, dtype.dtype, fortran, content)

    def array(self) -> np.ndarray:
        if self._state is None:
            raise ValueError("an array has no content")
        shape, dtype, fortran, content = self._state
        if not dtype.hasobject:
            return _from_bytes(shape, dtype, content, "F" if fortran else "C")
        if not isinstance(content, list) or len(content) != math.prod(shape):
            raise ValueError(f"an array of shape {shape} does not have its number of objects")
        array = np.empty(len(content), object)
        for place, value in enumerate(content):
            array[place] = _plain(value)
        return array.reshape(shape)  # objects are listed in C order whatever the array's own


class _Scalar(_StandIn):
    """For ``scalar``, which makes a NumPy scalar of a dtype and bytes."""

    def __init__(self, dtype: _Dtype, content: bytes = b"") -> None:
        self.value = _from_bytes((), dtype.dtype, content, "C").item()


_STAND_INS: dict[str, type] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _NdArray,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray.scalar": _Scalar,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
}


def _from_bytes(shape: tuple[int, ...], dtype: np.dtype, content: bytes, order: Literal["C", "F"]) -> np.ndarray:
    # NumPy does not check this: bytes read as an array of objects are pointers.
    if dtype.hasobject or not isinstance(content, bytes):
        raise ValueError("bytes cannot stand for objects")
    return np.ndarray(shape, dtype, content, order=order).copy()


def _plain(value: Any) -> Any:
    """The value with stand-ins replaced by what they stand for."""
    match value:
        case None | bool() | int() | float() | str() | bytes():
            return value
        case dict():
            return {_plain(key): _plain(entry) for key, entry in value.items()}
        case list() | tuple() | set() | frozenset():
            return type(value)(_plain(entry) for entry in value)
        case _Scalar():
            return value.value
        case _Array():
            array = value.array()
            return array.item() if array.dtype.hasobject and array.ndim == 0 else array
    raise ValueError(f"a value is no plain one but stands for {value!r}")
