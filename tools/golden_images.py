"""Small images made here, with the pixels that Pillow reads from them and the values that an image processor makes.

tests/golden/image: NAME.jpg and NAME.png, and golden.safetensors: rgb_NAME [height, width, 3] u8, what
ImageOps.exif_transpose(Image.open(file)).convert("RGB") gives; resized_N [height, width, 3] u8 with their sizes and
filters in cases.json. Needs Pillow (last used: 13.0) built on libjpeg-turbo.
"""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

RESIZES = [("photo", 96, 121, 3), ("photo", 40, 31, 3), ("photo", 90, 77, 2), ("photo", 33, 20, 2), ("photo", 61, 49, 3),
           ("photo", 17, 47, 1), ("photo", 59, 90, 3)]


def scene(height, width, channels=3, seed=0):
    """Smooth color with edges and grain, so that every coefficient of a JPEG is used."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 90 * np.sin(x / (5 + 3 * c) + c) * np.cos(y / (7 + c)) + 50 * ((x // 9 + y // 13 + c) % 2)
              for c in range(channels)]
    return np.clip(np.stack(planes, -1) + rng.normal(0, 6, (height, width, channels)), 0, 255).astype(np.uint8)


def png(width, height, depth, color, rows, extra=()):
    """A PNG of any kind, written by hand: `rows` are the bytes of each row."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    body = b"".join(b"\0" + row for row in rows)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)) +
            b"".join(chunk(n, d) for n, d in extra) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b""))


def make_images(folder):
    rgb = Image.fromarray(scene(47, 59))
    grey = Image.fromarray(scene(30, 25, 1)[..., 0])

    def save(name, image, **options):
        image.save(folder / name, **options)

    save("photo.jpg", rgb, quality=90)
    save("subsampled_420.jpg", rgb, quality=75, subsampling=2)
    save("subsampled_422.jpg", rgb, quality=75, subsampling=1)
    save("progressive.jpg", rgb, quality=80, progressive=True)
    save("grey.jpg", grey)
    save("cmyk.jpg", Image.fromarray(scene(20, 21, 4), "CMYK"), quality=95)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"orientation_{orientation}.jpg", rgb.resize((11, 7)), exif=exif, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("orientation_6.png", rgb.resize((11, 7)), exif=exif)
    save("rgb.png", rgb.resize((19, 13)))
    save("palette.png", rgb.resize((19, 13)).quantize(11))
    save("palette_transparent.png", rgb.resize((19, 13)).quantize(11), transparency=3)
    save("grey.png", grey)
    save("grey_alpha.png", Image.fromarray(scene(9, 10, 2), "LA"))
    save("rgba.png", Image.fromarray(scene(9, 10, 4), "RGBA"))
    save("bilevel.png", grey.point(lambda v: 255 * (v > 120)).convert("1"))
    random = np.random.default_rng(5)
    for depth in (2, 4):
        rows = [random.integers(0, 256, (13 * depth + 7) // 8, dtype=np.uint8).tobytes() for _ in range(5)]
        (folder / f"grey_{depth}_bits.png").write_bytes(png(13, 5, depth, 0, rows))
    rows = [random.integers(0, 256, 13 * 6, dtype=np.uint8).tobytes() for _ in range(5)]
    (folder / "rgb_16_bits.png").write_bytes(png(13, 5, 16, 2, rows))
    rows = [random.integers(0, 256, 13 * 8, dtype=np.uint8).tobytes() for _ in range(5)]
    (folder / "rgba_16_bits.png").write_bytes(png(13, 5, 16, 6, rows))
    rows = [random.integers(0, 256, 13 * 3, dtype=np.uint8).tobytes() for _ in range(5)]
    (folder / "transparent_color.png").write_bytes(png(13, 5, 8, 2, rows, [(b"tRNS", bytes(6))]))
    # YCCK, as Adobe's programs write it: CMYK with another transform noted in the APP14 marker.
    ycck = bytearray((folder / "cmyk.jpg").read_bytes())
    marker = ycck.find(b"Adobe\0")
    assert marker > 0
    ycck[marker + 11] = 2
    (folder / "ycck.jpg").write_bytes(ycck)
    (folder / "jpeg_named.png").write_bytes((folder / "grey.jpg").read_bytes())


def main(out_dir):
    from safetensors.numpy import save_file
    folder = Path(out_dir) / "image"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.*g"):
        old.unlink()
    make_images(folder)
    golden = {}
    for file in sorted([*folder.glob("*.jpg"), *folder.glob("*.png")]):
        image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        golden[f"rgb_{file.name}"] = np.array(image)
    photo = Image.open(folder / "photo.jpg").convert("RGB")
    cases = []
    for index, (_, width, height, resample) in enumerate(RESIZES):
        golden[f"resized_{index}"] = np.array(photo.resize((width, height), resample))
        cases.append({"width": width, "height": height, "resample": resample})
    save_file(golden, folder / "golden.safetensors")
    (folder / "cases.json").write_text(json.dumps({"resizes": cases}) + "\n")
    (folder / "golden.safetensors").chmod(0o644)
    print(f"image: {len(golden)} arrays")


if __name__ == "__main__":
    import sys
    main(sys.argv[1])
