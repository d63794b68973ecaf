"""Batches: the same ones for the same seed, epoch and step; augmentation and normalisation checked by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from deploykit.batches import PADDING, Batches, augment_batch, normalise, refuse_test_split
from deploykit.data import Split

STATISTICS = SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def split(images: int = 50, name: str = "train", height: int = 6, width: int = 5) -> Split:
    """Return a split of random pixels, none of them black; the label is the place."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(1, 256, (images, height, width, 3), dtype=torch.uint8, generator=generator)
    return Split(name, pixels, torch.arange(images))


def batches(**options) -> Batches:
    """Return augmented, shuffled batches of eight, with options changed."""
    return Batches(split(), STATISTICS, **({"batch_size": 8, "augment": True, "shuffle": True, "seed": 3} | options))


def slow_crop(image: torch.Tensor, top: int, left: int, mirror: bool) -> torch.Tensor:  # noqa: FBT001 - three draws
    """Pad, crop and mirror one image the plain way."""
    height, width, _ = image.shape
    padded = torch.zeros(height + 2 * PADDING, width + 2 * PADDING, 3, dtype=torch.uint8)
    padded[PADDING : PADDING + height, PADDING : PADDING + width] = image
    crop = padded[top : top + height, left : left + width]
    return crop.flip(1) if mirror else crop


class TestEpochs:
    def test_starting_in_the_middle_gives_what_an_unbroken_epoch_gives(self):
        """Order and augmentation of step 3 do not depend on steps 0 to 2 having been made."""
        whole = list(batches().epoch(2))
        resumed = list(batches().epoch(2, start=3))

        assert len(resumed) == len(whole) - 3
        for (images, labels), (images_resumed, labels_resumed) in zip(whole[3:], resumed, strict=True):
            assert_close(images_resumed, images, rtol=0, atol=0)
            assert_close(labels_resumed, labels, rtol=0, atol=0)

    @pytest.mark.parametrize("world_size", [2, 4])
    def test_the_ranks_together_make_the_batch_of_one_process(self, world_size):
        """Concatenating the ranks' slices, the uneven last batch included, gives the single-process batch exactly."""
        ranks = [batches(rank=rank, world_size=world_size).epoch(1) for rank in range(world_size)]

        for (images, labels), *parts in zip(batches().epoch(1), *ranks, strict=True):
            assert_close(torch.cat([part[0] for part in parts]), images, rtol=0, atol=0)
            assert_close(torch.cat([part[1] for part in parts]), labels, rtol=0, atol=0)

    def test_a_part_taken_later_is_the_part_asked_for_at_once(self):
        """The whole batches are left as they are; the part of the only rank is the whole."""
        whole = batches()
        pairs = zip(whole.for_rank(1, 2).epoch(1), batches(rank=1, world_size=2).epoch(1), strict=True)

        assert all(torch.equal(a, b) for taken, asked in pairs for a, b in zip(taken, asked, strict=True))
        assert (whole.rank, whole.world_size) == (0, 1)
        assert [len(labels) for _, labels in whole.for_rank(0, 1)] == [8] * 6 + [2]

    def test_a_last_batch_too_small_for_the_ranks_is_refused(self):
        """A process without images would have no loss; without the last batch all is well."""
        with pytest.raises(ValueError, match=r"the last batch has 2 images for 4 ranks; use drop_last=True or another"):
            batches().for_rank(0, 4)

        assert len(batches(drop_last=True).for_rank(0, 4)) == 6

    def test_a_part_of_a_part_is_refused(self):
        """Half of every batch would never be seen."""
        with pytest.raises(ValueError, match=r"the part of rank 1 in a world of 2, and rank 0 in a world of 1 is need"):
            batches(rank=1, world_size=2).for_rank(0, 1)

    @pytest.mark.parametrize("sections", [1, 3, 60])
    def test_sections_together_are_the_split_in_its_order(self, sections):
        """However many there are, every image is in one of them."""
        plain = batches(shuffle=False, augment=False)
        labels = [labels for part in range(sections) for _, labels in plain.section(part, sections)]

        assert torch.cat(labels).equal(torch.arange(50))

    def test_settings_are_those_of_all_ranks_together(self):
        """A part has the settings of the whole; other pixels or another normalisation have other ones."""
        usual, brighter = batches().settings(), SimpleNamespace(mean=(0.6, 0.4, 0.3), std=STATISTICS.std)

        assert usual == batches(rank=1, world_size=2).settings()
        assert {name: usual[name] for name in ("split", "images", "batch_size", "augment", "shuffle", "seed")} == {
            "split": "train", "images": 50, "batch_size": 8, "augment": True, "shuffle": True, "seed": 3,
        }  # fmt: skip
        others = [Batches(split(height=5, width=6), STATISTICS, batch_size=8), Batches(split(), brighter, batch_size=8)]
        assert len({usual["data"], *(other.settings()["data"] for other in others)}) == 3

    def test_shuffling_shows_every_image_once_and_otherwise_in_each_epoch(self):
        """An epoch is a permutation; two epochs and two seeds are different ones."""
        orders = [torch.cat([labels for _, labels in run]) for run in (batches(), batches().epoch(1), batches(seed=4))]

        assert all(order.sort().values.equal(torch.arange(50)) for order in orders)
        assert not orders[0].equal(orders[1])
        assert not orders[0].equal(orders[2])

    def test_without_shuffling_the_order_is_that_of_the_split(self):
        """Paired tests rely on it: the i-th answer belongs to the i-th image."""
        plain = batches(shuffle=False, augment=False)

        assert torch.cat([labels for _, labels in plain]).equal(torch.arange(50))
        expected = normalise(plain.source.images, STATISTICS.mean, STATISTICS.std, torch.float32)
        assert torch.cat([images for images, _ in plain]).equal(expected)

    @pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8] * 6 + [2]), (True, [8] * 6)])
    def test_the_length_counts_the_batches(self, drop_last, sizes):
        """50 images in eights are seven batches, or six without the smaller one."""
        run = batches(drop_last=drop_last)

        assert [len(labels) for _, labels in run] == sizes
        assert len(run) == len(sizes)

    def test_batches_are_channels_last_in_the_wanted_dtype(self):
        """[B, 3, H, W] as the model wants it, without another copy."""
        images, labels = next(iter(batches(dtype=torch.bfloat16)))

        assert images.shape == (8, 3, 6, 5)
        assert images.dtype == torch.bfloat16
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
            (
                {"batch_size": 6, "world_size": 4},
                "batch_size 6 cannot be shared evenly by 4 ranks; take a multiple of 4",
            ),
            ({"rank": 2, "world_size": 2}, "rank is 2 in a world of 2; it must be 0 to 1"),
            ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ],
    )
    def test_impossible_settings_are_refused(self, options, message):
        """Before any work, with what was given and what is needed."""
        with pytest.raises(ValueError, match=r".+") as caught:
            batches(**options)

        assert str(caught.value) == message

    def test_a_start_beyond_the_epoch_is_refused_at_once(self):
        """Not only when the first batch is drawn."""
        with pytest.raises(ValueError, match="start is step 8; an epoch of this split has 7 steps"):
            batches().epoch(0, start=8)


class TestAugmentation:
    def test_it_agrees_with_padding_cropping_and_mirroring_one_image_at_a_time(self):
        """The gather over shared borders is the textbook augmentation, bit for bit."""
        images = split(400).images
        moved = augment_batch(images, torch.Generator().manual_seed(1))

        draws = torch.Generator().manual_seed(1)
        tops, lefts = torch.randint(0, 9, (2, 400), generator=draws)
        mirrors = torch.randint(0, 2, (400,), generator=draws, dtype=torch.bool)
        expected = [slow_crop(*each) for each in zip(images, tops, lefts, mirrors, strict=True)]
        assert moved.equal(torch.stack(expected))

    def test_every_shift_and_both_mirrorings_occur_equally_often(self):
        """A bright centre pixel lands on 9 x 9 places, each image drawing its own."""
        images = torch.zeros(81_000, 9, 9, 3, dtype=torch.uint8)
        images[:, 4, 4] = 255
        landed = augment_batch(images, torch.Generator().manual_seed(0))[..., 0].float().div(255).sum(0)

        assert landed.sum() == 81_000
        assert (landed - 1000).abs().max() < 5 * 1000**0.5

    def test_the_images_given_are_not_changed(self):
        """The split is used again in the next epoch."""
        images = split().images
        before = images.clone()
        augment_batch(images, torch.Generator())

        assert images.equal(before)

    def test_it_works_where_the_images_are(self):
        """On a GPU nothing may be left on the CPU; the meta device refuses mixtures as CUDA does."""
        moved = augment_batch(torch.zeros(4, 8, 8, 3, dtype=torch.uint8, device="meta"), torch.Generator())

        assert moved.device.type == "meta"
        assert moved.shape == (4, 8, 8, 3)

    def test_pixels_of_another_kind_are_refused(self):
        """Floats or channels-first images are named, not garbled."""
        with pytest.raises(
            ValueError, match=r"images are torch.float32 \(2, 3, 8, 8\); they must be torch.uint8 \[B, H"
        ):
            augment_batch(torch.zeros(2, 3, 8, 8), torch.Generator())


class TestNormalisation:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
    def test_it_is_the_formula(self, dtype, tolerance):
        """(x / 255 - mean) / std per channel; bfloat16 within its rounding."""
        images = split().images
        expected = (images.permute(0, 3, 1, 2).double() / 255 - torch.tensor(STATISTICS.mean).view(3, 1, 1)) / (
            torch.tensor(STATISTICS.std).view(3, 1, 1)
        )

        result = normalise(images, STATISTICS.mean, STATISTICS.std, dtype)
        assert_close(result.double(), expected.double(), rtol=tolerance, atol=2 * tolerance)


class TestGuard:
    def test_the_test_split_is_refused_with_the_reason(self):
        """The exact words, which notebooks show."""
        reported = Batches(split(name="test"), STATISTICS, batch_size=4)
        with pytest.raises(ValueError, match=r".+") as caught:
            refuse_test_split(reported, "calibration")

        assert str(caught.value) == (
            "calibration was given the test split, which is only for reporting: a choice made on it would make the "
            'reported accuracy too good. Use dataset.train or dataset.val ("train+val" for a fixed final recipe).'
        )

    @pytest.mark.parametrize("name", ["train", "val", "train+val"])
    def test_the_others_pass(self, name):
        """Choices are made on them."""
        refuse_test_split(Batches(split(name=name), STATISTICS, batch_size=4), "calibration")
