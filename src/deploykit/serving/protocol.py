"""The Open Inference Protocol, version 2, for a model with one input: requests in JSON or binary tensors, and answers.

Sources: kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``, and the extension
``extension_binary_data`` of Triton.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

DATATYPE = "FP32"
LITTLE_ENDIAN = np.dtype("<f4")
LONGEST_ID = 128  # characters; it comes back in the answer
LONGEST_NUMBER = 18  # digits, below 2**63
BINARY_SIZE = "binary_data_size"
HEADER_LENGTH = b"inference-header-content-length"
NUMBERS = "data must be numbers, flat or nested as shape says"
FINITE = "data must be finite"


class BadRequestError(ValueError):
    """The request is not what the protocol or the model takes; the text says what is needed, and quotes nothing."""


@dataclass(frozen=True)
class Tensors:
    """What a model takes and gives: one tensor each.

    Attributes:
        input: name of the images, FP32 [n, channels, height, width].
        output: name of the logits, FP32 [n, classes].
        shape: of one image.
        most: images in a request.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    most: int


@dataclass(frozen=True)
class InferRequest:
    """A parsed request.

    Attributes:
        images: float32 [n, channels, height, width], finite.
        id: as given; None if there was none.
        binary: whether the logits are wanted as bytes.
    """

    images: NDArray[np.float32]
    id: str | None
    binary: bool


def parse(body: bytes, header_length: bytes | None, tensors: Tensors) -> InferRequest:
    """Return what a request asks for.

    Args:
        body: JSON, followed by the tensor's bytes if there are some.
        header_length: of the JSON in bytes, as the header ``Inference-Header-Content-Length`` says; None without it.
        tensors: what the model takes.

    Raises:
        BadRequestError: anything else than one tensor of finite numbers in the model's shape.
    """
    end = len(body) if header_length is None else _length(header_length, len(body))
    document = _json(body[:end])
    if not isinstance(document, dict):
        raise BadRequestError("the body must be a JSON object")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise BadRequestError("inputs must be a list of one tensor")
    images = _tensor(inputs[0], body, end, tensors)
    identity = document.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > LONGEST_ID):
        raise BadRequestError(f"id must be a string of at most {LONGEST_ID} characters")
    return InferRequest(images, identity, _wants_bytes(document, tensors))


def render(
    request: InferRequest, logits: NDArray[np.float32], model: str, tensors: Tensors
) -> tuple[bytes, int | None]:
    """Return the body of the answer, and the length of its JSON in bytes if binary data follow it.

    Args:
        request: that is answered.
        logits: [n, classes], finite.
        model: its name.
        tensors: what the model gives.
    """
    output: dict[str, Any] = {"name": tensors.output, "shape": logits.shape, "datatype": DATATYPE}
    document: dict[str, Any] = {"model_name": model, "outputs": (output,)}
    if request.id is not None:
        document["id"] = request.id
    if not request.binary:
        output["data"] = logits.ravel().tolist()
        return _ENCODER.encode(document).encode(), None
    data = logits.astype(LITTLE_ENDIAN, copy=False).tobytes()
    output["parameters"] = {BINARY_SIZE: len(data)}
    head = _ENCODER.encode(document).encode()
    return head + data, len(head)


def encode(images: NDArray[np.float32], *, name: str = "images") -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request with binary tensors both ways, as a client sends it.

    Args:
        images: float32 [n, channels, height, width], normalised.
        name: of the input.
    """
    data = np.ascontiguousarray(images, LITTLE_ENDIAN).tobytes()
    tensor = {"name": name, "datatype": DATATYPE, "shape": images.shape, "parameters": {BINARY_SIZE: len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {"Content-Type": "application/octet-stream", HEADER_LENGTH.decode(): str(len(head))}


def decode(body: bytes, headers: Mapping[str, str]) -> NDArray[np.float32]:
    """Return the logits [n, classes] of an answer to a request of :func:`encode`.

    Args:
        body: of the answer.
        headers: of the answer, names in lower case.
    """
    end = int(headers[HEADER_LENGTH.decode()])
    (output,) = json.loads(body[:end])["outputs"]
    return np.frombuffer(body, LITTLE_ENDIAN, offset=end).reshape(output["shape"])


def _refuse_constant(_: str) -> NoReturn:
    raise BadRequestError("NaN and Infinity are no JSON, and a model has no use for them")


# Made once: json.loads and json.dumps make one for each call that wants something of its own.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _length(given: bytes, most: int) -> int:
    if not given.isdigit() or len(given) > LONGEST_NUMBER or int(given) > most:
        raise BadRequestError(
            "Inference-Header-Content-Length must be the length of the JSON that the body starts with"
        )
    return int(given)


def _json(head: bytes) -> Any:
    try:
        return _DECODER.decode(head.decode())
    except BadRequestError:
        raise
    except (ValueError, RecursionError) as error:  # the text of either could hold some of the request
        raise BadRequestError("the body is not JSON") from error


def _tensor(given: Any, body: bytes, end: int, tensors: Tensors) -> NDArray[np.float32]:
    if not isinstance(given, dict):
        raise BadRequestError("a tensor must be a JSON object")
    if given.get("name") != tensors.input or given.get("datatype") != DATATYPE:
        raise BadRequestError(f"the input's name must be {tensors.input!r} and its datatype {DATATYPE!r}")
    shape = given.get("shape")
    if (
        not isinstance(shape, list)
        or tuple(shape[1:]) != tensors.shape
        or type(shape[0]) is not int  # True is an int to isinstance
        or not 1 <= shape[0] <= tensors.most
    ):
        wanted = ", ".join(map(str, tensors.shape))
        raise BadRequestError(f"shape must be [n, {wanted}] with n from 1 to {tensors.most}")
    shape = (shape[0], *tensors.shape)
    size = _parameters(given).get(BINARY_SIZE)
    values = _from_json(given, len(body) - end, len(shape)) if size is None else _from_bytes(given, size, body, end)
    if values.size != math.prod(shape):
        raise BadRequestError(f"data must hold {math.prod(shape)} numbers, the product of shape")
    if not np.isfinite(values).all():
        raise BadRequestError(FINITE)
    return values.reshape(shape)


def _from_bytes(given: Mapping[str, Any], size: Any, body: bytes, end: int) -> NDArray[np.float32]:
    if "data" in given:
        raise BadRequestError(f"a tensor has data or {BINARY_SIZE}, not both")
    if type(size) is not int or size != len(body) - end or size % LITTLE_ENDIAN.itemsize:
        raise BadRequestError(f"{BINARY_SIZE} must be the number of bytes after the JSON, four for each number")
    return np.frombuffer(body, LITTLE_ENDIAN, offset=end) if size else np.empty(0, np.float32)


def _from_json(given: Mapping[str, Any], unclaimed: int, dimensions: int) -> NDArray[np.float32]:
    if unclaimed:
        raise BadRequestError(f"there are bytes after the JSON that no tensor claims with {BINARY_SIZE}")
    data = given.get("data")
    for _ in range(dimensions):
        if not isinstance(data, list) or not data or not isinstance(data[0], list):
            break
        if set(map(type, data)) != {list}:
            raise BadRequestError(NUMBERS)
        data = list(itertools.chain.from_iterable(data))
    # NumPy would make an array of the longest string's size for each of a list's strings.
    if not isinstance(data, list) or not set(map(type, data)) <= {int, float}:
        raise BadRequestError(NUMBERS)
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and that is refused
            return np.array(data, np.float32)
    except OverflowError as error:
        raise BadRequestError(FINITE) from error


def _parameters(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequestError("parameters must be a JSON object")
    return parameters


def _wants_bytes(document: Mapping[str, Any], tensors: Tensors) -> bool:
    outputs = document.get("outputs", ())
    wanted = _parameters(document).get("binary_data_output", False)
    if outputs != ():
        if not isinstance(outputs, list) or len(outputs) > 1:
            raise BadRequestError("outputs must be a list of at most one tensor")
        for output in outputs:
            if not isinstance(output, dict) or output.get("name") != tensors.output:
                raise BadRequestError(f"the output's name must be {tensors.output!r}")
            wanted = _parameters(output).get("binary_data", wanted)
    if not isinstance(wanted, bool):
        raise BadRequestError("binary_data must be true or false")
    return wanted
