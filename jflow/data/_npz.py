"""The arrays of an `.npz` file, every byte of which is checked: none is unpickled, cut short or taken for another."""

import ast
import math
import os
import struct
import zipfile
from typing import Any

import numpy as np

_CHUNK = 2**20
_DEFLATE = 1040  # deflate makes no more bytes than this of one
_END = struct.Struct("<4s4H2LH")  # the end of a zip's directory: signature, disks, entries, size, offset, comment


def read_npz(path: str | os.PathLike[str], wanted: tuple[str, ...]) -> dict[str, np.ndarray | None]:
    """The arrays of an `.npz` file by name, in its order; `None` for those that are not wanted, read to their end too.

    numpy reads an array up to where its header says, and zipfile checks a member where it ends: what a damaged header
    or directory leaves out would go missing in silence. Raises `FileNotFoundError` where there is no such file, and
    `ValueError` for all else that is wrong with it.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_directory(file, members)
            return {_name(member): _read(archive, member, _name(member) in wanted) for member in members}
    except FileNotFoundError:
        raise FileNotFoundError(f"A data set must be read from an .npz file. Got {path}: no such file.") from None
    except Exception as error:  # zipfile, its decompressors and numpy have a dozen kinds for what a file may hold
        why = str(error) or type(error).__name__
        raise ValueError(
            f"A file must be an .npz of plain arrays. Got {path}, which is damaged or something else ({why}); "
            "write it with np.savez(path, x=x, label=label)."
        ) from error


def _check_directory(file: Any, members: list[zipfile.ZipInfo]) -> None:
    """Raises `ValueError` where the directory does not say how many members there are, or names one twice."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 2**16))
    tail = file.read()
    found = tail.rfind(b"PK\5\6")
    *_, here, entries, length, offset, comment = _END.unpack_from(tail, found)
    large = 0xFFFF in (here, entries) or 0xFFFFFFFF in (length, offset)  # zip64 keeps them elsewhere
    whole = offset + length + len(tail) - found == size and found + _END.size + comment == len(tail)
    if not large and not (here == entries == len(members) and whole):
        raise ValueError("its directory does not fit its contents")
    names = [_name(member) for member in members]
    if len(set(names)) < len(names):
        raise ValueError("it holds two arrays of one name")


def _name(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, wanted: bool) -> np.ndarray | None:
    """An array, from the whole of its member."""
    stored, held = member.compress_size, member.file_size
    least = {zipfile.ZIP_STORED: held, zipfile.ZIP_DEFLATED: held // _DEFLATE - 64}.get(member.compress_type, 0)
    if least > stored:
        raise ValueError(f"{member.filename} claims {held} bytes, and has {stored}")
    content = bytearray()
    with archive.open(member) as part:  # which compares the names, and at the end the checksum
        while chunk := part.read(_CHUNK):
            content += chunk if wanted else b""
    return _array(content, member.filename) if wanted else None


def _array(content: bytearray, name: str) -> np.ndarray:
    """The array of an `.npy` file, whose header must account for every byte."""
    if content[:6] != b"\x93NUMPY" or content[6] not in (1, 2, 3):
        raise ValueError(f"{name} is no array")
    form, encoding = ("<H", "latin1") if content[6] == 1 else ("<I", "latin1" if content[6] == 2 else "utf8")
    start = 8 + struct.calcsize(form)
    stop = start + struct.unpack_from(form, content, 8)[0]
    if stop > min(len(content), start + 10_000):
        raise ValueError(f"the header of {name} is too long")
    header = ast.literal_eval(content[start:stop].decode(encoding).strip())
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"the header of {name} does not say type, order and shape")
    shape, order = header["shape"], "F" if header["fortran_order"] else "C"
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"the shape of {name} is {shape!r}")
    if not isinstance(header["descr"], str) or (dtype := np.dtype(header["descr"])).hasobject:
        raise ValueError(f"{name} holds {header['descr']!r}, which are no numbers")
    if math.prod(shape) * dtype.itemsize != len(content) - stop:
        raise ValueError(f"{name} has {len(content) - stop} bytes, and claims {dtype.name} of shape {shape}")
    return np.frombuffer(content, dtype, offset=stop).reshape(shape, order=order)
