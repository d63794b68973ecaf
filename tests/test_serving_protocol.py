"""The Open Inference Protocol: what fits is read to the bit, what does not is refused in words that quote nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from deploykit.serving.protocol import (
    BadRequestError,
    InferRequest,
    Tensors,
    decode,
    encode,
    parse,
    render,
)

TENSORS = Tensors("images", "logits", (3, 2, 2), most=4)
IMAGES = np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(np.float32)
LENGTH = "inference-header-content-length"


def document(**changes) -> dict:
    """Return a request that fits, as a client writes it, with changes to its tensor."""
    tensor = {"name": "images", "datatype": "FP32", "shape": [2, 3, 2, 2], "data": IMAGES.ravel().tolist()}
    return {"inputs": [{key: value for key, value in (tensor | changes).items() if value is not ...}]}


def parsed(content: object) -> InferRequest:
    """Parse JSON without binary data."""
    return parse(json.dumps(content).encode(), None, TENSORS)


def refusal(body: bytes, length: bytes | None = None) -> str:
    """Return the words with which a body is refused."""
    with pytest.raises(BadRequestError) as refused:
        parse(body, length, TENSORS)
    return str(refused.value)


class TestRequests:
    @pytest.mark.parametrize("data", [IMAGES.ravel().tolist(), IMAGES.tolist(), IMAGES.reshape(2, -1).tolist()])
    def test_numbers_may_be_flat_or_nested(self, data):
        """JSON carries a float32 exactly, however its lists are nested."""
        request = parsed(document(data=data))

        assert_array_equal(request.images, IMAGES)
        assert request.images.dtype == np.float32
        assert (request.id, request.binary) == (None, False)

    def test_bytes_are_read_as_they_are(self):
        """A client's binary tensor comes out bit for bit, and logits are wanted as bytes too."""
        body, headers = encode(IMAGES)
        request = parse(body, headers["inference-header-content-length"].encode(), TENSORS)

        assert_array_equal(request.images, IMAGES)
        assert request.binary

    @pytest.mark.parametrize(
        ("changes", "binary"),
        [
            ({"parameters": {"binary_data_output": True}}, True),
            ({"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}, True),
            (
                {
                    "parameters": {"binary_data_output": True},
                    "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
                },
                False,
            ),
            ({"outputs": []}, False),
        ],
    )
    def test_what_an_output_says_goes_before_what_the_request_says(self, changes, binary):
        """`binary_data` of the output, else `binary_data_output` of the request, else JSON."""
        assert parsed(document() | changes).binary is binary

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=200), st.none() | st.binary(max_size=4))
    def test_any_bytes_are_parsed_or_refused(self, body, length):
        """Nothing but BadRequestError comes out, whatever goes in."""
        with pytest.raises(BadRequestError):
            parse(body, length, TENSORS)

    @settings(max_examples=200, deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from(["inputs", "outputs", "id", "parameters"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), inner)
                ),
            ),
        )
    )
    def test_any_json_is_parsed_or_refused(self, content):
        """Documents with the right words in the wrong places are refused, too."""
        with pytest.raises(BadRequestError):
            parsed(content)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"shape": [2, 3, 2]}, "shape must be [n, 3, 2, 2] with n from 1 to 4"),
            ({"shape": [0, 3, 2, 2], "data": []}, "shape must be [n, 3, 2, 2] with n from 1 to 4"),
            ({"shape": [5, 3, 2, 2]}, "shape must be [n, 3, 2, 2] with n from 1 to 4"),
            ({"shape": [True, 3, 2, 2]}, "shape must be"),
            ({"shape": [1.0, 3, 2, 2]}, "shape must be"),
            ({"shape": "2322"}, "shape must be"),
            ({"datatype": "FP64"}, "the input's name must be 'images' and its datatype 'FP32'"),
            ({"name": "x"}, "the input's name must be 'images' and its datatype 'FP32'"),
            ({"data": [1.0]}, "data must hold 24 numbers, the product of shape"),
            ({"data": ["1.0"] * 24}, "data must be numbers, flat or nested as shape says"),
            ({"data": [True] * 24}, "data must be numbers"),
            ({"data": [None] * 24}, "data must be numbers"),
            ({"data": [[1.0] * 12, "123456789012"]}, "data must be numbers"),
            ({"data": [{"a": 1}] * 24}, "data must be numbers"),
            ({"data": [[[[[[1.0]]]]]] * 24}, "data must be numbers"),
            ({"data": ...}, "data must be numbers"),
            ({"data": [1e39] * 24}, "data must be finite"),
            ({"data": [10**400] * 24}, "data must be finite"),
            ({"parameters": {"binary_data_size": 4}}, "a tensor has data or binary_data_size, not both"),
            ({"parameters": {"binary_data_size": "96"}, "data": ...}, "binary_data_size must be the number of bytes"),
            ({"parameters": []}, "parameters must be a JSON object"),
        ],
    )
    def test_a_tensor_that_does_not_fit(self, changes, words):
        """Each is refused with what would fit."""
        assert refusal(json.dumps(document(**changes)).encode()).startswith(words)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ([], "the body must be a JSON object"),
            ({}, "inputs must be a list of one tensor"),
            ({"inputs": [1, 2]}, "inputs must be a list of one tensor"),
            ({"inputs": [1]}, "a tensor must be a JSON object"),
            (document() | {"id": 7}, "id must be a string of at most 128 characters"),
            (document() | {"id": "x" * 129}, "id must be a string"),
            (document() | {"outputs": [{"name": "y"}]}, "the output's name must be 'logits'"),
            (document() | {"outputs": {}}, "outputs must be a list of at most one tensor"),
            (document() | {"parameters": {"binary_data_output": 1}}, "binary_data must be true or false"),
        ],
    )
    def test_a_document_that_does_not_fit(self, content, words):
        """Each is refused with what would fit."""
        assert refusal(json.dumps(content).encode()).startswith(words)

    @pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
    def test_what_is_no_number_in_json(self, constant):
        """Python would read it; it is refused where it stands, also outside of data."""
        assert (
            refusal(f'{{"x": {constant}}}'.encode()) == "NaN and Infinity are no JSON, and a model has no use for them"
        )

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b'{"a":' * 10_000])
    def test_what_is_no_json_is_not_quoted(self, body):
        """Truncated, no UTF-8, nested 100,000 deep, a number of 5,000 digits."""
        assert refusal(body) == "the body is not JSON"

    @pytest.mark.parametrize("length", [b"-1", b"x", b"99999", b"9" * 30])
    def test_a_length_that_is_none(self, length):
        """The JSON cannot be longer than the body."""
        assert refusal(b"{}", length).startswith("Inference-Header-Content-Length must be the length of the JSON")

    def test_bytes_that_are_not_finite(self):
        """NaN in a binary tensor is refused like one in JSON."""
        images = IMAGES.copy()
        images[1, 2, 0, 1] = np.nan
        body, headers = encode(images)

        assert refusal(body, headers["inference-header-content-length"].encode()) == "data must be finite"

    def test_bytes_that_nobody_claims(self):
        """What follows the JSON belongs to a tensor."""
        head = json.dumps(document()).encode()

        assert refusal(head + b"1234", str(len(head)).encode()).startswith("there are bytes after the JSON")

    def test_one_long_string_does_not_become_an_array_of_long_strings(self):
        """NumPy alone would ask for terabytes here."""
        data = ["x" * 1_000_000, *[""] * 100_000]

        assert refusal(json.dumps(document(data=data)).encode()).startswith("data must be numbers")


class TestAnswers:
    LOGITS = np.random.default_rng(1).normal(size=(2, 10)).astype(np.float32)

    def test_json_carries_the_logits_exactly(self):
        """Name, type, shape and every number, and the id of the request."""
        body, length = render(InferRequest(IMAGES, "7", binary=False), self.LOGITS, "net", TENSORS)
        found = json.loads(body)
        (output,) = found.pop("outputs")

        assert (found, length) == ({"model_name": "net", "id": "7"}, None)
        assert_array_equal(np.float32(output.pop("data")).reshape(2, 10), self.LOGITS)
        assert output == {"name": "logits", "datatype": "FP32", "shape": [2, 10]}

    def test_bytes_carry_the_logits_exactly(self):
        """What the client decodes is what was computed; the JSON says how many bytes follow."""
        body, length = render(InferRequest(IMAGES, None, binary=True), self.LOGITS, "net", TENSORS)

        assert_array_equal(decode(body, {LENGTH: str(length)}), self.LOGITS)
        assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 80}
