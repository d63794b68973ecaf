"""Training is exact: it resumes bit for bit, stops on NaN, and never sees the test split."""

import functools
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from deploykit import training
from deploykit.data import Batches, Dataset, Split
from deploykit.models import resnet
from deploykit.training import DivergedError, cross_entropy, evaluate, fit, schedule_factor


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """96 pictures of noise with a coloured square per class: learnable in a few steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 80, (96, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(96) % 3
    for label in range(3):
        images[labels == label, 8:24, 8:24, label] += 150
    parts = {
        name: Split(name, images[a:b], labels[a:b])
        for name, a, b in (("train", 0, 64), ("val", 64, 80), ("test", 80, 96))
    }
    return Dataset(
        name="squares",
        classes=("r", "g", "b"),
        mean=(0.3,) * 3,
        std=(0.2,) * 3,
        fingerprint="0" * 64,
        source="made for a test",
        **parts,
    )


def batches(dataset: Dataset, split: str = "train", **options: object) -> Batches:
    """Batches of 8."""
    return Batches(getattr(dataset, split), dataset, **({"batch_size": 8} | options))


def small_net(seed: int = 0) -> nn.Module:
    """A net with everything that has state: convolution, statistics, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def stop_at(step: int, **options: object) -> training.Loss:
    """A loss that sends Ctrl-C at its n-th call."""
    plain, calls = cross_entropy(**options), []

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        calls.append(labels)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(model, images, labels)

    loss.calls = calls
    return loss


class TestResume:
    @pytest.mark.parametrize("ema_decay", [None, 0.9])
    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_a_run_stopped_in_mid_epoch_ends_as_an_unbroken_one(
        self, dataset: Dataset, tmp_path: Path, precision: str, ema_decay: float | None
    ) -> None:
        """Weights, statistics and batch order are the same to the bit; stopped at step 11 of 24."""
        options = {"epochs": 3, "precision": precision, "ema_decay": ema_decay}
        seen = stop_at(10**9)
        unbroken = small_net()
        fit(unbroken, batches(dataset, augment=True, shuffle=True), loss=seen, **options)

        first, second, stopped = stop_at(11), stop_at(10**9), small_net()
        with pytest.raises(KeyboardInterrupt, match="stopped at step 3 of epoch 2"):
            fit(
                stopped,
                batches(dataset, augment=True, shuffle=True),
                loss=first,
                checkpoint=tmp_path / "state.pt",
                **options,
            )
        resumed = small_net(seed=99)
        log = fit(
            resumed,
            batches(dataset, augment=True, shuffle=True),
            loss=second,
            checkpoint=tmp_path / "state.pt",
            **options,
        )

        for name, value in unbroken.state_dict().items():
            assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
        assert_close(torch.stack(first.calls + second.calls), torch.stack(seen.calls))
        assert [row["epoch"] for row in log.rows] == [1, 2, 3]

    def test_optimizer_state_is_that_of_an_unbroken_run(self, dataset: Dataset, tmp_path: Path) -> None:
        """The momentum is kept, not begun again at zero."""
        kept = []

        def optimizer(model: nn.Module) -> torch.optim.Optimizer:
            kept.append(training.sgd(model))
            return kept[-1]

        fit(small_net(), batches(dataset), epochs=2, optimizer=optimizer)
        with pytest.raises(KeyboardInterrupt):
            fit(
                small_net(),
                batches(dataset),
                epochs=2,
                optimizer=optimizer,
                loss=stop_at(12),
                checkpoint=tmp_path / "s.pt",
            )
        fit(small_net(), batches(dataset), epochs=2, optimizer=optimizer, checkpoint=tmp_path / "s.pt")

        momenta = [[state["momentum_buffer"] for state in o.state_dict()["state"].values()] for o in kept]
        assert_close(momenta[2], momenta[0], rtol=0, atol=0)

    def test_a_state_of_another_run_is_refused(self, dataset: Dataset, tmp_path: Path) -> None:
        """What differs is named; the file is left alone."""
        fit(small_net(), batches(dataset), epochs=1, checkpoint=tmp_path / "s.pt")

        with pytest.raises(ValueError, match=r"belongs to another training \(different: epochs\)"):
            fit(small_net(), batches(dataset), epochs=2, checkpoint=tmp_path / "s.pt")

    def test_a_damaged_state_says_what_to_do(self, dataset: Dataset, tmp_path: Path) -> None:
        """A pickle that would run code is refused by the same door."""
        (tmp_path / "s.pt").write_bytes(b"\x80\x04 not a state")

        with pytest.raises(
            ValueError, match=r"is damaged or not the state of a training .* delete it to start this training afresh"
        ):
            fit(small_net(), batches(dataset), epochs=1, checkpoint=tmp_path / "s.pt")

    def test_a_full_disk_keeps_the_old_state(
        self, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The write fails loudly and the earlier file can still be resumed from."""
        path = tmp_path / "s.pt"
        with pytest.raises(KeyboardInterrupt):
            fit(small_net(), batches(dataset), epochs=2, loss=stop_at(3), checkpoint=path)
        before = path.read_bytes()

        def full(state: object, file: Path) -> None:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            fit(small_net(), batches(dataset), epochs=2, checkpoint=path)

        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_signal_handlers_are_given_back(self, dataset: Dataset) -> None:
        """After training, Ctrl-C means what it meant before; training in a thread works too."""
        before = signal.getsignal(signal.SIGINT)
        fit(small_net(), batches(dataset), epochs=1)
        thread = threading.Thread(target=fit, args=(small_net(), batches(dataset)), kwargs={"epochs": 1})
        thread.start()
        thread.join()

        assert signal.getsignal(signal.SIGINT) is before


class TestFit:
    def test_it_learns(self, dataset: Dataset) -> None:
        """Coloured squares are told apart after ten epochs, on images it has not seen."""
        model = resnet(8, classes=3)
        log = fit(model, batches(dataset, augment=True, shuffle=True), epochs=10, validation=batches(dataset, "val"))

        assert log.rows[-1]["validation_accuracy"] == evaluate(model, batches(dataset, "val")).accuracy == 1.0
        assert not model.training

    def test_the_result_is_that_of_a_loop_written_out(self, dataset: Dataset) -> None:
        """Two epochs against eleven lines of plain PyTorch with the cosine in them."""
        model, reference = small_net().eval(), small_net().eval()
        for m in (model, reference):
            m[3].p = 0.0
        fit(
            model, batches(dataset), epochs=2, precision="fp32", optimizer=functools.partial(training.sgd, peak_lr=0.05)
        )

        reference.to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        for step, (images, labels) in enumerate([*batches(dataset).epoch(0), *batches(dataset).epoch(1)]):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / 16)) / 2
            optimizer.zero_grad()
            nn.functional.cross_entropy(reference(images), labels).backward()
            optimizer.step()

        assert_close(dict(model.state_dict()), dict(reference.state_dict()))

    def test_a_nan_loss_stops_with_its_step(self, dataset: Dataset) -> None:
        """The tenth batch is the second of epoch two."""
        calls = []

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            calls.append(1)
            return model(images).mean() * (math.nan if len(calls) == 10 else 1)

        with pytest.raises(
            DivergedError, match=r"the loss is nan at step 2 of epoch 2 \(learning rate .*\); lower the learning rate"
        ):
            fit(small_net(), batches(dataset), epochs=2, loss=loss)

    def test_the_average_is_that_of_its_formula(self, dataset: Dataset) -> None:
        """EMA: average <- 0.5 average + 0.5 weights after each step, from the first step's weights."""
        seen: list[Tensor] = []

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            seen.append(model[6].bias.detach().clone())
            return nn.functional.cross_entropy(model(images), labels)

        model, plain = small_net(), small_net()
        model[3].p = plain[3].p = 0.0
        fit(model, batches(dataset), epochs=1, loss=loss, precision="fp32", ema_decay=0.5)
        fit(plain, batches(dataset), epochs=1, precision="fp32")

        expected = seen[1]
        for weights in [*seen[2:], plain[6].bias.detach()]:
            expected = 0.5 * expected + 0.5 * weights
        assert_close(model[6].bias.detach(), expected)

    @pytest.mark.parametrize("role", ["batches", "validation"])
    def test_the_test_split_is_refused(self, dataset: Dataset, role: str) -> None:
        """Neither training nor choosing may see it."""
        given = {"batches": batches(dataset), "validation": batches(dataset, "val")} | {role: batches(dataset, "test")}

        with pytest.raises(ValueError, match="test"):
            fit(small_net(), given["batches"], epochs=1, validation=given["validation"])

    def test_fp16_on_a_cpu_is_refused_with_what_to_use(self, dataset: Dataset) -> None:
        """Its gradients would underflow without a word."""
        with pytest.raises(ValueError, match=r"precision 'fp16' needs a CUDA device.* use 'bf16' or 'fp32'"):
            fit(small_net(), batches(dataset), epochs=1, precision="fp16")

    def test_muon_orthogonalises_the_convolutions_and_not_the_rest(self, dataset: Dataset) -> None:
        """After one step the update of a convolution, as a matrix, has singular values near one another."""
        pytest.importorskip("timm", reason="timm (extra training) is not installed")
        model = resnet(8, classes=3)
        before = model.blocks[0].conv1.weight.detach().clone()
        optimizer = training.muon(model, weight_decay=0.0)
        cross_entropy()(model, *next(iter(batches(dataset, batch_size=32)))).backward()
        optimizer.step()

        values = torch.linalg.svdvals((model.blocks[0].conv1.weight.detach() - before).flatten(1))
        assert values.max() / values.min() < 3


class TestSchedule:
    @pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.5), (1.0, 0.0)])
    @pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
    def test_warm_up_peak_middle_and_end(self, schedule: str, progress: float, expected: float) -> None:
        """Both are at half the peak halfway down and end at nought."""
        assert schedule_factor(progress, schedule=schedule, warmup=0.2) == pytest.approx(expected)

    def test_the_cosine_lies_above_the_line_at_first(self) -> None:
        """A quarter of the way down: cos 45 degrees."""
        assert schedule_factor(0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)
        assert schedule_factor(0.25, schedule="one-cycle") == pytest.approx(0.75)


class TestEvaluate:
    def test_accuracy_and_interval_are_the_hand_counted_ones(self, dataset: Dataset) -> None:
        """A predictor that always says class 0 is right on the images of class 0, in their order."""
        always_zero = evaluate(
            lambda images: torch.tensor([[1.0, 0, 0]]).expand(len(images), 3), batches(dataset, "test")
        )

        assert_close(always_zero.correct, dataset.test.labels == 0)
        assert always_zero.accuracy == pytest.approx(float((dataset.test.labels == 0).double().mean()))
        assert always_zero.split == "test"

    def test_modes_are_given_back_and_statistics_left_alone(self, dataset: Dataset) -> None:
        """A model in training mode is judged in eval mode; a frozen part of it stays frozen."""
        model = small_net().train()
        model[1].eval()
        statistics = model[1].running_mean.clone()
        evaluate(model, batches(dataset, "test"))

        assert [m.training for m in (model, model[1], model[3])] == [True, False, True]
        assert_close(model[1].running_mean, statistics)

    def test_an_exported_module_is_taken_as_it_is(self, dataset: Dataset) -> None:
        """torch.export's modules refuse eval()."""
        model = small_net().eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},)).module()

        assert_close(
            evaluate(exported, batches(dataset, "test")).correct, evaluate(model, batches(dataset, "test")).correct
        )

    @pytest.mark.parametrize(
        ("predictor", "message"),
        [
            (lambda images: torch.zeros(len(images)), r"into \(8,\); logits must be \[N, classes\]"),
            (lambda images: torch.full((len(images), 3), torch.nan), "the predictor returned NaN"),
        ],
    )
    def test_nonsense_is_refused(self, dataset: Dataset, predictor: training.Predictor, message: str) -> None:
        """Argmax of NaN or of the wrong axis would be a number, and a wrong one."""
        with pytest.raises(ValueError, match=message):
            evaluate(predictor, batches(dataset, "test"))
