"""Training is exact: it resumes bit for bit, stops on NaN, and never sees the test split."""

import dataclasses
import functools
import io
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
from deploykit.training import DivergedError, cross_entropy, evaluate, fit


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


def saved(content: object) -> bytes:
    """What torch.save writes for it."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


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
        fit(
            small_net(),
            batches(dataset),
            epochs=2,
            optimizer=optimizer,
            loss=stop_at(10**9),
            checkpoint=tmp_path / "s.pt",
        )

        momenta = [[state["momentum_buffer"] for state in o.state_dict()["state"].values()] for o in kept]
        assert_close(momenta[2], momenta[0], rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epochs": 2}, "epochs 1, here 2"),
            ({"optimizer": functools.partial(training.sgd, peak_lr=0.4)}, "peak_lr 0.1, here 0.4"),
            (
                {"optimizer": functools.partial(training.sgd, momentum=0.5, weight_decay=0.0)},
                "momentum 0.9, here 0.5; weight_decay 0.0005, here 0.0",
            ),
            (
                {"loss": cross_entropy(label_smoothing=0.1)},
                "loss CrossEntropy(label_smoothing=0.0), here CrossEntropy(label_smoothing=0.1)",
            ),
            ({"precision": "bf16"}, "precision fp32, here bf16"),
            ({"schedule": "one-cycle", "warmup": 0.2}, "schedule cosine, here one-cycle; warmup 0.0, here 0.2"),
            ({"ema_decay": 0.9}, "ema_decay None, here 0.9"),
            ({"batches": {"batch_size": 16}}, "batch_size 8, here 16"),
            ({"batches": {"augment": True, "shuffle": True}}, "augment False, here True; shuffle False, here True"),
            ({"batches": {"seed": 1}}, "seed 0, here 1"),
            ({"validation": "val"}, "validation None, here val"),
        ],
    )
    def test_a_state_of_another_run_is_refused(
        self, dataset: Dataset, tmp_path: Path, change: dict[str, object], message: str
    ) -> None:
        """What differs is named, with what the file says and what was given; the file is left alone."""
        path, usual = tmp_path / "s.pt", {"epochs": 1, "precision": "fp32"}
        fit(small_net(), batches(dataset), checkpoint=path, **usual)
        before = path.read_bytes()
        options = usual | {name: value for name, value in change.items() if name != "batches"}
        if "validation" in options:
            options["validation"] = batches(dataset, "val")

        with pytest.raises(ValueError, match=r"belongs to another training") as caught:
            fit(small_net(), batches(dataset, **change.get("batches", {})), checkpoint=path, **options)
        assert str(caught.value) == (
            f"{path} belongs to another training (different: {message}); "
            "give another file, or delete it to start afresh"
        )
        assert path.read_bytes() == before

    def test_other_images_or_another_network_are_another_run(self, dataset: Dataset, tmp_path: Path) -> None:
        """One pixel is enough; so is a layer."""
        fit(small_net(), batches(dataset), epochs=1, checkpoint=tmp_path / "s.pt")
        pixels = dataset.train.images.clone()
        pixels[5, 0, 0, 0] ^= 1
        edited = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=pixels))

        with pytest.raises(ValueError, match=r"\(different: data [0-9a-f]{16}, here [0-9a-f]{16}\)"):
            fit(small_net(), batches(edited), epochs=1, checkpoint=tmp_path / "s.pt")
        with pytest.raises(ValueError, match=r"different: model Sequential of 131 parameters, here ResNet of 77,"):
            fit(resnet(8, classes=3), batches(dataset), epochs=1, checkpoint=tmp_path / "s.pt")

    @pytest.mark.parametrize("content", [b"\x80\x04 not a state", b"", saved({"weights": torch.zeros(2)}), saved([])])
    def test_a_damaged_state_says_what_to_do(self, dataset: Dataset, tmp_path: Path, content: bytes) -> None:
        """A pickle that would run code is refused by the same door, and so is a file of something else."""
        (tmp_path / "s.pt").write_bytes(content)

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

        def full(file: Path, content: bytes) -> None:
            file.write_text(str(content[:9]))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            fit(small_net(), batches(dataset), epochs=2, loss=stop_at(10**9), checkpoint=path)

        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_that_cannot_be_written_is_said_before_the_first_step(
        self, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And not after an epoch, when the state is first written."""
        monkeypatch.setattr(os, "access", lambda *_: False)
        steps: list[int] = []
        with pytest.raises(PermissionError, match=r"cannot be written, and s\.pt, the state of this training"):
            fit(small_net(), batches(dataset), epochs=1, loss=lambda *_: steps.append(1), checkpoint=tmp_path / "s.pt")

        assert steps == []

    def test_a_wish_to_stop_during_the_last_evaluation_is_kept(self, dataset: Dataset, tmp_path: Path) -> None:
        """All steps are done and written; the caller still hears of the Ctrl-C, and can go on."""
        model, path = small_net(), tmp_path / "s.pt"
        stop = model.register_forward_hook(lambda *_: None if model.training else os.kill(os.getpid(), signal.SIGINT))
        options = {"epochs": 1, "validation": batches(dataset, "val", batch_size=16), "checkpoint": path}
        with pytest.raises(KeyboardInterrupt, match=f"stopped after the last step; run again with {path} to go on"):
            fit(model, batches(dataset), **options)

        stop.remove()
        assert [row["epoch"] for row in fit(model, batches(dataset), **options).rows] == [1]

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

    def test_batches_without_a_whole_one_are_refused(self, dataset: Dataset) -> None:
        """An epoch of no step would have no loss."""
        none = Batches(dataset.train, dataset, batch_size=len(dataset.train) + 1, drop_last=True)

        with pytest.raises(ValueError, match="not one whole batch to train on"):
            fit(small_net(), none, epochs=1)

    def test_fp16_on_a_cpu_is_refused_with_what_to_use(self, dataset: Dataset) -> None:
        """Its gradients would underflow without a word."""
        with pytest.raises(ValueError, match=r"precision 'fp16' needs a CUDA device.* use 'bf16' or 'fp32'"):
            fit(small_net(), batches(dataset), epochs=1, precision="fp16")


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
