"""shapes32 is the same on every machine, balanced, and colour and contrast do not give a class away."""

import hashlib

import numpy as np
import pytest

from deploykit import shapes

CHECKSUMS = (
    "ba9feef27f33cca7bfbaccb3dc632a08962ecbedaec0b348c5f1c9b59f4a69df",
    "bc7f646e423bf6c16bd5e506d314cef166a21919dea7e562611e73165279d9b9",
    "5b43887fb08701701f8d01148ea7498e3e8c08524d391737acbc2f5c5e54df45",
    "d0ff9a7f0016d0ce17d4110fd44e06fef9ed54174b6e3bb02c9168e9d3f1fed2",
)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, ...]:
    """Images and labels of both splits, for seed 0."""
    return shapes.generate()


def test_the_bytes_for_seed_0_are_these(data: tuple[np.ndarray, ...]) -> None:
    """The committed checkpoints and figures speak of these pictures; little-endian, whatever the machine."""
    found = [hashlib.sha256(part.astype(part.dtype.newbyteorder("<")).tobytes()).hexdigest() for part in data]

    assert tuple(found) == CHECKSUMS


def test_shapes_and_types_are_those_of_a_dataset(data: tuple[np.ndarray, ...]) -> None:
    """20,000 and 4,000 colour pictures of 32 x 32."""
    assert [(part.shape, part.dtype.name) for part in data] == [
        ((20_000, 32, 32, 3), "uint8"),
        ((20_000,), "int64"),
        ((4_000, 32, 32, 3), "uint8"),
        ((4_000,), "int64"),
    ]
    assert all(part.flags.c_contiguous for part in data)


def test_every_class_is_as_frequent_as_the_others(data: tuple[np.ndarray, ...]) -> None:
    """2,000 to learn from and 400 to be judged on, each."""
    assert np.bincount(data[1]).tolist() == [2_000] * 10
    assert np.bincount(data[3]).tolist() == [400] * 10


def test_no_picture_is_in_both_splits(data: tuple[np.ndarray, ...]) -> None:
    """All 24,000 are different."""
    digests = {hashlib.sha256(picture.tobytes()).digest() for part in (data[0], data[2]) for picture in part}

    assert len(digests) == 24_000


def test_another_seed_draws_other_pictures(monkeypatch: pytest.MonkeyPatch, data: tuple[np.ndarray, ...]) -> None:
    """And the same seed the same ones, also when fewer are asked for."""
    monkeypatch.setattr(shapes, "TRAIN_IMAGES", 50)
    monkeypatch.setattr(shapes, "TEST_IMAGES", 50)

    assert np.array_equal(shapes.generate()[0], data[0][:50])
    assert not np.array_equal(shapes.generate(seed=1)[0], data[0][:50])


def test_it_draws_with_the_threads_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quota of a service, which joblib does not see, is kept as well."""

    def refuse(max_workers: int) -> None:
        raise LookupError(f"{max_workers} threads")

    monkeypatch.setattr(shapes, "ThreadPoolExecutor", refuse)
    monkeypatch.setattr(shapes, "allowed_threads", lambda: 3)

    with pytest.raises(LookupError, match="3 threads"):
        shapes.generate()


def test_colour_does_not_tell_the_class(data: tuple[np.ndarray, ...]) -> None:
    """A nearest class mean on each picture's mean colour and contrast is right hardly more often than chance."""
    train, train_labels, test, test_labels = data

    def features(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1, 3).astype(np.float64)
        return np.concatenate([flat.mean(1), flat.std(1)], axis=1)

    seen, asked = features(train), features(test)
    scale = seen.std(axis=0)
    means = np.stack([seen[train_labels == label].mean(axis=0) for label in range(10)]) / scale
    guess = ((asked / scale)[:, None] - means).__pow__(2).sum(axis=2).argmin(axis=1)

    assert (guess == test_labels).mean() < 0.2


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_a_figure_is_where_its_distance_is_negative(name: str) -> None:
    """Each contour encloses its centre or, for ring and crescent, does not reach the corners of the picture."""
    coordinates = (np.arange(32, dtype=np.float32) - 15.5) / 10
    x, y = np.broadcast_arrays(coordinates[None, None, :], coordinates[None, :, None])
    distance = shapes._FIGURES[name](x, y, shapes._Stream(0))
    inside = (distance[0] < 0).mean()

    assert 0.05 < inside < 0.45
    assert distance[0, [0, 0, -1, -1], [0, -1, 0, -1]].min() > 0
