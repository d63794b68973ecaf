"""Where the dataset comes from, what falls back to what, and what its splits are."""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
import types

import numpy as np
import pytest
import torch
from pictures import write_folder, write_picture
from PIL import Image
from test_cifar10 import records, write_archive

import deploykit
from deploykit import cifar10, contents, folders, places
from deploykit.data import Batches, Split, load_dataset


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch):
    """An empty checkout, an empty cache, no DEPLOYKIT_DATA, no network, and small embedded pictures."""
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    monkeypatch.setenv("DEPLOYKIT_HOME", str(home))
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DEPLOYKIT_DATA", raising=False)
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(120) % 2

    def generate(seed: int = 0):
        assert seed == 0
        return images[:80], labels[:80], images[80:], labels[80:]

    fake = types.ModuleType("deploykit.shapes")
    fake.__file__, fake.CLASSES, fake.generate = __file__, ("ring", "star"), generate
    monkeypatch.setitem(sys.modules, "deploykit.shapes", fake)
    monkeypatch.setattr(deploykit, "shapes", fake, raising=False)
    return home


@pytest.fixture
def archive(house, monkeypatch):
    """A small archive under data/ that passes for CIFAR-10's."""
    monkeypatch.setattr(cifar10, "MEMBER_BYTES", len(records(0)))
    members = {name: records(seed) for seed, name in enumerate((*cifar10.TRAIN_FILES, cifar10.TEST_FILE))}
    path = write_archive(house / "data" / cifar10.ARCHIVE, members)
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def extract(archive, folder):
    """Write an archive's images as PNG files, under names in another order."""
    for split, (images, labels) in zip(("train", "test"), cifar10.parse_archive(archive), strict=True):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / cifar10.CLASSES[label] / f"{997 * number % 1000:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def know_as_cifar10(archive, monkeypatch):
    """Make the archive's content pass for the published one."""
    facts = cifar10.read_archive(archive).facts
    monkeypatch.setattr(cifar10, "TRAIN_HASH", facts.train_hash)
    monkeypatch.setattr(cifar10, "TEST_HASH", facts.test_hash)


def same(one, other) -> bool:
    """Compare fingerprints and splits, tensor for tensor."""
    return one.fingerprint == other.fingerprint and all(
        getattr(one, split).images.equal(getattr(other, split).images)
        and getattr(one, split).labels.equal(getattr(other, split).labels)
        for split in ("train", "val", "test")
    )


class TestSources:
    def test_a_folder_is_named_by_itself(self, tmp_path):
        """Its classes are its folders; the splits have the promised types."""
        dataset = load_dataset(write_folder(tmp_path / "pets"))

        assert (dataset.name, dataset.classes) == ("pets", ("cat", "dog"))
        assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (36, 4, 10)
        for split in (dataset.train, dataset.val, dataset.test):
            assert split.images.dtype == torch.uint8
            assert split.images.shape[1:] == (32, 32, 3)
            assert split.images.is_contiguous()
            assert split.labels.dtype == torch.int64

    def test_the_archive_and_its_pictures_in_folders_are_the_same_dataset(self, tmp_path, archive, monkeypatch):
        """Same name, same validation images, same order, although files and names differ."""
        know_as_cifar10(archive, monkeypatch)
        from_folder = load_dataset(extract(archive, tmp_path / "renamed"))
        from_archive = load_dataset("cifar10")

        assert from_folder.name == from_archive.name == "cifar10"
        assert same(from_folder, from_archive)

    def test_a_folder_that_only_looks_like_cifar10_is_not_called_so(self, tmp_path, archive):
        """Ten classes of the right names are not enough: the content decides."""
        assert load_dataset(extract(archive, tmp_path / "mine")).name == "mine"

    def test_an_image_size_can_be_chosen(self, tmp_path):
        """And is not confused with what was cached in another one."""
        root = write_folder(tmp_path / "pets")

        assert load_dataset(root).train.images.shape == (36, 32, 32, 3)
        assert load_dataset(root, size=20).train.images.shape == (36, 20, 20, 3)
        with pytest.raises(ValueError, match="size is 0; images need at least 1 pixel"):
            load_dataset(root, size=0)

    def test_auto_takes_the_folder_that_the_variable_names(self, tmp_path, archive, monkeypatch):
        """Before anything under data/."""
        monkeypatch.setenv("DEPLOYKIT_DATA", str(write_folder(tmp_path / "pets")))

        assert archive.exists()
        assert load_dataset().name == "pets"

    def test_a_wrong_variable_is_an_error_and_no_fallback(self, tmp_path, monkeypatch):
        """Who sets it means it."""
        monkeypatch.setenv("DEPLOYKIT_DATA", str(tmp_path / "typo"))
        with pytest.raises(FileNotFoundError, match="typo is not a folder; a dataset is a folder with train/<class>"):
            load_dataset()

    def test_auto_takes_the_archive_under_data(self, archive, capsys):
        """Without a word and without the network."""
        assert load_dataset().name == "cifar10"
        assert archive.exists()
        assert capsys.readouterr().err == ""

    def test_auto_takes_the_folders_under_data(self, house, archive, monkeypatch):
        """data/cifar10/{train,test}, before the archive."""
        know_as_cifar10(archive, monkeypatch)
        extract(archive, house / "data" / "cifar10")

        assert load_dataset().source == "the image folder data/cifar10"

    def test_cifar10_is_found_where_the_variable_points(self, tmp_path, archive, monkeypatch):
        """Also when it is asked for by name."""
        know_as_cifar10(archive, monkeypatch)
        monkeypatch.setenv("DEPLOYKIT_DATA", str(extract(archive, tmp_path / "elsewhere")))

        assert load_dataset("cifar10").source == "the image folder $DEPLOYKIT_DATA"

    def test_without_a_network_auto_goes_on_with_the_embedded_pictures_and_says_so(self, capsys):
        """Once, with the reason."""
        dataset = load_dataset()

        assert (dataset.name, dataset.classes) == ("shapes32", ("ring", "star"))
        assert capsys.readouterr().err == (
            "Downloading CIFAR-10 (170 MB) from its author's page.\n"
            "CIFAR-10 is not at hand, going on with the embedded shapes32. 127.0.0.1:9 cannot be reached: there is no "
            "network, or no way to that server.\n"
        )

    def test_a_damaged_archive_makes_auto_go_on_and_stays_where_it_is(self, archive, capsys):
        """Nothing of the reader's is deleted."""
        archive.write_bytes(archive.read_bytes()[:1000])

        assert load_dataset().name == "shapes32"
        assert "is not CIFAR-10's binary archive" in capsys.readouterr().err
        assert archive.exists()

    def test_the_download_can_be_forbidden(self, capsys):
        """By name that is an error, for auto a fallback that is said."""
        with pytest.raises(FileNotFoundError, match=r"CIFAR-10 is neither in .* and downloading it is switched off"):
            load_dataset("cifar10", download=False)
        assert load_dataset(download=False).name == "shapes32"
        assert "going on with the embedded shapes32" in capsys.readouterr().err

    def test_the_download_ends_in_the_dataset(self, archive, monkeypatch, house):
        """From a server, into data/, into tensors."""
        served = archive.rename(house / "served")
        expected = cifar10.read_archive(served).facts

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(served.stat().st_size))
                self.end_headers()
                self.wfile.write(served.read_bytes())

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{server.server_port}/{cifar10.ARCHIVE}")
            dataset = load_dataset()
            server.shutdown()

        assert (dataset.name, dataset.mean) == ("cifar10", expected.mean)
        assert archive.read_bytes() == served.read_bytes()


class TestCache:
    def test_the_second_time_no_image_is_decoded(self, tmp_path, monkeypatch):
        """And the dataset is the same."""
        root = write_folder(tmp_path / "pets")
        first = load_dataset(root)
        monkeypatch.setattr(folders, "read_images", lambda *_, **__: pytest.fail("decoded again"))

        assert same(first, load_dataset(root))

    def test_a_changed_folder_is_read_again(self, tmp_path):
        """An added image is there the next time."""
        root = write_folder(tmp_path / "pets")
        before = load_dataset(root)
        write_picture(root / "test" / "cat" / "new.png", seed=999)

        assert len(load_dataset(root).test) == len(before.test) + 1

    def test_a_read_only_folder_is_enough(self, tmp_path):
        """Nothing is written beside the reader's images."""
        root = write_folder(tmp_path / "pets")
        before = sorted(root.rglob("*"))
        load_dataset(root)

        assert sorted(root.rglob("*")) == before
        assert [file.suffix for file in places.cache_folder().iterdir()] == [".safetensors"]


class TestSplits:
    def test_train_val_is_both_and_says_so(self):
        """For final runs whose recipe is fixed."""
        dataset = load_dataset("shapes32")

        assert dataset.train_val.name == "train+val"
        assert len(dataset.train_val) == len(dataset.train) + len(dataset.val) == 80

    @pytest.mark.parametrize("taken", [1, 10, 33, 99])
    def test_a_subset_has_the_proportions_of_the_whole(self, taken):
        """70, 20 and 10 in a hundred, to within one image."""
        labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
        split = Split("val", torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(-1, 1, 1, 3), labels)
        subset = split.take(taken, seed=5)

        counts = subset.labels.bincount(minlength=3)
        assert len(subset) == len(set(subset.images[:, 0, 0, 0].tolist())) == taken
        assert ((counts - taken * torch.tensor([0.7, 0.2, 0.1])).abs() <= 1).all()

    def test_a_subset_keeps_labels_with_images_and_the_name(self):
        """A subset of the test split is still guarded."""
        test = load_dataset("shapes32").test
        subset = test.take(15)
        label_of = {
            image.numpy().tobytes(): label.item() for image, label in zip(test.images, test.labels, strict=True)
        }

        assert [label_of[image.numpy().tobytes()] for image in subset.images] == subset.labels.tolist()
        assert subset.name == "test"

    def test_subsets_follow_their_seed(self):
        """The same one again, another one for another seed, all when there are no more."""
        train = load_dataset("shapes32").train

        assert train.take(20).images.equal(train.take(20).images)
        assert not train.take(20).images.equal(train.take(20, seed=1).images)
        assert train.take(10_000) is train
        with pytest.raises(ValueError, match="0 images were asked of the split 'train'; take at least 1"):
            train.take(0)

    def test_a_dataset_gives_its_batches_their_statistics(self):
        """Normalised training images have mean 0 and deviation 1."""
        dataset = load_dataset("shapes32")
        images, _ = next(iter(Batches(dataset.train_val, dataset, batch_size=80)))

        assert images.mean((0, 2, 3)).abs().max() < 1e-5
        assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


class TestRealCifar10:
    @pytest.fixture
    def dataset(self, cifar10_folder, monkeypatch):
        """Return real CIFAR-10, cached as usual."""
        monkeypatch.undo()
        return load_dataset(cifar10_folder)

    def test_it_is_recognised_by_its_content(self, dataset):
        """The constants published for the archive hold for the PNG files."""
        assert dataset.name == "cifar10"
        assert dataset.classes == cifar10.CLASSES
        assert dataset.fingerprint == hashlib.sha256((cifar10.TRAIN_HASH + cifar10.TEST_HASH).encode()).hexdigest()

    def test_its_splits_are_those_of_the_literature(self, dataset):
        """45,000, 5,000 and 10,000, each with as many images of every class."""
        assert dataset.train.labels.bincount().tolist() == [4500] * 10
        assert dataset.val.labels.bincount().tolist() == [500] * 10
        assert dataset.test.labels.bincount().tolist() == [1000] * 10

    def test_its_statistics_are_the_known_ones(self, dataset):
        """The numbers that every CIFAR-10 script quotes."""
        assert dataset.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-5)
        assert dataset.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=5e-5)

    def test_its_validation_images_never_change(self, dataset):
        """A published accuracy on the validation split stays comparable."""
        images, labels = dataset.val.images.numpy(), dataset.val.labels.numpy()

        assert contents.content_hash(contents.digests(images, labels)) == (
            "1a5af4fe3cad7feb3929f203f688464b6b310d813c8bca294392fa6c542b365a"
        )
