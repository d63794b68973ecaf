"""What a model costs besides time: counts of the literature, sizes and peaks made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from deploykit.cost import macs, macs_by_layer, parameters, peak_memory_mib, size_mib, tensor_size_mib
from deploykit.models import resnet


class TestCost:
    """Sizes and operations."""

    @pytest.mark.parametrize(("depth", "million", "count"), [(20, 40.8, 272_474), (56, 125.7, 855_770)])
    def test_resnets_have_the_literatures_counts(self, depth, million, count):
        """40.8 M and 125.7 M multiply-accumulates, whatever the batch."""
        model = resnet(depth)

        assert macs(model, torch.zeros(3, 3, 32, 32)) / 1e6 == pytest.approx(million, abs=0.06)
        assert parameters(model) == count
        assert model.training

    def test_a_convolution_by_hand(self):
        """16 x 16 outputs of 4 channels, each 2 x 3 x 3 products; its weights are 4 x 2 x 9 floats."""
        conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)

        assert macs(conv, torch.zeros(1, 2, 16, 16)) == 16 * 16 * 4 * 2 * 9
        assert tensor_size_mib(conv) == 4 * 2 * 9 * 4 / 2**20

    def test_counting_runs_in_evaluation_mode_and_leaves_no_trace(self):
        """Running statistics do not move, and each module is in the mode that it was in."""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
        model[2].eval()
        before = [module.training for module in model.modules()]
        macs(model, torch.ones(2, 3, 8, 8))

        assert [module.training for module in model.modules()] == before == [True, True, True, False]
        assert model[1].num_batches_tracked == 0

    def test_frozen_parameters_count(self):
        """They are multiplied and stored like the others."""
        frozen = nn.Linear(8, 2).requires_grad_(requires_grad=False)

        assert parameters(frozen) == 8 * 2 + 2

    def test_buffers_are_stored_too(self):
        """Batch norm over 8 channels: 4 vectors of floats, and a count of batches in int64."""
        assert tensor_size_mib(nn.BatchNorm2d(8)) == (4 * 8 * 4 + 8) / 2**20

    def test_shared_weights_are_stored_once(self):
        """A tied layer costs no memory, nor does a tensor that looks into another's storage."""
        tied, seen = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        seen.register_buffer("first_row", seen.weight.detach()[0])

        assert tensor_size_mib(nn.Sequential(tied, tied)) == tensor_size_mib(tied)
        assert tensor_size_mib(seen) == tensor_size_mib(tied)

    def test_nothing_counted_is_an_error(self):
        """0 MACs would be a lie about a model whose operations the counter does not know."""
        with pytest.raises(ValueError, match="no operation of ReLU is one that"):
            macs(nn.ReLU(), torch.zeros(4, 3, 8, 8))

    def test_a_folder_is_the_sum_of_its_files(self, tmp_path):
        """Files in subfolders count too."""
        (tmp_path / "deep").mkdir()
        for path in (tmp_path / "a", tmp_path / "deep" / "b"):
            path.write_bytes(bytes(2**19))

        assert (size_mib(tmp_path / "a"), size_mib(tmp_path)) == (0.5, 1)

    def test_a_missing_artifact_is_an_error(self, tmp_path):
        """A file that was never written has no size."""
        with pytest.raises(FileNotFoundError, match=r"model.onnx does not exist; give the file or folder"):
            size_mib(tmp_path / "model.onnx")


class LSTMOfLinears(nn.Module):
    """The equations of ``nn.LSTM``'s documentation, one layer, with a linear layer for all gates of each matrix."""

    def __init__(self, lstm: nn.LSTM):
        super().__init__()
        self.of_input = nn.Linear(lstm.input_size, 4 * lstm.hidden_size)
        self.of_state = nn.Linear(lstm.hidden_size, 4 * lstm.hidden_size)
        for linear, end in ((self.of_input, "ih_l0"), (self.of_state, "hh_l0")):
            linear.load_state_dict({name: getattr(lstm, f"{name}_{end}") for name in ("weight", "bias")})

    def forward(self, rows):
        """Map [N, T, input] to the states [N, T, hidden]."""
        state = cell = torch.zeros(len(rows), self.of_state.in_features)
        states = []
        for row in rows.unbind(dim=1):
            enter, forget, new, leave = (self.of_input(row) + self.of_state(state)).chunk(4, dim=1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, dim=1)


class CudnnLSTM(nn.Module):
    """Calls the kernel of a CUDA device with the shapes of LSTM(5, 7), on a device that computes nothing."""

    def forward(self, rows):
        """Map [N, T, 5] to nothing of interest."""
        weights = [torch.empty(shape, device="meta") for shape in ((28, 5), (28, 7), (28,), (28,))]
        state, kernel = torch.empty(1, len(rows), 7, device="meta"), torch.ops.aten._cudnn_rnn
        options = {"batch_first": True, "dropout": 0.0, "train": False, "bidirectional": False}
        rest = {"batch_sizes": [], "dropout_state": None}
        return kernel(rows.to("meta"), weights, 4, None, state, state, 2, 7, 0, 1, **options, **rest)


class Hidden(nn.Linear):
    """A linear layer whose work no counter sees."""

    def forward(self, features):
        """Map [N, in] to [N, out]."""
        return (features[:, None] * self.weight).sum(dim=2)


class TestFusedKernels:
    """torch's counter takes these for nothing; a model of them must not look free."""

    def test_an_lstm_by_hand(self):
        """In each of 3 steps, 4 gates of 7 units look at the input and the state: 5 + 7 numbers, then 7 + 7."""
        lstm = nn.LSTM(5, 7, num_layers=2, batch_first=True)

        assert macs(lstm, torch.zeros(2, 3, 5)) == 3 * (4 * 7 * (5 + 7) + 4 * 7 * (7 + 7))

    def test_an_lstm_is_what_its_linear_layers_are(self):
        """The same states from the same cell, written out; the same count, from matrix products that are known."""
        lstm, rows = nn.LSTM(5, 7, batch_first=True), torch.randn(2, 3, 5)
        written = LSTMOfLinears(lstm)

        torch.testing.assert_close(written(rows), lstm(rows)[0])
        assert macs(written, rows) == macs(lstm, rows) == macs(CudnnLSTM(), rows)

    def test_both_directions_count(self):
        """The second layer reads 7 + 7 numbers; each layer runs twice."""
        both = nn.LSTM(5, 7, num_layers=2, batch_first=True, bidirectional=True)

        assert macs(both, torch.zeros(1, 3, 5)) == 3 * 2 * (4 * 7 * (5 + 7) + 4 * 7 * (14 + 7))

    def test_a_gru_has_three_gates(self):
        """And is counted by another way of torch's."""
        assert macs(nn.GRU(5, 7, batch_first=True), torch.zeros(1, 3, 5)) == 3 * 3 * 7 * (5 + 7)

    def test_a_transformer_layer_by_hand(self):
        """Four projections of 8 x 8 and two layers of 8 x 16 for each of 4 tokens; scores and their mixing, 4 x 4 x 8.

        In evaluation mode torch would run the layer as one kernel that nobody can look into.
        """
        layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)

        assert macs(layer, torch.zeros(2, 4, 8)) == 4 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 4 * 4 * 8
        assert torch.backends.mha.get_fastpath_enabled()

    def test_a_layer_that_counts_as_nothing_is_an_error(self):
        """Its name is said: the sum of the others would be too small, and look right."""
        model = nn.Sequential(nn.Linear(4, 4), Hidden(4, 4))

        with pytest.raises(ValueError, match=r"no operation of layer '1' \(Hidden\) is one that"):
            macs(model, torch.zeros(1, 4))

    def test_each_layer_has_its_own_number(self):
        """A container has its children's sum, a layer that ran twice both times, one that did not run none at all."""
        twice = nn.Linear(4, 4)
        model = nn.Sequential(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), twice, twice)
        model[0][0].register_module("unused", nn.Linear(4, 4))

        assert macs_by_layer(model, torch.zeros(2, 8)) == {"": 64, "0": 32, "0.0": 32, "0.1": 0, "1": 32}


class TestPeakMemory:
    """Memory while a call runs."""

    @pytest.mark.parametrize("kernel", [True, False])
    def test_an_array_that_is_gone_afterwards_is_seen(self, kernel, monkeypatch):
        """200 MiB, freed before the call returns, are in the peak, by the kernel's mark and by sampling."""

        def use() -> float:
            return float(sum(np.ones(200 * 2**17).sum() for _ in range(2)))

        if not kernel:
            monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError()))
        found = peak_memory_mib(use)

        assert 190 < found.growth < 300
        assert found.process > found.growth
        assert found.device is None

    def test_it_is_the_peak_that_the_kernel_reports(self):
        """The process needs what it needed before and what the call added, in MiB of 1,048,576 bytes."""
        resident = psutil.Process().memory_info().rss / 2**20
        found = peak_memory_mib(lambda: np.ones(200 * 2**17).sum())

        assert found.process - found.growth == pytest.approx(resident, rel=0.05)
        assert found.growth == pytest.approx(200, abs=6)

    def test_a_devices_peak_is_that_of_the_call(self, monkeypatch):
        """CUDA's high-water mark is reset before the call, and read in MiB when the device is done."""
        steps = []
        monkeypatch.setattr("torch.cuda.synchronize", lambda _: steps.append("synchronize"))
        monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda _: steps.append("reset"))
        monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda _: steps.append("read") or 3 * 2**20)
        found = peak_memory_mib(lambda: steps.append("call"), device="cuda")

        assert found.device == 3
        assert steps == ["synchronize", "reset", "call", "synchronize", "read"]

    def test_a_call_that_needs_nothing_grows_nothing(self):
        """The peak of an earlier call is not this one's."""
        np.ones(200 * 2**17).sum()

        assert peak_memory_mib(lambda: None).growth < 20
