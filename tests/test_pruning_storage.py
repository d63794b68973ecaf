"""Sparse storage: sizes as computed by hand, files that come back as they were, and the course's bars."""

from __future__ import annotations

import gzip
import math
import os
import pickle
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.sparse
import torch
from torch import nn
from torch.testing import assert_close

from deploykit.models import load_pretrained
from deploykit.pruning.masks import make_permanent
from deploykit.pruning.sparse_files import load_sparse, save_sparse
from deploykit.pruning.storage import storage_sizes
from deploykit.pruning.weights import prune_weights

OUT, IN = 16, 100


@pytest.fixture
def pruned() -> nn.Module:
    """A linear layer of 1,600 weights, 320 of them not 0, and its 16 biases."""
    torch.manual_seed(0)
    return make_permanent(prune_weights(nn.Sequential(nn.Linear(IN, OUT)), sparsity=0.8))


@pytest.fixture
def network() -> nn.Module:
    """A convolution, a batch norm and a linear layer, pruned, as training leaves them: channels last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5))
    return make_permanent(prune_weights(model, sparsity=0.7)).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def resnet20() -> nn.Module:
    """The course's network, 80 % of its weights 0."""
    return make_permanent(prune_weights(load_pretrained("resnet20", "cifar10"), sparsity=0.8))


class TestSizes:
    def test_they_are_those_computed_by_hand(self, pruned):
        """Of 1,600 weights, 320 numbers, 16 rows, 64 bytes of biases."""
        n, numbers, rest = OUT * IN, 320, OUT * 4
        entropy = -(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8))
        sizes = storage_sizes(pruned).set_index("form")["bytes"].to_dict()

        assert sizes == {
            "dense, fp32": 4 * n + rest,
            "dense, int8": n + 4 * OUT + rest,
            "COO, fp32": 12 * numbers + rest,
            "CSR, fp32": 8 * numbers + 4 * (OUT + 1) + rest,
            "bitmask, fp32": n // 8 + 4 * numbers + rest,
            "bitmask, int8": n // 8 + numbers + 4 * OUT + rest,
            "entropy limit, fp32": math.ceil(n * entropy / 8 + 4 * numbers) + rest,
            "entropy limit, int8": math.ceil(n * entropy / 8 + numbers + 4 * OUT) + rest,
        }

    def test_scipy_takes_as_many_bytes(self, network):
        """COO and CSR of its own, with 32-bit indices."""
        matrices = [module.weight.detach().flatten(1).numpy() for module in (network[0], network[3])]
        rest = sum(v.nbytes for v in network.state_dict().values() if v.ndim < 2)
        coo = sum(m.data.nbytes + m.row.nbytes + m.col.nbytes for m in map(scipy.sparse.coo_matrix, matrices))
        csr = sum(m.data.nbytes + m.indices.nbytes + m.indptr.nbytes for m in map(scipy.sparse.csr_matrix, matrices))
        sizes = storage_sizes(network).set_index("form")["bytes"]

        assert (sizes["COO, fp32"], sizes["CSR, fp32"]) == (coo + rest, csr + rest)

    def test_what_is_compressed_is_the_form(self, pruned):
        """Dense: deflate over the weights and biases as they lie in memory."""
        content = pruned[0].weight.detach().numpy().tobytes() + pruned[0].bias.detach().numpy().tobytes()
        row = storage_sizes(pruned).iloc[0]

        assert row["deflate_bytes"] == len(zlib.compress(content, 9))
        assert row["times_smaller"] == pytest.approx(len(content) / row["deflate_bytes"])

    def test_compression_comes_near_the_limit_of_int8(self, resnet20):
        """Within 5 %, and dense int8 with its zeros cannot be far behind: deflate finds them."""
        sizes = storage_sizes(resnet20).set_index("form")

        assert sizes.loc["bitmask, int8", "deflate_bytes"] < 1.05 * sizes.loc["entropy limit, int8", "bytes"]


class TestFiles:
    def test_float32_comes_back_bit_for_bit(self, network, tmp_path):
        """All of the state_dict, in its order; batch norm's counter is an integer still."""
        save_sparse(network, tmp_path / "new folder" / "sparse.gz")
        state = load_sparse(tmp_path / "new folder" / "sparse.gz")

        assert list(state) == list(network.state_dict())
        for name, tensor in network.state_dict().items():
            assert state[name].dtype == tensor.dtype
            assert state[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()

    def test_int8_comes_back_within_half_a_step(self, network, tmp_path):
        """A step is the largest weight of the output channel over 127; zeros are exact, and so is batch norm."""
        nn.init.zeros_(network[0].weight[2])
        save_sparse(network, tmp_path / "sparse.gz", values="int8")
        state = load_sparse(tmp_path / "sparse.gz")

        for place in (0, 3):
            weight, loaded = network[place].weight.detach(), state[f"{place}.weight"]
            step = weight.flatten(1).abs().amax(dim=1).view(-1, *[1] * (weight.ndim - 1)) / 127
            assert bool(((loaded - weight).abs() <= step / 2 + 1e-7).all())
            assert not bool(loaded[weight == 0].any())
        assert_close(state["1.running_var"], network[1].running_var, rtol=0, atol=0)

    def test_a_plain_network_takes_it_and_no_pickle_is_read(self, network, tmp_path, monkeypatch):
        """Built anew and loaded, it gives the same answers; unpickling would fail here."""
        save_sparse(network, tmp_path / "sparse.gz")
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(pickle, name, None)
        other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)).eval()
        other.load_state_dict(load_sparse(tmp_path / "sparse.gz"))

        assert_close(other(torch.ones(1, 3, 3, 3)), network.eval()(torch.ones(1, 3, 3, 3)))

    def test_anyone_can_open_it(self, pruned, tmp_path):
        """It is safetensors in gzip: no program of ours is needed to see what is in it."""
        save_sparse(pruned, tmp_path / "sparse.safetensors.gz", values="int8")
        tensors = safetensors.torch.load(gzip.decompress((tmp_path / "sparse.safetensors.gz").read_bytes()))

        assert {name: tuple(tensor.shape) for name, tensor in tensors.items() if name != "layout"} == {
            "kept": (200,), "values": (320,), "steps": (16,), "rest.0.bias": (16,),
        }  # fmt: skip

    def test_the_same_network_is_the_same_file(self, pruned, tmp_path, monkeypatch):
        """No time and no file name in it."""
        for hour, name in enumerate("ab", start=1):
            monkeypatch.setattr(time, "time", lambda now=3600.0 * hour: now)
            save_sparse(pruned, tmp_path / name)

        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    @pytest.mark.parametrize(("values", "smaller"), [("float32", 4), ("int8", 10)])
    def test_resnet20_at_80_percent_reaches_the_bar(self, resnet20, tmp_path, values, smaller):
        """Everything counted, against the dense file of the same network."""
        save_sparse(resnet20, tmp_path / "sparse.gz", values=values)
        dense = len(safetensors.torch.save({n: v.contiguous() for n, v in resnet20.state_dict().items()}))

        assert dense / (tmp_path / "sparse.gz").stat().st_size > smaller

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_write_that_fails_leaves_the_old_file(self, pruned, tmp_path, monkeypatch, step):
        """And nothing beside it."""
        save_sparse(pruned, tmp_path / "sparse.gz")
        before = (tmp_path / "sparse.gz").read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os if step == "fsync" else Path, step, full)
        with pytest.raises(OSError, match="No space left"):
            save_sparse(pruned, tmp_path / "sparse.gz", values="int8")

        assert (tmp_path / "sparse.gz").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["sparse.gz"]


class TestErrors:
    def test_what_cannot_be_saved(self, pruned, tmp_path):
        """Each with what to do."""
        path = tmp_path / "sparse.gz"
        with pytest.raises(ValueError, match="values 'int4' is unknown; use 'float32' or 'int8'"):
            save_sparse(pruned, path, values="int4")
        with pytest.raises(ValueError, match=r"storing a sparse network takes plain weights: give it make_permanent"):
            save_sparse(prune_weights(pruned, sparsity=0.9), path)
        with pytest.raises(ValueError, match=r"0.weight is float16; sparse files hold float32 weights: call .float"):
            save_sparse(nn.Sequential(nn.Linear(4, 2)).half(), path)
        with pytest.raises(ValueError, match="BatchNorm1d has no weight of two dimensions or more"):
            save_sparse(nn.BatchNorm1d(4), path)
        assert not path.exists()

    @pytest.mark.parametrize("damage", ["cut", "flipped", "no layout", "other format", "too few values"])
    def test_a_damaged_or_foreign_file(self, pruned, tmp_path, damage):
        """Cut short, a bit wrong, another kind of gzip, or contents that do not fit each other."""
        path = tmp_path / "sparse.gz"
        save_sparse(pruned, path)
        content = path.read_bytes()
        tensors = safetensors.torch.load(gzip.decompress(content))
        if damage == "no layout":
            tensors.pop("layout")
        elif damage == "other format":
            text = tensors["layout"].numpy().tobytes().replace(b"version 1", b"version 2")
            tensors["layout"] = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
        else:
            tensors["values"] = tensors["values"][:, :-1].contiguous()
        damaged = {"cut": content[:-100], "flipped": content[:500] + bytes([content[500] ^ 1]) + content[501:]}
        path.write_bytes(damaged.get(damage, gzip.compress(safetensors.torch.save(tensors))))

        with pytest.raises(ValueError, match=r"sparse.gz is damaged, or not written by save_sparse \(.*; restore"):
            load_sparse(path)

    def test_a_pickle(self, pruned, tmp_path):
        """It is not opened."""
        torch.save(pruned.state_dict(), tmp_path / "model.pt")
        with pytest.raises(ValueError, match=r"model.pt is a pickle \(torch.save\), .* never read here"):
            load_sparse(tmp_path / "model.pt")

    def test_another_file_and_none(self, tmp_path):
        """Said apart."""
        (tmp_path / "notes.txt").write_text("zeros")
        with pytest.raises(ValueError, match=r"notes.txt is no gzip file; load_sparse reads what save_sparse wrote"):
            load_sparse(tmp_path / "notes.txt")
        with pytest.raises(FileNotFoundError, match=r"no file .*missing.gz; save_sparse writes one"):
            load_sparse(tmp_path / "missing.gz")
