"""Data sets from files and arrays at their limits: damaged files, files that lie, labels of many bits."""

import collections
import io
import struct
import zipfile

import numpy as np
import pytest

from jflow.data import from_array, from_npz

N = 3000


def saved(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.xfail(
    strict=True,
    reason="numpy believes what header and directory say, and not all of its errors are caught.",
)
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
def test_flipped_bits(tmp_path, labelled):
    """One flipped bit in an .npz gives the whole data or a `ValueError`, never fewer examples in silence."""
    path, x = tmp_path / "data.npz", np.ones((N, 2), np.float32)
    blob = saved(x=x, label=np.arange(N) % 3) if labelled else saved(x=x)
    header, directory = blob.find(b"(3000, 2)"), blob.rfind(b"PK\x01\x02")
    assert min(header, directory) > 0
    seen = collections.Counter()
    for i in [*range(header, header + 9), *range(directory, len(blob))]:
        for bit in range(8):
            path.write_bytes(blob[:i] + bytes([blob[i] ^ 1 << bit]) + blob[i + 1 :])
            try:
                data = from_npz(path)
            except Exception as error:
                seen["raises" if type(error) is ValueError else f"raw {type(error).__name__}"] += 1
            else:
                whole = data.x.shape == x.shape and (data.label is not None) == labelled
                seen["whole" if whole else f"changed: {data}"] += 1
    assert set(seen) <= {"whole", "raises"}, seen


def member(shape):
    """The bytes of an .npy file that claims a shape, and holds 16 bytes."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\0" * 16


def stored(path, content, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("x.npy", content)


def terabytes(path):
    stored(path, member("(1000000000000, 1)"))


def logical_shape(path):
    stored(path, member("(True, 2)"))


def broken_lzma(path):
    stored(path, member("(2, 2)"), zipfile.ZIP_LZMA)
    blob = bytearray(path.read_bytes())
    blob[50] ^= 0xFF
    path.write_bytes(blob)


def encrypted(path):
    """The mark of an encrypted member, in its own header and in the directory."""
    stored(path, member("(2, 2)"))
    blob = bytearray(path.read_bytes())
    for at in (6, blob.rfind(b"PK\x01\x02") + 8):
        blob[at] |= 1
    path.write_bytes(blob)


@pytest.mark.xfail(strict=True, reason="Errors of numpy, zipfile and lzma that are no ValueError are not caught.")
@pytest.mark.parametrize("lie", [terabytes, logical_shape, broken_lzma, encrypted])
def test_file_that_lies(tmp_path, lie):
    """A file that is not what it says raises the `ValueError` of `from_npz`, whatever the library below it meets."""
    lie(tmp_path / "x.npz")
    with pytest.raises(Exception) as caught:
        from_npz(tmp_path / "x.npz")
    assert type(caught.value) is ValueError


def test_labels_of_many_bits():
    """Labels of more than 31 bits raise: they do not wrap around to other classes."""
    with pytest.raises((ValueError, OverflowError)):
        from_array(np.zeros((2, 2), np.float32), np.asarray([2**31, 2**40 + 7]))
