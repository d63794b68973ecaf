"""The list of layers that comes with a quantized model: what counts as quantized, how it prints, when it raises."""

from __future__ import annotations

import pytest

from deploykit.quantization.report import Layer, Quantized, require_change

INTEGER = Layer("fc", "Linear", 300, "int8", "uint8")
FLOAT = Layer("conv", "Conv2d", 100, "float32", "float32", "there is no kernel")


@pytest.mark.parametrize(
    ("weights", "inputs", "quantized"),
    [
        ("int8", "uint8", True), ("int4", "int8", True), ("int8", "float32", False), ("float32", "float32", False),
        ("float32", "int8", False),
    ],
)  # fmt: skip
def test_both_sides_must_be_integers(weights, inputs, quantized):
    """Weights alone make a layer small; only with the activations does it multiply integers."""
    assert Layer("fc", "Linear", 1, weights, inputs).quantized is quantized


class TestQuantized:
    def test_it_tells_changed_from_left(self):
        """The two lists are the whole, in order."""
        found = Quantized(None, "torch.ao", (FLOAT, INTEGER))

        assert (found.changed, found.left) == ((INTEGER,), (FLOAT,))

    def test_it_prints_counts_shares_and_reasons(self):
        """One line for the whole, one for each layer left in float with the reason, also where none is known."""
        unknown = Layer("head", "Bilinear", 100, "float32", "float32")

        assert str(Quantized(None, "torch.ao", (FLOAT, INTEGER, unknown))) == (
            "torch.ao: 1 of 3 layers compute with integers, 60.0% of the weights\n"
            "  conv (Conv2d) stays in float: there is no kernel\n"
            "  head (Bilinear) stays in float: no reason known"
        )

    def test_the_table_has_a_row_for_each_layer(self):
        """Names, kinds and reasons, in the model's order."""
        table = Quantized(None, "torch.ao", (FLOAT, INTEGER)).table()

        assert list(table.columns) == ["name", "kind", "parameters", "weights", "inputs", "why"]
        assert table["name"].tolist() == ["conv", "fc"]
        assert table["why"].tolist() == ["there is no kernel", ""]


class TestRequireChange:
    def test_one_quantized_layer_will_do(self):
        """A model of which a part changed is returned, with its list."""
        require_change([FLOAT, INTEGER], "torch.ao", "do this")

    @pytest.mark.parametrize(("layers", "kinds"), [([FLOAT, FLOAT], "Conv2d"), ([], "none with weights")])
    def test_a_technique_that_touched_nothing_raises(self, layers, kinds):
        """What the model has, and what to do instead, is said."""
        message = rf"torch\.ao quantized no layer \(the model's layers: {kinds}\); do this"
        with pytest.raises(ValueError, match=message):
            require_change(layers, "torch.ao", "do this")
