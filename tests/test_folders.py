"""Image folders: what is read, what is ignored, and what is refused by name."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from pictures import write_folder, write_picture
from PIL import Image

from deploykit.folders import list_images, read_images


def read(root, size=32):
    """List and decode."""
    return read_images(list_images(root), size=size)


def refusal(root, kind=ValueError):
    """Return the error of reading a folder."""
    with pytest.raises(kind) as caught:
        read(root)
    return str(caught.value)


@pytest.fixture
def root(tmp_path):
    """Return a folder of two classes."""
    return write_folder(tmp_path / "pets")


class TestReading:
    def test_many_pictures_are_decoded_by_as_many_processes_as_are_allowed(self, root, monkeypatch):
        """The quota of a service, which joblib does not see, is kept as well."""

        def refuse(n_jobs, **_):
            raise LookupError(f"{n_jobs} processes")

        monkeypatch.setattr("joblib.Parallel", refuse)
        monkeypatch.setattr("deploykit.folders.allowed_threads", lambda: 3)
        monkeypatch.setattr("deploykit.folders.PARALLEL_FROM", 1)

        with pytest.raises(LookupError, match="3 processes"):
            read(root)

    def test_png_files_come_back_pixel_for_pixel_with_the_label_of_their_folder(self, root):
        """Labels index the folders in alphabetical order."""
        images, labels = read(root)["train"]

        assert images.shape == (40, 32, 32, 3)
        assert labels.tolist() == [0] * 20 + [1] * 20
        with Image.open(root / "train" / "dog" / "003.png") as expected:
            assert np.array_equal(images[23], np.asarray(expected))

    @pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".PNG"])
    def test_the_other_formats_are_read_too(self, root, suffix):
        """JPEG and WebP, and suffixes in capitals."""
        write_picture(root / "test" / "cat" / f"other{suffix}")

        assert len(read(root)["test"][1]) == 11

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
    def test_every_colour_mode_becomes_rgb(self, root, mode):
        """Grey, palette and transparent pictures have three channels afterwards."""
        write_picture(root / "test" / "cat" / "mode.png", mode=mode)

        assert read(root)["test"][0].shape == (11, 32, 32, 3)

    def test_sixteen_bit_grey_is_scaled_instead_of_clipped(self, root):
        """PIL's own conversion turns everything above 255 white."""
        Image.fromarray(np.full((32, 32), 0x8000, dtype=np.uint16)).save(root / "test" / "cat" / "zz.png")

        assert (read(root)["test"][0][5] == 0x80).all()

    def test_any_size_is_cropped_to_its_central_square_and_scaled(self, root):
        """A wide picture keeps its middle third, undistorted."""
        wide = np.zeros((50, 150, 3), dtype=np.uint8)
        wide[:, 50:100] = 200
        Image.fromarray(wide).save(root / "test" / "cat" / "zz.png")

        scaled = read(root, size=24)["test"][0][5]
        assert (scaled[:, 1:-1] == 200).all()
        assert (scaled[:, [0, -1]] > 100).all()

    def test_files_that_are_no_images_are_ignored_aloud_and_hidden_ones_silently(self, root, capsys):
        """Notes are reported, .DS_Store is not."""
        (root / "train" / "cat" / "notes.txt").write_text("mine")
        (root / "train" / "cat" / ".DS_Store").write_text("theirs")
        (root / "train" / ".hidden").mkdir()
        images, _ = read(root)["train"]

        assert len(images) == 40
        assert capsys.readouterr().err == (
            f"1 files under {root} are not PNG, JPEG or WebP and are ignored (the first: train/cat/notes.txt).\n"
        )

    def test_class_names_are_text_whatever_they_look_like(self, tmp_path):
        """A folder called like an HTML tag is a class like any other."""
        hostile = "<img src=x onerror=alert(1)>"

        assert list_images(write_folder(tmp_path, (hostile, "dog"))).classes == (hostile, "dog")

    def test_the_state_changes_with_the_files(self, root):
        """Adding, removing or rewriting an image is noticed without opening any."""
        states = [list_images(root).state, list_images(root).state]
        added = write_picture(root / "train" / "cat" / "new.png")
        states.append(list_images(root).state)
        write_picture(added, seed=5)
        states.append(list_images(root).state)
        added.unlink()
        states.append(list_images(root).state)

        assert states[0] == states[1] == states[4]
        assert len({*states[1:4]}) == 3


class TestRefusals:
    @pytest.mark.parametrize("content", [b"", b"not a picture", b"<html>404</html>", b"\x89PNG\r\n\x1a\n"])
    def test_a_broken_image_is_named(self, root, content):
        """Empty, text or half a header: the message has the path."""
        broken = root / "train" / "cat" / "broken.png"
        broken.write_bytes(content)

        reason = "the file is empty" if not content else "the content is not a PNG, JPEG or WebP image"
        assert refusal(root) == (
            f"1 of the images under {root} cannot be used; mend or remove them:\n  {broken}: {reason}"
        )

    def test_a_truncated_image_is_named(self, root):
        """The header is whole, the pixels are not."""
        broken = root / "train" / "cat" / "003.png"
        broken.write_bytes(broken.read_bytes()[:1500])

        assert f"{broken}: image file is truncated" in refusal(root)

    def test_many_broken_images_are_counted_and_the_first_five_named(self, root):
        """A long list would hide the message."""
        for number in range(7):
            (root / "test" / "dog" / f"{number:03}.png").write_bytes(b"")

        message = refusal(root)
        assert message.startswith("7 of the images under")
        assert message.endswith("  … and 2 more")

    @pytest.mark.parametrize("side", [4001, 12_000, 20_000])
    def test_a_huge_image_is_refused_from_its_header(self, root, side):
        """The file has no pixels at all: had it been decoded, the message would be another one."""
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
        )
        (root / "test" / "cat" / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)

        message = refusal(root)
        assert "huge.png: it has" in message
        assert message.endswith(("more than 16 million pixels", "more than 16 million"))

    def test_another_format_behind_an_image_suffix_is_not_opened(self, root):
        """Only the decoders of PNG, JPEG and WebP ever see a file."""
        Image.new("RGB", (8, 8)).save(root / "train" / "cat" / "sly.png", format="TIFF")

        assert "sly.png: the content is not a PNG, JPEG or WebP image" in refusal(root)

    def test_an_empty_class_folder_is_named(self, root):
        """Silently it would become a class that nothing belongs to."""
        (root / "train" / "emu").mkdir()

        assert (
            refusal(root) == f"{root / 'train' / 'emu'} has no PNG, JPEG or WebP file; fill or remove this class folder"
        )

    def test_a_single_class_is_refused(self, tmp_path):
        """There is nothing to tell apart."""
        root = write_folder(tmp_path, ("cat",))

        assert refusal(root) == (
            f"{root / 'train'} has only the class 'cat'; classifying needs at least two folders of images"
        )

    def test_a_class_that_only_the_test_folder_has_is_named(self, root):
        """Labels would otherwise mean different classes in the two folders."""
        write_picture(root / "test" / "bat" / "1.png")

        assert refusal(root) == (
            f"{root}: test has the class 'bat' and train has not; a class must have training images to be learnt"
        )

    @pytest.mark.parametrize("missing", ["train", "test"])
    def test_both_folders_are_required(self, root, missing):
        """The message shows the layout."""
        (root / missing).rename(root / "elsewhere")

        assert refusal(root, FileNotFoundError) == (
            f"{root / missing} is not a folder; "
            "a dataset is a folder with train/<class>/<image> and test/<class>/<image>"
        )

    def test_more_than_the_memory_holds_is_refused_before_decoding(self, root):
        """50 images of 100,000 x 100,000 pixels."""
        with pytest.raises(ValueError, match=r"50 images of 100000 x 100000 pixels need 2794.0 GiB of memory"):
            read(root, size=100_000)
