"""CIFAR-10's binary archive: parsed by hand, refused when it is not the published one."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest

from deploykit import cifar10
from deploykit.cifar10 import (
    RECORD_BYTES,
    TEST_FILE,
    TRAIN_FILES,
    ArchiveError,
    parse_archive,
    parse_records,
    read_archive,
)
from deploykit.contents import arrange, digests

RECORDS = 20


def records(seed: int) -> bytes:
    """Return a run of random records with valid labels."""
    data = np.random.default_rng(seed).integers(0, 256, (RECORDS, RECORD_BYTES), dtype=np.uint8)
    data[:, 0] = np.arange(RECORDS) % 10
    return data.tobytes()


def write_archive(path, members: dict[str, bytes]):
    """Write a gzip tar archive laid out like CIFAR-10's."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def members(monkeypatch):
    """Return the six files of a small archive."""
    monkeypatch.setattr(cifar10, "MEMBER_BYTES", RECORDS * RECORD_BYTES)
    return {name: records(seed) for seed, name in enumerate((*TRAIN_FILES, TEST_FILE))}


class TestRecords:
    def test_a_record_is_a_label_and_three_planes(self):
        """The first pixel takes byte 1 of each plane, the second the next; rows follow each other."""
        record = np.zeros(RECORD_BYTES, dtype=np.uint8)
        record[[0, 1, 1025, 2049, 2, 33]] = [7, 10, 20, 30, 11, 12]
        images, labels = parse_records(record.tobytes())

        assert labels.tolist() == [7]
        assert images[0, 0, 0].tolist() == [10, 20, 30]
        assert images[0, 0, 1, 0] == 11
        assert images[0, 1, 0, 0] == 12

    def test_the_digest_of_an_image_is_that_of_its_record(self):
        """So images from any source can be compared with the archive's."""
        data = records(0)
        images, labels = parse_records(data)

        assert digests(images, labels)[3] == hashlib.sha256(data[3 * RECORD_BYTES : 4 * RECORD_BYTES]).digest()

    def test_a_label_above_nine_is_refused(self):
        """It would index outside the classes, much later."""
        data = bytearray(records(0))
        data[4 * RECORD_BYTES] = 10
        with pytest.raises(ArchiveError, match="the label of record 4 is 10; CIFAR-10's labels are 0 to 9"):
            parse_records(bytes(data))

    @pytest.mark.parametrize("data", [b"", bytes(RECORD_BYTES - 1), bytes(RECORD_BYTES + 1)])
    def test_a_broken_record_is_refused(self, data):
        """Nothing may shift by a byte unnoticed."""
        with pytest.raises(ArchiveError, match=f"{len(data):,} bytes are not a whole number of records of 3,073 bytes"):
            parse_records(data)


class TestArchive:
    def test_its_six_files_become_training_and_test_images(self, tmp_path, members):
        """In the order of the files' numbers, whatever order the archive has."""
        turned = dict(reversed(members.items())) | {"readme.html": b"ignored"}
        (train, _), (test, labels) = parse_archive(write_archive(tmp_path / "a.tar.gz", turned))

        assert len(train) == 5 * RECORDS
        assert np.array_equal(train[:RECORDS], parse_records(members[TRAIN_FILES[0]])[0])
        assert np.array_equal(test, parse_records(members[TEST_FILE])[0])
        assert labels.dtype == np.int64

    def test_nothing_is_unpacked(self, tmp_path, members):
        """A member that points outside is no danger, because none is written."""
        members["../../escaped.bin"] = b"x"
        archive = write_archive(tmp_path / "a.tar.gz", members)
        parse_archive(archive)

        assert list(tmp_path.iterdir()) == [archive]

    def test_a_missing_file_is_named(self, tmp_path, members):
        """Five of six would silently be a smaller dataset."""
        del members["data_batch_3.bin"]
        with pytest.raises(ArchiveError, match=r"has no data_batch_3.bin; it is not CIFAR-10's binary archive"):
            parse_archive(write_archive(tmp_path / "a.tar.gz", members))

    def test_a_file_of_another_length_is_named(self, tmp_path, members):
        """Before it is read into memory, however large it claims to be."""
        members[TEST_FILE] += b"x"
        with pytest.raises(
            ArchiveError, match=r"test_batch.bin in the archive is 61,461 bytes long; CIFAR-10's files are"
        ):
            parse_archive(write_archive(tmp_path / "a.tar.gz", members))

    @pytest.mark.parametrize("content", [b"", b"<html>", b"\x1f\x8b" + bytes(50)])
    def test_something_else_is_no_archive(self, tmp_path, content):
        """An empty file, a page, a gzip header with nothing behind it."""
        archive = tmp_path / "a.tar.gz"
        archive.write_bytes(content)
        with pytest.raises(ArchiveError, match="cannot be read as a gzip tar archive"):
            parse_archive(archive)

    def test_a_truncated_archive_is_refused(self, tmp_path, members):
        """Cut in the middle of a member."""
        archive = write_archive(tmp_path / "a.tar.gz", members)
        archive.write_bytes(archive.read_bytes()[:200_000])
        with pytest.raises(ArchiveError, match="cannot be read as a gzip tar archive"):
            parse_archive(archive)

    def test_any_other_archive_than_the_published_one_is_refused_before_parsing(self, tmp_path, members):
        """The message names the file, its size and what to do; the file stays."""
        archive = write_archive(tmp_path / "a.tar.gz", members)
        with pytest.raises(ArchiveError) as caught:
            read_archive(archive)

        assert str(caught.value).startswith(
            f"{archive} ({archive.stat().st_size:,} bytes) is not CIFAR-10's binary archive"
        )
        assert str(caught.value).endswith("truncated, damaged or another file; remove it to download it anew.")
        assert archive.exists()

    def test_the_published_checksum_lets_it_in(self, tmp_path, members, monkeypatch):
        """Then its images are arranged like any others."""
        archive = write_archive(tmp_path / "a.tar.gz", members)
        monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())

        assert read_archive(archive).facts == arrange(*parse_archive(archive), cifar10.CLASSES).facts
