"""The small part of a checkpoint (all but the tensors of the model states), without pickle.

A tree of dicts, lists, tuples, numbers, strings, bytes, numpy arrays and torch tensors becomes

    magic "CMETA001" | u64 length of the text | JSON text | padding to 64 B | blobs, each at 64 B

The JSON text is the tree; what JSON does not know stands there as an object with one key that
starts with "$" (`_TAGS`), and arrays, tensors and bytes name their blob by offset and length.
Reading runs no code of the checkpoint's choosing, and values come back with their exact types and
bits. torch is imported only by trees that hold its tensors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

_MAGIC = b"CMETA001"
_ALIGNMENT = 64
_TAGS = frozenset(
    {"$tuple", "$dict", "$counter", "$bytes", "$array", "$scalar", "$tensor", "$dtype"}
)


class MetaError(ValueError):
    """A value cannot be kept in a checkpoint, or bytes are no encoded tree."""


def encode(tree: Mapping[str, Any]) -> bytes:
    """Return the tree as bytes that `decode` turns back into an equal tree.

    Tensors are copied to the CPU at once, so the tree may change afterwards.

    Raises:
        MetaError: a value's type is not known; the message names the path to it.
    """
    blobs = _Blobs()
    text = json.dumps(_pack(tree, "", blobs), separators=(",", ":")).encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + text
    return b"".join([head, b"\0" * (-len(head) % _ALIGNMENT), *blobs.pieces])


def decode(data: bytes | memoryview) -> dict[str, Any]:
    """Return the tree that `encode` wrote; its tensors and arrays own their memory, on the CPU.

    Raises:
        MetaError: `data` was not written by `encode`, or is cut short.
    """
    view = memoryview(data)
    if bytes(view[:8]) != _MAGIC:
        raise MetaError("these bytes are no checkpoint meta: the magic is missing")
    length = int.from_bytes(view[8:16], "little")
    if 16 + length > len(view):
        raise MetaError("the checkpoint meta is cut short")
    start = -(-(16 + length) // _ALIGNMENT) * _ALIGNMENT
    try:
        tree = _unpack(json.loads(bytes(view[16 : 16 + length])), view[start:])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise MetaError(f"the checkpoint meta is damaged: {error!r}") from error
    if not isinstance(tree, dict):
        raise MetaError("the checkpoint meta is damaged: its root is no dict")
    return tree


class _Blobs:
    """Byte strings to come after the text, each at a multiple of `_ALIGNMENT`."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> list[int]:
        place = [self._size, len(data)]
        padding = -len(data) % _ALIGNMENT
        self.pieces += [data, b"\0" * padding]
        self._size += len(data) + padding
        return place


def _pack(value: Any, path: str, blobs: _Blobs) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    pack = _EXACTLY.get(kind)
    if pack is None:
        pack = next((p for base, p in _DERIVED.items() if isinstance(value, base)), _pack_torch)
    return pack(value, path, blobs)


def _refused(value: Any, path: str) -> MetaError:
    return MetaError(
        f"state at {path or 'the root'} is a {type(value).__module__}."
        f"{type(value).__qualname__}, which a checkpoint cannot hold: give numbers, strings, "
        "bytes, lists, tuples, dicts, numpy arrays or torch tensors from its state_dict()"
    )


def _pack_list(value: list[Any], path: str, blobs: _Blobs) -> Any:
    return [_pack(item, f"{path}[{i}]", blobs) for i, item in enumerate(value)]


def _pack_tuple(value: tuple[Any, ...], path: str, blobs: _Blobs) -> Any:
    return {"$tuple": [_pack(item, f"{path}[{i}]", blobs) for i, item in enumerate(value)]}


def _pack_bytes(value: bytes | bytearray, _: str, blobs: _Blobs) -> Any:
    return {"$bytes": blobs.add(bytes(value))}


def _pack_numbers(value: np.generic | np.ndarray[Any, Any], path: str, blobs: _Blobs) -> Any:
    if value.dtype.kind not in "biufc":
        raise _refused(value, path)
    place = [*blobs.add(value.tobytes()), value.dtype.str]
    if isinstance(value, np.ndarray):
        return {"$array": [*place, list(value.shape)]}
    return {"$scalar": place}


def _pack_mapping(value: Mapping[Any, Any], path: str, blobs: _Blobs) -> Any:
    plain = all(type(key) is str and not key.startswith("$") for key in value)
    if plain and not isinstance(value, Counter):
        return {key: _pack(item, f"{path}.{key}", blobs) for key, item in value.items()}
    tag = "$counter" if isinstance(value, Counter) else "$dict"
    pairs = [
        [_pack(key, f"key of {path}", blobs), _pack(item, f"{path}[{key!r}]", blobs)]
        for key, item in value.items()
    ]
    return {tag: pairs}


def _pack_torch(value: Any, path: str, blobs: _Blobs) -> Any:
    if not type(value).__module__.startswith("torch"):
        raise _refused(value, path)
    import torch  # noqa: PLC0415 - the agent decodes without it

    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if not isinstance(value, torch.Tensor):
        raise _refused(value, path)
    tensor = value.detach().cpu().contiguous()
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"$tensor": [*blobs.add(raw), str(tensor.dtype)[6:], list(tensor.shape)]}


_PLAIN = frozenset({type(None), bool, int, float, str})
"""Types that JSON holds as they are."""

_EXACTLY: Mapping[type, Callable[[Any, str, _Blobs], Any]] = {
    list: _pack_list,
    tuple: _pack_tuple,
}
"""By type: what is derived from these would come back as another type."""

_DERIVED: Mapping[type, Callable[[Any, str, _Blobs], Any]] = {
    Mapping: _pack_mapping,
    bytes: _pack_bytes,
    bytearray: _pack_bytes,
    np.generic: _pack_numbers,
    np.ndarray: _pack_numbers,
}
"""By type, or by what the type is derived from. All others are torch's, or refused."""


def _unpack(value: Any, blobs: memoryview) -> Any:
    if isinstance(value, list):
        return [_unpack(item, blobs) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or next(iter(value)) not in _TAGS:
        return {key: _unpack(item, blobs) for key, item in value.items()}
    ((tag, body),) = value.items()
    if tag == "$tuple":
        return tuple(_unpack(item, blobs) for item in body)
    if tag in ("$dict", "$counter"):
        pairs = {_unpack(key, blobs): _unpack(item, blobs) for key, item in body}
        return Counter(pairs) if tag == "$counter" else pairs
    return _dtype(body) if tag == "$dtype" else _unpack_blob(tag, body, blobs)


def _unpack_blob(tag: str, body: list[Any], blobs: memoryview) -> Any:
    offset, length = body[0], body[1]
    raw = bytes(blobs[offset : offset + length])
    if len(raw) != length:
        raise MetaError("the checkpoint meta is cut short")
    if tag == "$bytes":
        return raw
    if tag == "$scalar":
        return np.frombuffer(raw, dtype=body[2])[0]
    if tag == "$array":
        return np.frombuffer(raw, dtype=body[2]).reshape(body[3]).copy()
    return _tensor(raw, body[2], body[3])


def _tensor(raw: bytes, dtype: str, shape: list[int]) -> torch.Tensor:
    import torch  # noqa: PLC0415 - as above

    tensor = torch.empty(shape, dtype=_dtype(dtype))
    if raw:
        tensor.reshape(-1).view(torch.uint8).numpy()[:] = np.frombuffer(raw, dtype=np.uint8)
    return tensor


def _dtype(name: str) -> torch.dtype:
    import torch  # noqa: PLC0415 - as above

    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise MetaError(f"the checkpoint meta names {name!r} as a dtype, which it is not")
    return dtype
