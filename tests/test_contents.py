"""Canonical order, validation split, content hash, and the file that keeps them."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from deploykit import contents, places
from deploykit.contents import arrange, cached, content_hash, digests

CLASSES = ("cat", "dog", "emu")


def labelled(count: int, seed: int):
    """Return random images of three classes."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8), np.arange(count) % 3


@pytest.fixture
def train():
    """Return 90 training images."""
    return labelled(90, 0)


@pytest.fixture
def test():
    """Return 30 test images."""
    return labelled(30, 1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return an empty cache folder."""
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(one, other) -> bool:
    """Compare facts and tensors."""
    return one.facts == other.facts and all(one.tensors[name].equal(other.tensors[name]) for name in one.tensors)


class TestOrder:
    def test_a_digest_is_that_of_the_binary_archive_record(self):
        """Label, then the red, the green and the blue plane: worked out by hand for two pixels."""
        image = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)

        assert digests(image[None], np.array([7])) == [hashlib.sha256(bytes([7, 1, 4, 2, 5, 3, 6])).digest()]

    def test_the_content_hash_ignores_the_order(self):
        """It is taken over the sorted digests."""
        assert content_hash([b"a" * 32, b"b" * 32]) == content_hash([b"b" * 32, b"a" * 32])
        assert content_hash([b"a" * 32]) == hashlib.sha256(b"a" * 32).hexdigest()

    def test_the_order_of_the_source_changes_nothing(self, train, test):
        """A shuffled source gives the same splits, tensor for tensor."""
        shuffled = np.random.default_rng(5).permutation(90)

        assert same(arrange(train, test, CLASSES), arrange((train[0][shuffled], train[1][shuffled]), test, CLASSES))

    def test_validation_is_a_tenth_of_each_class_and_apart_from_training(self, train, test):
        """30 images per class: 3 held out, no image in both, none lost."""
        tensors = arrange(train, test, CLASSES).tensors
        kept = {image.numpy().tobytes() for image in tensors["train.images"]}
        held_out = {image.numpy().tobytes() for image in tensors["val.images"]}

        assert tensors["val.labels"].bincount().tolist() == [3, 3, 3]
        assert kept | held_out == {image.tobytes() for image in train[0]}
        assert not kept & held_out

    def test_labels_stay_with_their_images(self, train, test):
        """Sorting moves both."""
        label_of = {image.tobytes(): label for image, label in zip(*train, strict=True)}
        tensors = arrange(train, test, CLASSES).tensors

        for split in ("train", "val"):
            found = [label_of[image.numpy().tobytes()] for image in tensors[f"{split}.images"]]
            assert found == tensors[f"{split}.labels"].tolist()

    def test_mean_and_deviation_are_those_of_all_training_images(self, train, test):
        """NumPy's own, in units of 0..1."""
        facts = arrange(train, test, CLASSES).facts

        assert facts.mean == pytest.approx((train[0] / 255).mean((0, 1, 2)), rel=1e-12)
        assert facts.std == pytest.approx((train[0] / 255).std((0, 1, 2)), rel=1e-12)


class TestRefusals:
    def test_labels_out_of_range_are_counted(self, train, test):
        """Also negative ones, which would index from the end."""
        train[1][:2] = [3, -1]
        with pytest.raises(
            ValueError, match=r"2 training labels are out of range \(the first is 3\); with 3 classes they"
        ):
            arrange(train, test, CLASSES)

    def test_one_class_is_refused(self, train, test):
        """There is nothing to tell apart."""
        with pytest.raises(ValueError, match=r"there is only one class \(cat\); classifying needs at least two"):
            arrange(train, test, ("cat",))

    def test_a_class_with_one_image_is_refused_by_name(self, train, test):
        """It cannot be in training and in validation."""
        keep = np.flatnonzero((train[1] != 2) | (np.arange(90) == 2))
        with pytest.raises(ValueError, match="the class 'emu' has 1 training image"):
            arrange((train[0][keep], train[1][keep]), test, CLASSES)

    def test_images_of_one_colour_are_refused(self, train, test):
        """Their standard deviation of 0 would turn every pixel into infinity."""
        with pytest.raises(ValueError, match="all one colour"):
            arrange((np.zeros_like(train[0]), train[1]), test, CLASSES)


@pytest.mark.usefixtures("cache")
class TestCache:
    def test_the_second_time_nothing_is_built(self, train, test):
        """And what comes back is the same."""
        built = cached("pets", "state", lambda: arrange(train, test, CLASSES))

        assert same(cached("pets", "state", lambda: pytest.fail("built again")), built)

    def test_another_state_builds_again(self, train, test):
        """The folder has changed: the old images are not those."""
        cached("pets", "old", lambda: arrange(train, test, CLASSES))
        built = cached("pets", "new", lambda: arrange(test, train, CLASSES))

        assert len(built.tensors["test.labels"]) == 90

    @pytest.mark.parametrize("kept_bytes", [0, 5, 1000])
    def test_a_truncated_file_is_made_again_and_said(self, train, test, cache, capsys, kept_bytes):
        """A half-copied cache must not stop anybody."""
        built = cached("pets", "state", lambda: arrange(train, test, CLASSES))
        file = cache / "pets.safetensors"
        file.write_bytes(file.read_bytes()[:kept_bytes])

        assert same(cached("pets", "state", lambda: built), built)
        assert "cannot be read" in capsys.readouterr().err

    def test_no_folder_for_it_is_said_and_the_data_still_loads(self, train, test, monkeypatch, capsys):
        """A read-only machine works, slowly."""

        def nowhere():
            raise PermissionError("no folder for caches can be written")

        monkeypatch.setattr(places, "cache_folder", nowhere)
        cached("pets", "state", lambda: arrange(train, test, CLASSES))

        assert capsys.readouterr().err == (
            "The prepared images are not kept (no folder for caches can be written); "
            "loading will be as slow next time.\n"
        )

    def test_what_a_teacher_prepared_in_a_shared_folder_is_used(self, train, test, cache, tmp_path, monkeypatch):
        """A reader who cannot write there builds nothing and keeps no copy."""
        built = cached("pets", "state", lambda: arrange(train, test, CLASSES))
        monkeypatch.setattr(places, "cache_places", lambda: [cache, tmp_path / "own"])
        monkeypatch.setattr(places, "cache_folder", lambda: tmp_path / "own")

        assert same(cached("pets", "state", lambda: pytest.fail("built again")), built)

    def test_what_a_killed_process_left_goes_at_the_next_start(self, train, test, cache):
        """Also when that start finds the images ready."""
        cached("pets", "state", lambda: arrange(train, test, CLASSES))
        code = (
            "import os, sys; from pathlib import Path; from deploykit.places import atomic_write\n"
            "with atomic_write(sys.argv[1]) as partial: partial.touch(); os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", code, cache / "pets.safetensors"], check=False)
        assert len(list(cache.iterdir())) == 2
        cached("pets", "state", lambda: pytest.fail("built again"))

        assert [file.name for file in cache.iterdir()] == ["pets.safetensors"]

    @pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system has no limit on file sizes")
    def test_a_full_disk_leaves_the_old_file_and_loads_all_the_same(self, train, test, cache):
        """Writing fails midway (a limit on file sizes stands for the disk): old cache intact, no debris, a warning."""
        cached("pets", "old", lambda: arrange(train, test, CLASSES))
        before = (cache / "pets.safetensors").read_bytes()
        script = """
            import resource, signal
            import numpy as np
            from deploykit.contents import arrange, cached
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            images = np.random.default_rng(0).integers(0, 256, (90, 4, 4, 3), dtype=np.uint8)
            part = images, np.arange(90) % 3
            print(len(cached("pets", "new", lambda: arrange(part, part, "abc")).tensors["train.labels"]))
        """
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
        )

        assert run.stdout == "81\n"
        assert "The prepared images could not be kept in" in run.stderr
        assert {file.name: file.read_bytes() for file in cache.iterdir()} == {"pets.safetensors": before}


def test_a_change_of_format_invalidates_the_cache(train, test, cache, monkeypatch):
    """Files of an older deploykit are not misread."""
    cached("pets", "state", lambda: arrange(train, test, CLASSES))
    monkeypatch.setattr(contents, "FORMAT", contents.FORMAT + 1)

    assert len(cached("pets", "state", lambda: arrange(test, train, CLASSES)).tensors["test.labels"]) == 90
