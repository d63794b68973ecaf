"""Distillation: a network learns from another one, its answers, its features or how it arranges the images.

Every loss here is called as ``loss(student, images, labels)`` and gives a scalar. They can be weighted and added:

    loss = ResponseLoss(teacher) + 25 * RelationLoss(teacher, layers={"blocks": "blocks"})

The sum runs the teacher and the student once, and trains what has to be learned along (:func:`distill`).

This file needs nothing else of deploykit: copy it into a project and it works.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import hashlib
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - the name that PyTorch code uses
from torch import Tensor, nn

Teacher = Callable[[Tensor], Tensor]
Log = TypeVar("Log")


class FeatureTap(contextlib.AbstractContextManager["FeatureTap"]):
    """Reads what layers of a network return while it runs, through forward hooks that leaving the block removes.

        with FeatureTap(model, ["blocks.8"]) as tap:
            logits = model(images)
        features = tap.features["blocks.8"]

    Features are the layer's own tensors: gradients flow through them, and a later operation in place shows in them.

    Args:
        model: is not changed beyond the hooks.
        layers: names as in ``model.named_modules()``.

    Attributes:
        features: name of each layer to the tensor of its last call.

    Raises:
        ValueError: a name that does not exist, with the nearest ones; on leaving the block, a layer that was not
            called or whose result is no tensor.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        modules = dict(model.named_modules())
        self.features: dict[str, Tensor] = {}
        self._layers = {}
        for name in layers:
            if name not in modules:
                near = ", ".join(difflib.get_close_matches(name, modules, n=4, cutoff=0)) or "none"
                raise ValueError(f"{type(model).__name__} has no layer {name!r}; the nearest names: {near}")
            self._layers[name] = modules[name]
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        """Start to listen, with nothing heard so far."""
        self.features = {}
        self._hooks = [layer.register_forward_hook(self._keep(name)) for name, layer in self._layers.items()]
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Remove the hooks; see that there is something of every layer."""
        for hook in self._hooks:
            hook.remove()
        for name in self._layers:
            if error is None and not isinstance(self.features.get(name), Tensor):
                found = (
                    f"returned a {type(self.features[name]).__name__}" if name in self.features else "was not called"
                )
                raise ValueError(
                    f"layer {name!r} {found} in this forward pass; tap one that is called once and returns a tensor "
                    "(a compiled model calls no hooks)"
                )

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            self.features[name] = output

        return hook


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What one network makes of a batch.

    Attributes:
        logits: float32 [N, classes].
        features: name of a layer to what it returned, float32.
    """

    logits: Tensor
    features: Mapping[str, Tensor]


class DistillationLoss:
    """What all losses of this file share: both networks run once, without gradients for the teacher.

    Args:
        teacher: from float32 [N, C, H, W] to logits [N, classes]: a module, or where no features are needed any other
            predictor. A module in training mode is copied, and the copy put into evaluation mode, with a warning: batch
            norm and dropout would make its answers depend on the batch. No gradient reaches it, whether or not its
            parameters ask for one.
    """

    def __init__(self, teacher: Teacher) -> None:
        if isinstance(teacher, nn.Module) and any(module.training for module in teacher.modules()):
            warnings.warn(
                f"the teacher ({type(teacher).__name__}) is in training mode; a copy in evaluation mode teaches",
                stacklevel=3,
            )
            teacher = copy.deepcopy(teacher).eval()
        self.teacher = teacher

    @property
    def layers(self) -> Sequence[tuple[str, str]]:
        """Pairs of layers, the student's and the teacher's, whose features are compared."""
        return ()

    @property
    def learned(self) -> nn.Module | None:
        """What has to be trained together with the student, and is thrown away afterwards."""
        return None

    def from_outputs(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar.

        Raises:
            ValueError: outputs of the two that cannot be compared.
        """
        raise NotImplementedError

    def __call__(self, student: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, the mean over the images.

        Args:
            student: from ``images`` to logits [N, classes].
            images: float32 [N, C, H, W], normalised as in the teacher's training.
            labels: int64 [N].

        Raises:
            ValueError: the student is its own teacher, the teacher was put into training mode meanwhile, or what the
                two return cannot be compared.
        """
        _refuse_itself(student, self.teacher)
        if getattr(self.teacher, "training", False):
            raise ValueError(
                f"the teacher ({type(self.teacher).__name__}) was put into training mode since; call .eval() on it"
            )
        with torch.no_grad():
            wanted = _run(self.teacher, self.teacher, [name for _, name in self.layers], images)
        found = _run(student, _inner(student), [name for name, _ in self.layers], images)
        # Distances between features are differences of large numbers: bfloat16 has not the digits for them.
        with torch.autocast(images.device.type, enabled=False):
            return self.from_outputs(found, wanted, labels)

    def __add__(self, other: DistillationLoss) -> DistillationLoss:
        """Return the sum of two losses, which runs each network once."""
        return _Sum((*_terms(self), *_terms(other)))

    def __rmul__(self, weight: float) -> DistillationLoss:
        """Return the loss times a number."""
        return _Sum(tuple((weight * factor, loss) for factor, loss in _terms(self)))


class ResponseLoss(DistillationLoss):
    """The labels and the teacher's softened answers as one loss (Hinton et al. 2015, section 2).

        (1 - alpha) * cross_entropy(student, labels) + alpha * T² * KL(teacher_T || student_T)

    where the index T says that the logits are divided by the temperature before the softmax. Dividing scales the
    gradient of the soft part by 1/T²; the factor T² takes that back, so that ``alpha`` means the same at every T.

    Args:
        teacher: as for every :class:`DistillationLoss`; any predictor will do.
        temperature: above 0. The higher, the more the wrong classes count.
        alpha: share of the teacher, 0 to 1; at 0 only the labels count, at 1 they are not looked at.

    Raises:
        ValueError: temperature or alpha out of range; when called, a student with another number of classes.
    """

    def __init__(self, teacher: Teacher, temperature: float = 4.0, alpha: float = 0.9) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; logits are divided by it: choose a number above 0")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it is the teacher's share of the loss: choose 0 to 1")
        super().__init__(teacher)
        self.temperature, self.alpha = temperature, alpha

    def __repr__(self) -> str:
        """Say the settings, by which a training is recognised."""
        return f"ResponseLoss(temperature={self.temperature}, alpha={self.alpha})"

    def from_outputs(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the weighted mean of both parts."""
        if student.logits.shape != teacher.logits.shape:
            raise ValueError(
                f"the student answers with logits {tuple(student.logits.shape)} and the teacher with "
                f"{tuple(teacher.logits.shape)}; distillation of responses needs the same classes in the same order"
            )
        parts = []
        if self.alpha < 1:
            parts.append((1 - self.alpha) * F.cross_entropy(student.logits, labels))
        if self.alpha > 0:
            soft = softened_divergence(student.logits, teacher.logits, temperature=self.temperature)
            parts.append(self.alpha * soft)
        return torch.stack(parts).sum()


class _PairedLoss(DistillationLoss):
    """A loss on the features of pairs of layers, added up over the pairs."""

    def __init__(self, teacher: nn.Module, layers: Mapping[str, str]) -> None:
        if not isinstance(teacher, nn.Module):
            raise ValueError(  # noqa: TRY004 - as for every other teacher that will not do
                f"the teacher is a {type(teacher).__name__}; features are read from the layers of an nn.Module"
            )
        if not layers:
            raise ValueError(
                'no layers were given; name pairs of them: {"layer of the student": "layer of the teacher"}'
            )
        super().__init__(teacher)
        FeatureTap(self.teacher, layers.values())  # type: ignore[arg-type]  # a wrong name is refused here
        self._layers = dict(layers)

    @property
    def layers(self) -> Sequence[tuple[str, str]]:
        """The pairs."""
        return tuple(self._layers.items())

    def __repr__(self) -> str:
        """Say the settings, by which a training is recognised."""
        return f"{type(self).__name__}({self._layers})"

    def from_outputs(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Return the sum over the pairs of layers; the labels have no say."""
        parts = [self._of_pair(pair, student.features[pair[0]], teacher.features[pair[1]]) for pair in self.layers]
        return torch.stack(parts).sum()

    def _of_pair(self, pair: tuple[str, str], student: Tensor, teacher: Tensor) -> Tensor:
        raise NotImplementedError


class FeatureLoss(_PairedLoss):
    """Mean squared distance between features, the student's through a learned projection (Romero et al. 2015, FitNets).

    Where the numbers of channels differ, or ``project`` asks for it, a 1x1 convolution (a linear layer for features
    that are no maps) takes the student's to the teacher's. It is a part of the training and not of the student: see
    :func:`distill`.

    Args:
        teacher: a module.
        layers: names of the student's layers to those of the teacher's. Height and width must agree.
        student: what is going to be trained; it is run once to see the shapes and not changed.
        images: a batch for that, float32 [N, C, H, W].
        project: also where the widths agree. Nothing says that channel 5 of one network means what channel 5 of another
            one does, unless the student comes from the teacher: pruned, or a copy.

    Raises:
        ValueError: layers that do not exist, or whose features no 1x1 convolution can align.
    """

    def __init__(
        self,
        teacher: nn.Module,
        layers: Mapping[str, str],
        *,
        student: nn.Module,
        images: Tensor,
        project: bool = False,
    ) -> None:
        super().__init__(teacher, layers)
        examined = copy.deepcopy(student).eval()
        with torch.no_grad():
            wanted = _run(self.teacher, self.teacher, layers.values(), images).features
            found = _run(examined, examined, layers.keys(), images).features
        projections = []
        for pair in self.layers:
            one, other = found[pair[0]], wanted[pair[1]]
            _check_places(pair, one, other)
            inputs, outputs = _channels(one), _channels(other)
            made = (
                nn.Conv2d(inputs, outputs, 1, bias=False) if one.ndim == MAP_DIMENSIONS else nn.Linear(inputs, outputs)
            )
            projections.append((made if project or inputs != outputs else nn.Identity()).to(images.device))
        self._projections = nn.ModuleList(projections)

    @property
    def learned(self) -> nn.Module | None:
        """The projections, one a pair of layers; none where nothing is projected."""
        return self._projections if any(True for _ in self._projections.parameters()) else None

    def _of_pair(self, pair: tuple[str, str], student: Tensor, teacher: Tensor) -> Tensor:
        _check_places(pair, student, teacher)
        return F.mse_loss(self._projections[list(self._layers).index(pair[0])](student), teacher)


class AttentionLoss(_PairedLoss):
    """Mean squared distance between attention maps (Zagoruyko & Komodakis 2017, section 3.1).

    An attention map is the mean over the channels of the squared features, flattened and divided by its norm: where
    the network looks, however many channels it has. As in the authors' code the mean is over images and places, so
    that weights around 1000 are usual.

    Args:
        teacher: a module.
        layers: names of the student's layers to those of the teacher's, all with maps [N, C, H, W].

    Raises:
        ValueError: layers that do not exist; when called, features of different height or width.
    """

    def _of_pair(self, pair: tuple[str, str], student: Tensor, teacher: Tensor) -> Tensor:
        _check_places(pair, student, teacher)
        if student.ndim != MAP_DIMENSIONS:
            raise ValueError(f"features of {pair[0]!r} are {tuple(student.shape)}; attention needs maps [N, C, H, W]")
        found, wanted = (F.normalize(one.square().mean(dim=1).flatten(1)) for one in (student, teacher))
        return F.mse_loss(found, wanted)


class RelationLoss(_PairedLoss):
    """How the images of a batch lie to each other: distances and angles (Park et al. 2019, RKD, equations 4 to 8).

    Distances between all pairs of images, in units of their mean, and the cosines of the angles of all triplets are
    compared with the teacher's by Huber's loss. Widths may differ. Maps are averaged over the places first.

    Args:
        teacher: a module.
        layers: names of the student's layers to those of the teacher's, usually the last before the classifier.
        distance: weight of the distances.
        angle: weight of the angles; the authors take twice that of the distances.

    Raises:
        ValueError: layers that do not exist, negative weights or none; when called, fewer than three images.
    """

    def __init__(
        self, teacher: nn.Module, layers: Mapping[str, str], *, distance: float = 1.0, angle: float = 2.0
    ) -> None:
        if distance < 0 or angle < 0 or not distance + angle > 0:
            raise ValueError(f"distance is {distance} and angle {angle}; one must be above 0 and none below")
        super().__init__(teacher, layers)
        self.distance, self.angle = distance, angle

    def __repr__(self) -> str:
        """Say the settings, by which a training is recognised."""
        return f"RelationLoss({self._layers}, distance={self.distance}, angle={self.angle})"

    def _of_pair(self, pair: tuple[str, str], student: Tensor, teacher: Tensor) -> Tensor:  # noqa: ARG002
        if len(student) < TRIPLET:
            raise ValueError(f"a batch of {len(student)} has no angles between images; give at least {TRIPLET} images")
        loss = student.new_zeros(())
        found, wanted = _embeddings(student), _embeddings(teacher)
        if self.distance:
            loss = loss + self.distance * F.smooth_l1_loss(relative_distances(found), relative_distances(wanted))
        if self.angle:
            loss = loss + self.angle * F.smooth_l1_loss(cosines(found), cosines(wanted))
        return loss


class SimilarityLoss(_PairedLoss):
    """How similar the images of a batch are to each other (Tung & Mori 2019, equations 2 to 4).

    Of each network: the matrix of inner products between the flattened features of all images, its rows divided by
    their norms. The loss is the mean squared difference of the two [N, N] matrices. Widths and sizes may differ. The
    authors' weight is 3000.

    Args:
        teacher: a module.
        layers: names of the student's layers to those of the teacher's.

    Raises:
        ValueError: layers that do not exist.
    """

    def _of_pair(self, pair: tuple[str, str], student: Tensor, teacher: Tensor) -> Tensor:  # noqa: ARG002
        found, wanted = (F.normalize(one @ one.T) for one in (student.flatten(1), teacher.flatten(1)))
        return F.mse_loss(found, wanted)


class _Sum(DistillationLoss):
    """Losses times their weights, with one teacher."""

    def __init__(self, terms: Sequence[tuple[float, DistillationLoss]]) -> None:
        teachers = {id(loss.teacher): loss.teacher for _, loss in terms}
        if len(teachers) > 1:
            raise ValueError(
                "these losses have different teachers; a sum runs one teacher once (one in training mode is copied: "
                "call .eval() on it first)"
            )
        super().__init__(terms[0][1].teacher)
        self.terms = tuple(terms)

    @property
    def layers(self) -> Sequence[tuple[str, str]]:
        """All pairs of layers."""
        return tuple(dict.fromkeys(pair for _, loss in self.terms for pair in loss.layers))

    @property
    def learned(self) -> nn.Module | None:
        """All that has to be learned."""
        parts = [loss.learned for _, loss in self.terms if loss.learned is not None]
        return nn.ModuleList(parts) if parts else None

    def __repr__(self) -> str:
        """Say the formula."""
        return " + ".join(f"{weight:g} * {loss}" for weight, loss in self.terms)

    def from_outputs(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """Return the weighted sum."""
        return torch.stack([weight * loss.from_outputs(student, teacher, labels) for weight, loss in self.terms]).sum()


class _Together(nn.Module):
    """A student and what is learned beside it, for an optimizer that takes the parameters of one module."""

    def __init__(self, student: nn.Module, learned: nn.Module) -> None:
        super().__init__()
        self.student, self.learned = student, learned

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images)


def distill(student: nn.Module, loss: DistillationLoss, train: Callable[..., Log]) -> Log:
    """Train a student with one of these losses, and with it what the loss has to learn (projections of features).

        log = distill(student, loss, functools.partial(fit, batches=batches, epochs=5))

    Args:
        student: is trained in place.
        loss: of this file, or a sum of them.
        train: called as ``train(model, loss=loss)``; any loop that gives the parameters of ``model`` to its optimizer
            and minimises ``loss(model, images, labels)``.

    Returns:
        What ``train`` returns.

    Raises:
        ValueError: the student is its own teacher, or has none of the layers that the loss reads.
    """
    _refuse_itself(student, loss.teacher)
    FeatureTap(student, [name for name, _ in loss.layers])
    return train(student if loss.learned is None else _Together(student, loss.learned), loss=loss)


class CachedTeacher:
    """The answers of a teacher to images that it was asked before, found by their content.

    Args:
        rows: digest of an image to its row in ``logits``.
        logits: float32 [images, classes].
    """

    def __init__(self, rows: Mapping[bytes, int], logits: Tensor) -> None:
        self._rows, self._logits = rows, logits

    def __len__(self) -> int:
        """Return how many different images it knows."""
        return len(self._rows)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits float32 [N, classes].

        Raises:
            ValueError: an image that the teacher has not seen, as after an augmentation at random.
        """
        try:
            rows = [self._rows[digest] for digest in _digests(images)]
        except KeyError:
            raise ValueError(
                "an image of this batch is not in the cache: it was augmented in another way, or is another image; "
                "cache the teacher over the very batches that the student will see, or ask the teacher itself"
            ) from None
        return self._logits[rows].to(images.device)

    def knows(self, images: Tensor) -> bool:
        """Return whether it has an answer to each of the images."""
        return all(digest in self._rows for digest in _digests(images))


def cache_teacher_logits(
    teacher: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], path: Path | str
) -> CachedTeacher:
    """Ask a teacher about all images once, keep the answers in a file, and return a teacher that looks them up.

    If the file is there, only its key is checked: the teacher's weights and the images.

    Args:
        teacher: a module in evaluation mode.
        batches: pairs of images float32 [N, C, H, W] and labels. Augmented ones are answered as they are: chain the
            epochs that are going to be trained on.
        path: of the file, written whole or not at all. It is loaded without executing anything (``weights_only``).

    Raises:
        ValueError: the teacher is in training mode, there are no images, or the file belongs to another teacher, to
            other images, or is something else.
    """
    if any(module.training for module in teacher.modules()):
        raise ValueError(f"the teacher ({type(teacher).__name__}) is in training mode; call .eval() on it")
    path, whose = Path(path), _fingerprint(teacher)
    if path.exists():
        teacher_then, cached = _kept_answers(path)
        if teacher_then != whose:
            raise ValueError(f"{path.name} holds the answers of another teacher; delete it, or name another file")
        known = [cached.knows(images) for images, _ in batches]
        if not known:
            raise ValueError(NO_IMAGES)
        if not all(known):
            raise ValueError(f"{path.name} holds answers to other images; delete it, or name another file")
        return cached
    answered: dict[bytes, Tensor] = {}  # an image that comes twice is kept once
    with torch.no_grad():
        for images, _ in batches:
            answered.update(zip(_digests(images), teacher(images).float().cpu(), strict=True))
    if not answered:
        raise ValueError(NO_IMAGES)
    rows, logits = {digest: at for at, digest in enumerate(answered)}, torch.stack(list(answered.values()))
    digests = torch.tensor([list(digest) for digest in answered], dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        torch.save({"teacher": whose, "digests": digests, "logits": logits}, partial := Path(folder) / path.name)
        partial.replace(path)
    return CachedTeacher(rows, logits)


def softened_divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T² KL(teacher_T || student_T), a scalar: the mean over the images (Hinton et al. 2015, section 2).

    Args:
        student_logits: float [N, classes].
        teacher_logits: float [N, classes], of the same images.
        temperature: T, above 0.
    """
    wanted = F.softmax(teacher_logits / temperature, dim=1)
    found = F.log_softmax(student_logits / temperature, dim=1)
    # "mean" would also divide by the number of classes, and the labels would outweigh the teacher.
    return temperature**2 * F.kl_div(found, wanted, reduction="batchmean")


def relative_distances(embeddings: Tensor) -> Tensor:
    """Return the distances between all pairs of images in units of their mean (Park et al. 2019, equations 4 and 5).

    Args:
        embeddings: float [N, D].

    Returns:
        Float [N (N - 1) / 2], in the order of ``torch.pdist``.
    """
    distances = F.pdist(embeddings)
    return distances / distances.mean().clamp_min(EPSILON)


def cosines(embeddings: Tensor) -> Tensor:
    """Return the cosine of the angle at image i between images j and k (Park et al. 2019, equation 7).

    Args:
        embeddings: float [N, D].

    Returns:
        Float [N, N, N], indexed [i, j, k]; 0 where j or k is i.
    """
    differences = embeddings[None] - embeddings[:, None]
    lengths = differences.norm(dim=2, keepdim=True)
    # Two equal embeddings have no direction. Divided by a tiny number instead, their gradient would end a training.
    directions = torch.where(lengths > 0, differences / lengths.clamp_min(EPSILON), 0.0)
    return directions @ directions.transpose(1, 2)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Return how alike two networks arrange the same images: 1 up to rotation and scale, 0 if unrelated.

    Linear centred kernel alignment (Kornblith et al. 2019, equation 3 with a linear kernel, as in their section 3).

    Args:
        first: float [N, D].
        second: float [N, E], of the same images.
    """
    one, other = (embeddings.double() - embeddings.double().mean(dim=0) for embeddings in (first, second))
    norm = torch.linalg.matrix_norm
    return float(norm(one.T @ other) ** 2 / (norm(one.T @ one) * norm(other.T @ other)))


MAP_DIMENSIONS = 4  # [N, C, H, W]
TRIPLET = 3
EPSILON = 1e-12
NO_IMAGES = "there are no images to ask the teacher about; an iterator that is used up gives none"


def _inner(student: nn.Module) -> nn.Module:
    """Return the student out of what DistributedDataParallel, torch.compile and :func:`distill` wrap around it."""
    while True:
        if isinstance(student, nn.parallel.DistributedDataParallel):
            student = student.module
        elif isinstance(student, _Together):
            student = student.student
        elif isinstance(compiled := getattr(student, "_orig_mod", None), nn.Module):  # as torch.compile keeps it
            student = compiled
        else:
            return student


def _refuse_itself(student: nn.Module, teacher: Teacher) -> None:
    if _inner(student) is (_inner(teacher) if isinstance(teacher, nn.Module) else teacher):
        raise ValueError("the student is its own teacher, and agrees with itself; give a copy.deepcopy of it")


def _run(predictor: Teacher, network: Teacher, layers: Iterable[str], images: Tensor) -> Outputs:
    """Call ``predictor`` and read the layers of ``network``, which is it or inside it."""
    names = list(layers)
    if not names:
        return Outputs(predictor(images).float(), {})
    with FeatureTap(network, names) as tap:  # type: ignore[arg-type]  # with layers, both are modules
        logits = predictor(images).float()
    return Outputs(logits, {name: features.float() for name, features in tap.features.items()})


def _terms(loss: DistillationLoss) -> tuple[tuple[float, DistillationLoss], ...]:
    return loss.terms if isinstance(loss, _Sum) else ((1.0, loss),)


def _channels(features: Tensor) -> int:
    return features.shape[1 if features.ndim == MAP_DIMENSIONS else -1]


def _check_places(pair: tuple[str, str], student: Tensor, teacher: Tensor) -> None:
    """Refuse features that differ in more than the number of channels."""
    maps = student.ndim == teacher.ndim == MAP_DIMENSIONS
    alike = student.shape[2:] == teacher.shape[2:] if maps else student.shape[:-1] == teacher.shape[:-1]
    if not alike:
        raise ValueError(
            f"features of the student's {pair[0]!r} are {tuple(student.shape)} and those of the teacher's {pair[1]!r} "
            f"{tuple(teacher.shape)}; only channels may differ in number: choose layers of the same height and width"
        )


def _embeddings(features: Tensor) -> Tensor:
    return features.mean(dim=(2, 3)) if features.ndim == MAP_DIMENSIONS else features.flatten(1)


def _digests(images: Tensor) -> list[bytes]:
    """Return a digest of each image's content, however it lies in memory."""
    rows = images.detach().float().cpu().contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _kept_answers(path: Path) -> tuple[str, CachedTeacher]:
    """Return whose answers a file holds, and the answers."""
    try:
        kept = torch.load(path, weights_only=True)
        rows = {row.tobytes(): at for at, row in enumerate(kept["digests"].numpy())}
        return kept["teacher"], CachedTeacher(rows, kept["logits"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is no file of kept answers; delete it, or name another file") from error


def _fingerprint(teacher: nn.Module) -> str:
    """Return a digest of a network's layers, weights and buffers, and of their names."""
    digest = hashlib.sha256(repr(teacher).encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
