"""Data sets from files and arrays at their limits: damaged files, files that lie, labels of many bits."""

import collections
import io
import struct
import warnings
import zipfile

import numpy as np
import pytest

from jflow.data import from_array, from_npz

N = 3000


def saved(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stored", "deflated", "labels first", "more names"])
def test_flipped_bit_in_every_byte(tmp_path, kind):
    """One flipped bit anywhere in a small .npz gives the very same data, or a `ValueError`."""
    path, buffer = tmp_path / "data.npz", io.BytesIO()
    x, label = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6) % 3
    write = np.savez_compressed if kind == "deflated" else np.savez
    arrays = {"label": label, "x": x} if kind == "labels first" else {"x": x, "label": label}
    write(buffer, **arrays, **({"extra": x[:1]} if kind == "more names" else {}))
    blob, seen = buffer.getvalue(), collections.Counter()
    for i in range(len(blob)):
        path.write_bytes(blob[:i] + bytes([blob[i] ^ 1 << 3 * i % 8]) + blob[i + 1 :])
        try:
            data = from_npz(path)
        except Exception as error:
            seen["raises" if type(error) is ValueError else f"raw {type(error).__name__} at {i}"] += 1
        else:
            same = np.array_equal(data.x, x) and data.label is not None and np.array_equal(data.label, label)
            seen["same" if same else f"changed at {i}: {data}"] += 1
    assert set(seen) == {"same", "raises"} and seen["raises"] > seen["same"], seen


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


def doubled(path):
    """Two members of one name, of which one would hide the other."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")
        file.writestr("x.npy", member("(2, 2)"))
        file.writestr("x.npy", member("(2, 2)"))


def bomb(path):
    """Terabytes by the header and by the directory, of 16 bytes."""
    stored(path, member("(1000000000000, 1)"), zipfile.ZIP_DEFLATED)
    blob = bytearray(path.read_bytes())
    struct.pack_into("<I", blob, blob.rfind(b"PK\x01\x02") + 24, 2**32 - 2)
    path.write_bytes(blob)


def shorter(path):
    """A shape that leaves bytes over."""
    stored(path, member("(1, 2)"))


def negative(path):
    stored(path, member("(-2, -2)"))


def strange(path):
    """A compression that nobody has."""
    stored(path, member("(2, 2)"))
    blob = bytearray(path.read_bytes())
    for at in (8, blob.rfind(b"PK\x01\x02") + 10):
        blob[at] = 99
    path.write_bytes(blob)


def nested(path):
    """A header of brackets."""
    head = (b"(" * 9000).ljust(9999) + b"\n"
    stored(path, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)


def no_array(path):
    stored(path, b"x,label\n1,2\n")


LIES = [terabytes, logical_shape, broken_lzma, encrypted, doubled, bomb, shorter, negative, strange, nested, no_array]


@pytest.mark.parametrize("lie", LIES)
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
