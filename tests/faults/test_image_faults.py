"F13: what a broken, huge or odd image file may do to a reader: give the right picture, or one `ImageError` that begins with the file's name."
import io
import random
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from hclab.data.images import MAX_PIXELS, ImageError, encode_depth, encode_image, encode_labels, open_image, read_depth, read_image, read_labels

Y, X = np.mgrid[:37, :53]
RGB = np.stack([X * 4, Y * 6, 255 - X * 4], -1).astype(np.uint8)


def file_of(image, **options):
    out = io.BytesIO()
    image.save(out, **options)
    return out.getvalue()


def png(width, height, bits, colour, rows, extra=b""):
    "A PNG written by hand, so that no encoder decides what is in it. rows: bytes of each row, unfiltered."
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)) + extra + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r for r in rows))) + chunk(b"IEND", b"")


def refused(read, *args, name="folder/a.jpg", **kwargs):
    with pytest.raises(ImageError) as e: read(*args, name=name, **kwargs)
    assert str(e.value).startswith(f"{name}: "), e.value
    return str(e.value)


GOOD = {"png": file_of(Image.fromarray(RGB), format="PNG"), "jpeg": file_of(Image.fromarray(RGB), format="JPEG", quality=95), "progressive": file_of(Image.fromarray(RGB), format="JPEG", quality=95, progressive=True),
        "webp": file_of(Image.fromarray(RGB), format="WEBP", lossless=True), "bmp": file_of(Image.fromarray(RGB), format="BMP"), "tiff": file_of(Image.fromarray(RGB), format="TIFF"),
        "gif": file_of(Image.fromarray(RGB), format="GIF"), "depth": encode_depth(torch.from_numpy(X * .01)[None], .001), "labels": encode_labels(torch.from_numpy(X % 20))}
READ = {"depth": lambda data, **k: read_depth(data, .001, **k), "labels": read_labels}


# ---- pictures that are right ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "tiff"])
def test_lossless_formats_give_the_very_bytes(kind, tmp_path):
    (tmp_path / "a.jpg").write_bytes(GOOD[kind])          # the content decides, not the ending
    want = torch.from_numpy(RGB).permute(2, 0, 1).double() / 255
    for source in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), GOOD[kind], bytearray(GOOD[kind]), memoryview(GOOD[kind])):
        got = read_image(source)
        assert got.dtype == torch.float32 and got.is_contiguous() and got.shape == (3, 37, 53) and (got.double() - want).abs().max() < 1e-7


def test_one_pixel():
    assert torch.equal(read_image(file_of(Image.new("RGB", (1, 1), (255, 0, 51)), format="PNG")), torch.tensor([1, 0, .2]).view(3, 1, 1))


@pytest.mark.parametrize("tag", range(1, 9))
def test_all_eight_turns_of_exif(tag):
    "The turn worked by hand: tag n says where the stored first row and column lie in the picture."
    exif = Image.Exif()
    exif[0x0112] = tag
    got = read_image(file_of(Image.fromarray(RGB), format="PNG", exif=exif))
    a = RGB.transpose(2, 0, 1)
    mended = {1: a, 2: a[:, :, ::-1], 3: a[:, ::-1, ::-1], 4: a[:, ::-1], 5: a.transpose(0, 2, 1), 6: a.transpose(0, 2, 1)[:, :, ::-1], 7: a[:, ::-1, ::-1].transpose(0, 2, 1), 8: a.transpose(0, 2, 1)[:, ::-1]}[tag]
    assert np.array_equal((got * 255).round().numpy().astype(np.uint8), mended)
    assert read_image(file_of(Image.fromarray(RGB), format="PNG", exif=exif), orient=False).shape == (3, 37, 53)


def test_grey_palette_and_one_bit():
    grey = (X * 4).astype(np.uint8)
    got = read_image(file_of(Image.fromarray(grey), format="PNG"))
    assert torch.equal(got[0], got[2]) and torch.equal(got[1], torch.from_numpy(grey) / 255)
    got = read_image(file_of(Image.fromarray(X > 20), format="PNG"))
    assert torch.equal(got[0], torch.from_numpy(X > 20).float())
    palette = png(2, 1, 8, 3, [b"\1\0"], struct.pack(">I", 6) + b"PLTE" + b"\xff\0\0\0\0\xff" + struct.pack(">I", zlib.crc32(b"PLTE\xff\0\0\0\0\xff")))
    assert read_image(palette)[:, 0].T.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_transparency_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = (200, 100, 0, 255), (200, 100, 0, 0), (200, 100, 0, 51)      # 51 of 255 is a fifth
    got = read_image(file_of(Image.fromarray(rgba), format="PNG"))[:, 0].T * 255
    assert torch.allclose(got, torch.tensor([[200., 100, 0], [255, 255, 255], [244, 224, 204]]), atol=1e-3)
    grey = read_image(file_of(Image.merge("LA", [Image.new("L", (2, 1), 0), Image.fromarray(np.array([[255, 0]], np.uint8))]), format="PNG"))
    assert grey[:, 0].tolist() == [[0, 1]] * 3
    key = read_image(file_of(Image.fromarray(RGB), format="PNG", transparency=(0, 0, 255)))
    assert key[:, 0, 0].tolist() == [1, 1, 1] and torch.allclose(key[:, 1, 0], torch.tensor([0, 6 / 255, 1]))


def test_cmyk_and_its_inverted_form():
    "Ink (c, m, y, k) leaves (1 - c)(1 - k) of red; Adobe's JPEGs store the inks inverted and say so, and Pillow writes that form."
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:] = 255, 0, 0, 128
    for data in (file_of(Image.fromarray(inks, "CMYK"), format="TIFF"), file_of(Image.fromarray(inks, "CMYK"), format="JPEG", quality=100)):
        assert torch.allclose(read_image(data)[:, 8, 8], torch.tensor([0, 127 / 255, 127 / 255]), atol=.02)


def test_sixteen_bits_are_not_clipped():
    rows = [struct.pack(">53H", *(int(v) * 1200 for v in range(53)))]
    grey = read_image(png(53, 1, 16, 0, rows))
    assert torch.allclose(grey[1, 0], torch.arange(53) * 1200 / 65_535)
    colour = read_image(png(2, 1, 16, 2, [struct.pack(">6H", 65_535, 0, 32_896, 257, 65_280, 0)]))
    assert (colour[:, 0].T - torch.tensor([[65_535, 0, 32_896], [257, 65_280, 0]]) / 65_535).abs().max() <= 1 / 255, "8 bits a colour are kept"


# ---- depth and labels -------------------------------------------------------------------------------------------------------

def test_depth_by_hand():
    data = png(3, 1, 16, 0, [struct.pack(">3H", 0, 1234, 65_535)])
    assert read_depth(data, .001)[0, 0].tolist() == torch.tensor([0, 1.234, 65.535]).tolist()
    assert read_depth(data, 1e-4).tolist()[0][0][1] == pytest.approx(.1234)


@pytest.mark.parametrize("unit", [0, -1, 2, float("nan"), float("inf"), "0.001", None])
def test_depth_needs_its_unit(unit):
    with pytest.raises(ImageError, match="metres of one count"): read_depth(GOOD["depth"], unit)


def test_depth_refuses_pictures_of_depth():
    for data in (GOOD["png"], file_of(Image.fromarray((X * 4).astype(np.uint8)), format="PNG"), file_of(Image.fromarray((X * 4).astype(np.uint8)).convert("P"), format="PNG")): assert "16 bits" in refused(read_depth, data, .001)
    assert "from PNG" in refused(read_depth, GOOD["jpeg"], .001)
    assert "unit=0.001" in refused(read_depth, GOOD["depth"], 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colour", [0, 3])
def test_labels_of_every_depth(bits, colour, tmp_path):
    "Grey (0) and palette (3) PNG with 1 to 8 bits, packed by hand: the stored numbers come out."
    per, most = 8 // bits, 2**bits - 1
    values = [i % (most + 1) for i in range(16)]
    packed = bytes(sum(v << (8 - bits * (k + 1)) for k, v in enumerate(values[i:i + per])) for i in range(0, 16, per))
    table = b"PLTE" + bytes(c for i in range(2**bits) for c in (255 - i % 256, 3 * i % 256, 7))
    data = png(16, 1, bits, colour, [packed], struct.pack(">I", len(table) - 4) + table + struct.pack(">I", zlib.crc32(table)) if colour == 3 else b"")
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, memoryview(data), tmp_path / "a.png"): assert read_labels(source).tolist() == [values]


def test_labels_of_16_bits_and_transparent_palettes():
    assert read_labels(png(3, 1, 16, 0, [struct.pack(">3H", 0, 300, 65_535)])).tolist() == [[0, 300, 65_535]]
    image = Image.fromarray((X % 5).astype(np.uint8)).copy()
    image.putpalette([9 * i for i in range(15)])
    assert torch.equal(read_labels(file_of(image, format="PNG", transparency=0)), torch.from_numpy(X % 5))


def test_labels_refuse_colours_and_jpeg():
    assert "picture of labels" in refused(read_labels, GOOD["png"])
    for kind in ("jpeg", "gif", "bmp"): assert "from PNG" in refused(read_labels, GOOD[kind])


# ---- files that are none ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("read", [read_image, read_labels, lambda s, **k: read_depth(s, .001, **k)], ids=["image", "labels", "depth"])
@pytest.mark.parametrize("data, words", [(b"", "it is empty"), (b"<!DOCTYPE html><html>404", "HTML"), (b"\xef\xbb\xbf  <html>", "HTML"), (b'{"error": 403}', "JSON"), (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
                                         (b"PK\x03\x04" + b"\0" * 50, "zip"), (b"\x00" * 40, "film"), (b"walk", "JPEG"), (b"\xff\xd8\xff", "damaged|no picture"), (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "JPEG")])
def test_files_of_another_kind(read, data, words, tmp_path):
    assert re.search(words, refused(read, data))
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=re.escape(f"{tmp_path / 'a.jpg'}: ")): read(tmp_path / "a.jpg")


def test_no_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(OSError, match=path.name): read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", GOOD)
def test_cut_anywhere_it_is_whole_or_refused(kind):
    read, good = READ.get(kind, read_image), GOOD[kind]
    whole = read(good)
    cuts = range(0, len(good), max(1, len(good) // 150))
    refusals = 0
    for n in cuts:
        try: assert torch.equal(read(good[:n], name="a"), whole), f"{n} of {len(good)} bytes gave another picture"
        except ImageError as e:
            assert str(e).startswith("a: ")
            refusals += 1
    assert refusals >= .8 * len(cuts)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", GOOD)
def test_flipped_bits(kind):
    "A PNG with a flipped bit is refused or whole, since it has checksums; nothing else than `ImageError` comes out of any format."
    read, good, rng = READ.get(kind, read_image), GOOD[kind], random.Random(kind)
    whole = read(good)
    for _ in range(150):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try: got = read(bytes(data), name="a")
        except ImageError as e: assert str(e).startswith("a: ")
        else:
            assert torch.isfinite(got.float()).all() and got.numel() <= 3 * MAX_PIXELS
            if kind in ("png", "depth", "labels"): assert torch.equal(got, whole), "a damaged PNG passed for a sound one"


def test_half_a_picture_stays_refused_when_pillow_is_told_to_show_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "LOAD_TRUNCATED_IMAGES" in refused(read_image, GOOD["jpeg"][:-200])


# ---- size -------------------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width, height", [(20_000, 20_000), (10_000, 9_000), (8_193, 8_192), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_a_bomb_is_refused_before_it_is_decoded(width, height):
    data = png(width, height, 8, 2, [b"\0" * 100])
    tracemalloc.start()
    try:
        assert "pixels" in refused(read_image, data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally: tracemalloc.stop()


def test_the_limit_is_an_argument():
    assert "1,960" in refused(read_image, GOOD["png"], max_pixels=1960) and read_image(GOOD["png"], max_pixels=37 * 53).shape == (3, 37, 53)


def test_a_bomb_in_a_text_chunk():
    text = b"a\0\0" + zlib.compress(b"\0" * (200 << 20), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    refused(read_image, png(1, 1, 8, 0, [b"\0"], chunk))


def test_animations_are_refused_and_second_views_left_aside():
    frames = [Image.fromarray(np.roll(RGB, 9 * i, 1)) for i in range(3)]
    for format in ("GIF", "WEBP", "PNG", "TIFF"): assert "3 frames" in refused(read_image, file_of(frames[0], format=format, save_all=True, append_images=frames[1:]))
    phone = file_of(frames[0], format="MPO", save_all=True, append_images=frames[1:], quality=95)
    assert (read_image(phone) - read_image(GOOD["jpeg"])).abs().max() < .02


def test_formats_that_run_programs_are_not_opened():
    eps = file_of(Image.fromarray(RGB), format="EPS")
    assert Image.open(io.BytesIO(eps)).format == "EPS" and "no picture" in refused(read_image, eps)


@pytest.mark.parametrize("mode", ["F", "LAB", "I"])
def test_modes_without_a_known_white(mode):
    image = Image.fromarray(np.full((4, 4), 70_000, np.int32)) if mode == "I" else Image.new(mode, (4, 4))
    assert ("grey from" if mode == "I" else "not fixed") in refused(read_image, file_of(image, format="TIFF"))


# ---- writing ----------------------------------------------------------------------------------------------------------------

def test_what_is_written_is_read_by_others():
    "Pillow and the standard library see what was meant, not only our own readers."
    with Image.open(io.BytesIO(GOOD["depth"])) as image: assert np.array_equal(np.array(image), (X * 10).astype(np.uint16)) and image.mode in ("I;16", "I")
    assert GOOD["depth"][24:26] == b"\x10\0" and GOOD["labels"][24:26] == b"\x08\0"
    assert encode_labels(torch.full((2, 2), 256))[24:26] == b"\x10\0"
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    with Image.open(io.BytesIO(encode_image(image))) as got: assert np.abs(np.array(got) / 255 - image.permute(1, 2, 0).numpy()).max() <= .5 / 255 + 1e-6
    assert open_image(encode_image(image, "JPEG")).format == "JPEG"


@pytest.mark.parametrize("write, value", [(encode_image, torch.full((3, 2, 2), 1.01)), (encode_image, torch.full((3, 2, 2), float("nan"))), (encode_image, torch.zeros(2, 2, 3)), (encode_image, torch.zeros(3, 0, 2)), (encode_image, torch.zeros(3, 2, 2, dtype=torch.uint8)),
                                          (lambda d: encode_depth(d, .001), torch.full((1, 2, 2), 65.6)), (lambda d: encode_depth(d, .001), torch.full((1, 2, 2), -.1)), (lambda d: encode_depth(d, .001), torch.full((1, 2, 2), float("inf"))),
                                          (lambda d: encode_depth(d, .001), torch.zeros(2, 2)), (encode_labels, torch.full((2, 2), -1)), (encode_labels, torch.full((2, 2), 65_536)), (encode_labels, torch.zeros(2, 2)), (encode_labels, torch.zeros(1, 2, 2, dtype=torch.int64))])
def test_what_does_not_fit_is_not_written(write, value):
    with pytest.raises(ImageError): write(value)
