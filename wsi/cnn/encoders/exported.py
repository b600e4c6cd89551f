"""A network in a torch.export file (.pt2), computed without executing anything from the file.

``torch.export.load`` is not safe for a file of unknown origin (torch 2.10 to 2.13, read in its source): it unpickles
the sample inputs with ``weights_only=False`` as soon as the safe way fails, likewise weights marked ``use_pickle`` and
custom objects, passes shape texts to ``sympy.sympify``, which evaluates them, and accepts any attribute of ``torch`` as
a node's target. Here only two parts are read: the graph, which is JSON, and weights stored as raw bytes. Its nodes are
looked up in a fixed list of pure tensor operations; anything else is refused.
"""

from __future__ import annotations

import json
import lzma
import math
import operator
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from wsi.errors import CheckpointError

ARCHIVE = "archive_format"
"""The member that identifies a zip file as a torch.export archive."""

DAMAGES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError)
"""Raised when reading a zip file with changed bytes, beside the errors for wrong values in its parts."""

_LARGEST_JSON = 256 << 20
_SCHEMA = 8
_MOST_DIMENSIONS = 8
_TRUST = "export it again with torch.export.save of torch 2.10 or later, or pass --trust-model if you trust its source"

# numbers of torch/_export/serde/schema.py
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_STRIDED = 7

_LAYERS = """
    conv2d convolution _convolution linear matmul mm bmm addmm baddbmm einsum embedding bilinear
    layer_norm native_layer_norm group_norm native_group_norm batch_norm instance_norm rms_norm
    _native_batch_norm_legit_no_training cudnn_batch_norm scaled_dot_product_attention softmax _softmax log_softmax
    dropout feature_dropout alpha_dropout
    max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d pixel_shuffle pixel_unshuffle im2col
"""
_ELEMENTWISE = """
    relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu selu mish prelu softplus
    clamp clamp_min clamp_max erf exp log sqrt rsqrt pow square abs neg reciprocal sin cos round floor ceil
    add sub rsub mul div floor_divide remainder minimum maximum addcmul where masked_fill
    eq ne lt le gt ge logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not
    mean sum amax amin max min var std norm linalg_vector_norm cumsum argmax any all prod isnan isinf
"""
_SHAPES = """
    view reshape _unsafe_view view_as flatten unflatten permute transpose t squeeze unsqueeze expand expand_as repeat
    repeat_interleave cat concat stack split split_with_sizes chunk unbind slice select narrow index index_select gather
    roll flip pad constant_pad_nd reflection_pad2d replication_pad2d contiguous clone to _to_copy type_as detach alias
    lift_fresh_copy movedim swapaxes unfold tril triu meshgrid sym_size
    zeros ones full arange zeros_like ones_like full_like scalar_tensor eye new_zeros new_ones new_full
"""
_PURE = frozenset((_LAYERS + _ELEMENTWISE + _SHAPES).split())
_ACTIVATIONS = "relu relu6 hardtanh hardswish silu leaky_relu elu add sub mul div clamp detach dropout"
_MUTATING = frozenset(f"{name}_" for name in _ACTIVATIONS.split())
# the probe of an encoder checks the same, and these name the device on which the file was made
_ASSERTIONS = frozenset({"_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size"})
_NUMBER_OPERATIONS = "add sub mul floordiv mod neg eq ge gt le lt"
_ON_NUMBERS: Mapping[str, Callable[..., Any]] = {name: getattr(operator, name) for name in _NUMBER_OPERATIONS.split()}

_Json: TypeAlias = dict[str, Any]
_Values: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Named:
    """Stands for the result of an earlier step."""

    name: str


@dataclass(frozen=True, slots=True)
class _OwnDevice:
    """Stands for the network's device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One operation: its arguments, the names of its results, and the names no longer needed after it."""

    function: Callable[..., Any]
    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    outputs: tuple[str | None, ...]
    gives_one: bool
    last_uses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportedNetwork:
    """The graph of a torch.export file as a function of one batch of images.

    Attributes:
        input_shape: the shape of the input, None for each dimension that may vary.
        input_dtype: expected by the graph.
        steps: operations in order.
        weights: parameters, buffers and constants by their names in the graph.
        input_name, output_name: of the batch and of the result.
    """

    input_shape: tuple[int | None, ...]
    input_dtype: torch.dtype
    steps: tuple[_Step, ...]
    weights: Mapping[str, torch.Tensor]
    input_name: str
    output_name: str

    def to(self, device: torch.device) -> ExportedNetwork:
        """The same network with its weights on a device."""
        return ExportedNetwork(
            input_shape=self.input_shape,
            input_dtype=self.input_dtype,
            steps=self.steps,
            weights={name: tensor.to(device) for name, tensor in self.weights.items()},
            input_name=self.input_name,
            output_name=self.output_name,
        )

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Run the graph; safe to call from several threads at once."""
        values: _Values = {**self.weights, self.input_name: batch}
        for step in self.steps:
            given = [_filled(value, values, batch.device) for value in step.positional]
            named = {name: _filled(value, values, batch.device) for name, value in step.named.items()}
            result = step.function(*given, **named)
            for name, value in zip(step.outputs, (result,) if step.gives_one else result, strict=True):
                if name is not None:
                    values[name] = value
            for name in step.last_uses:
                del values[name]
        output: torch.Tensor = values[self.output_name]
        return output


def load_exported(path: Path) -> ExportedNetwork:
    """Read a torch.export archive; nothing in it is executed or unpickled.

    Raises:
        CheckpointError: it is damaged, has another version, uses an operation that is not on the list, or does not map
            one tensor to one tensor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except CheckpointError:
        raise
    except DAMAGES as error:
        raise CheckpointError(path, f"is a damaged archive: {error}", mend="copy the file again") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, MemoryError) as error:
        reason = f"is not a readable torch.export file: {type(error).__name__}: {error}"
        raise CheckpointError(path, f"{reason:.300}", mend=_TRUST) from error


class _Archive:
    """The members of the zip file by their names below its one root folder."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._members = {info.filename.partition("/")[2]: info for info in archive.infolist()}

    def names(self, start: str, end: str) -> list[str]:
        """The parts between start and end of the names that have both."""
        return [name[len(start) : -len(end)] for name in self._members if name.startswith(start) and name.endswith(end)]

    def json(self, name: str) -> _Json:
        """A member of limited size as JSON."""
        member = self._members[name]
        if member.file_size > _LARGEST_JSON:
            raise ValueError(f"{name} has {member.file_size} bytes")
        value: _Json = json.loads(self._archive.read(member))
        return value

    def raw(self, name: str) -> bytearray:
        """An uncompressed member, so that no more is allocated than the file holds."""
        member = self._members[name]
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > self.path.stat().st_size:
            raise ValueError(f"{name} is compressed")
        return bytearray(self._archive.read(member))


def _read(path: Path, archive: zipfile.ZipFile) -> ExportedNetwork:
    members = _Archive(path, archive)
    models = members.names("models/", ".json")
    if len(models) != 1:
        raise CheckpointError(path, f"holds {len(models)} networks instead of one", mend=_TRUST)
    if members.raw("byteorder") != b"little":
        raise CheckpointError(path, "was written on a big-endian machine", mend="export it on another machine")
    model = members.json(f"models/{models[0]}.json")
    version = model["schema_version"]["major"]
    if version != _SCHEMA:
        raise CheckpointError(path, f"has schema version {version!r:.20}, only {_SCHEMA} is supported", mend=_TRUST)
    weights: dict[str, torch.Tensor] = {}
    for kind in ("weights", "constants"):
        stored = members.json(f"data/{kind}/{models[0]}_{kind}_config.json")["config"]
        weights |= {key: _tensor(members, f"data/{kind}", key, stored[key]) for key in stored}
    return _assembled(path, model["graph_module"], weights)


def _tensor(members: _Archive, folder: str, key: str, entry: _Json) -> torch.Tensor:
    where = f"weight {key:.80}"
    if entry["use_pickle"] or entry["tensor_meta"] is None:
        raise CheckpointError(
            members.path, "is pickled, which runs code when loaded: it was not opened", where=where, mend=_TRUST
        )
    meta = entry["tensor_meta"]
    dtype = _DTYPES[meta["dtype"]]
    sizes = [_whole(size["as_int"]) for size in meta["sizes"]]
    strides = [_whole(stride["as_int"]) for stride in meta["strides"]]
    if len(sizes) != len(strides) or len(sizes) > _MOST_DIMENSIONS:
        raise ValueError(f"{where} has sizes {sizes} and strides {strides}")
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    offset = _whole(meta["storage_offset"]["as_int"])
    data = members.raw(f"{folder}/{entry['path_name']}")
    reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    if reach * dtype.itemsize > len(data):
        raise CheckpointError(members.path, "extends beyond its data", where=where, mend="copy the file again")
    values = torch.frombuffer(data, dtype=dtype, count=len(data) // dtype.itemsize)
    return torch.as_strided(values, sizes, strides, offset)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r:.40} is not a size")
    return value


def _assembled(path: Path, module: _Json, weights: Mapping[str, torch.Tensor]) -> ExportedNetwork:
    graph, signature = module["graph"], module["signature"]
    named: dict[str, torch.Tensor] = {}
    inputs = []
    for spec in signature["input_specs"]:
        ((kind, what),) = spec.items()
        if kind == "user_input":
            inputs.append(what["arg"])
        elif kind in {"parameter", "buffer", "tensor_constant"}:
            named[what["arg"]["name"]] = weights[what[f"{kind}_name"]]
        else:
            raise CheckpointError(path, f"expects an input of kind {kind!r:.40}", mend=_TRUST)
    outputs = [next(iter(spec.items())) for spec in signature["output_specs"]]
    if any(kind in {"buffer_mutation", "parameter_mutation", "user_input_mutation"} for kind, _ in outputs):
        raise CheckpointError(path, "changes its own weights while computing", mend="export it after model.eval()")
    tensors = [what["arg"]["as_tensor"]["name"] for kind, what in outputs if kind == "user_output"]
    if len(inputs) != 1 or "as_tensor" not in inputs[0] or len(tensors) != len(outputs) or len(tensors) != 1:
        raise CheckpointError(
            path,
            f"has {len(inputs)} inputs and {len(outputs)} outputs instead of one batch and one tensor",
            mend="export a module that maps one tensor to one tensor",
        )
    name = inputs[0]["as_tensor"]["name"]
    meta = graph["tensor_values"][name]
    return ExportedNetwork(
        input_shape=tuple(size.get("as_int") for size in meta["sizes"]),
        input_dtype=_DTYPES[meta["dtype"]],
        steps=tuple(_steps(path, graph["nodes"], keep={*named, name, tensors[0]})),
        weights=named,
        input_name=name,
        output_name=tensors[0],
    )


def _steps(path: Path, nodes: list[_Json], *, keep: set[str]) -> Iterator[_Step]:
    """The operations of the graph in order, each with the values to release after it."""
    wanted = [node for node in nodes if not _is_assertion(node["target"])]
    last = {
        name: step for step, node in enumerate(wanted) for name in (*_names_in(path, node["inputs"]), *_given(node))
    }
    for step, node in enumerate(wanted):
        arguments = [(one["name"], one.get("kind") == 2, _value(path, one["arg"])) for one in node["inputs"]]
        touched = dict.fromkeys((*_names_in(path, node["inputs"]), *_given(node)))
        outputs, gives_one = _outputs(node)
        yield _Step(
            function=_function(path, node["target"]),
            positional=tuple(value for _, by_name, value in arguments if not by_name),
            named={name: value for name, by_name, value in arguments if by_name},
            outputs=outputs,
            gives_one=gives_one,
            last_uses=tuple(name for name in touched if last[name] == step and name not in keep),
        )


def _is_assertion(target: str) -> bool:
    return target.startswith("torch.ops.aten.") and target.split(".")[3] in _ASSERTIONS


def _function(path: Path, target: str) -> Callable[..., Any]:
    parts = target.split(".")
    if parts[0] == "_operator" and len(parts) == 2 and parts[1] in _ON_NUMBERS:
        return _ON_NUMBERS[parts[1]]
    is_aten = parts[:3] == ["torch", "ops", "aten"] and len(parts) == 5
    if is_aten and (parts[3] in _PURE or parts[3] in _MUTATING):
        packet = getattr(torch.ops.aten, parts[3])
        if parts[4] in packet.overloads() and "out" not in parts[4].split("_"):
            function: Callable[..., Any] = getattr(packet, parts[4])
            return function
    raise CheckpointError(
        path, f"uses {target!r:.80}, which is not among the operations known to be harmless", mend=_TRUST
    )


def _given(node: _Json) -> list[str]:
    return [name for name in _outputs(node)[0] if name is not None]


def _outputs(node: _Json) -> tuple[tuple[str | None, ...], bool]:
    """The names of a node's results, and whether it has a single result."""
    outputs = node["outputs"]
    if len(outputs) == 1 and "as_tensors" in outputs[0]:
        return tuple(one["name"] for one in outputs[0]["as_tensors"]), False
    return tuple(_output(one) for one in outputs), len(outputs) == 1


def _output(one: _Json) -> str | None:
    ((kind, value),) = one.items()
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return str(value["name"])
    if kind in {"as_sym_int", "as_sym_bool", "as_sym_float"}:
        return str(value["as_name"])
    raise ValueError(f"an output of kind {kind!r:.40}")


def _names_in(path: Path, inputs: list[_Json]) -> Iterator[str]:
    def names(value: Any) -> Iterator[str]:  # noqa: ANN401  (a tree of arguments)
        if isinstance(value, _Named):
            yield value.name
        elif isinstance(value, list):
            for one in value:
                yield from names(one)

    for one in inputs:
        yield from names(_value(path, one["arg"]))


def _value(path: Path, argument: _Json) -> Any:  # noqa: ANN401  (a tree of arguments)
    """An argument as passed to the operation, with names of earlier values unresolved."""
    ((kind, value),) = argument.items()
    if kind in _ONE_OF:
        return _value(path, value)
    if kind in _MANY_OF:
        return [_value(path, one) for one in value]
    if kind in _PLAIN:
        return _PLAIN[kind](value)
    raise CheckpointError(path, f"passes an operation an argument of kind {kind!r:.40}", mend=_TRUST)


def _number(value: object) -> float:
    # JSON has no infinity: the file writes it as text
    number = float(value) if isinstance(value, int | float | str) else math.nan
    if math.isnan(number):
        raise ValueError(f"{value!r:.40} is not a number")
    return number


def _layout(value: int) -> torch.layout:
    if value != _STRIDED:
        raise ValueError(f"unknown layout {value!r:.20}")
    return torch.strided


def _plain(value: object) -> object:
    if not isinstance(value, bool | int | str | list):
        raise TypeError(f"{value!r:.40} is not an argument")
    return value


_ONE_OF = frozenset({"as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"})
_MANY_OF = frozenset({"as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"})
_PLAIN: Mapping[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_tensor": lambda value: _Named(value["name"]),
    "as_tensors": lambda value: [_Named(one["name"]) for one in value],
    "as_name": _Named,
    "as_float": _number,
    "as_floats": lambda value: [_number(one) for one in value],
    **dict.fromkeys(("as_int", "as_bool", "as_string", "as_ints", "as_bools"), _plain),
    "as_scalar_type": _DTYPES.__getitem__,
    "as_memory_format": _MEMORY_FORMATS.__getitem__,
    "as_layout": _layout,
    "as_device": lambda _: _OwnDevice(),
}


def _filled(value: Any, values: _Values, device: torch.device) -> Any:  # noqa: ANN401  (a tree of arguments)
    if isinstance(value, _Named):
        return values[value.name]
    if isinstance(value, _OwnDevice):
        return device
    if isinstance(value, list):
        return [_filled(one, values, device) for one in value]
    return value
