"""From an image file to pixels: one way for `prepare`, and for a photo that a model is shown later.

Nothing here is drawn at random, and nothing depends on what else there is.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lockstep.errors import first_line
from lockstep.pipeline.data.stream import expecting

# What has transparent places: they are shown over white.
TRANSPARENT = {"RGBA", "RGBa", "LA", "La", "PA"}
# What has no colour.
GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}


@dataclass(frozen=True)
class Look:
    """How images of any size and mode are brought to one.

    Args:
        size: the rows and columns that they get, in pixels; None leaves them as they are.
        resize: `crop` (the middle of the image, scaled to fill), `pad` (the whole image, with black
            beside it) or `stretch` (the whole image, out of proportion).
        colour: `rgb`, `grey`, or `auto`: grey stays grey, and all else is colour.
    """

    size: tuple[int, int] | None = None
    resize: str = "crop"
    colour: str = "auto"

    def words(self) -> dict[str, Any]:
        """Return what a manifest has of it."""
        size = None if self.size is None else list(self.size)
        return {"size": size, "resize": self.resize, "colour": self.colour}

    @classmethod
    def of(cls, words: dict[str, Any]) -> "Look":
        """Return what `words` returned, read from a record."""
        size = words["size"]
        return cls(None if size is None else (size[0], size[1]), words["resize"], words["colour"])


def decode(source: bytes | Path, look: Look, name: str | Path) -> np.ndarray:
    """Return the pixels of an image (uint8, H x W x 3, or H x W x 1 if it is grey).

    It is turned as its EXIF data say, transparent places are white, and 16 bits become 8 by their
    share of the whole range. Scaling is bilinear over all pixels that fall into one.

    Args:
        source: the file, or what is in it.
        look: what to bring it to.
        name: for messages.

    Raises:
        UserError: it is no whole image, or has no range that could become that of 8 bits.
    """
    with expecting(Path(name), "a whole image"):
        try:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file) as image:
                return _pixels(image, look)
        except UnidentifiedImageError:  # which names an object in memory
            raise ValueError("of no form that Pillow knows; save it as JPEG or PNG") from None
        except Image.DecompressionBombError as error:
            raise ValueError(first_line(error)) from None


def _pixels(image: Image.Image, look: Look) -> np.ndarray:
    if look.size is not None:
        # A JPEG may be decoded to an eighth at once: to twice what is wanted, at least, so that
        # scaling has enough to take means of. It may lie on its side.
        side = 2 * max(look.size)
        image.draft(None, (side, side))
    upright = ImageOps.exif_transpose(image)
    colour = look.colour
    if colour == "auto":
        colour = "grey" if upright.mode in GREY else "rgb"
    plain = _of_8_bits(upright).convert("L" if colour == "grey" else "RGB")
    if look.size is not None:
        plain = _resized(plain, look.size[1], look.size[0], look.resize)
    return np.asarray(plain).reshape(plain.height, plain.width, -1)


def _of_8_bits(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits a channel, without transparent places."""
    if image.mode == "F":
        raise ValueError("has pixels of floating point, whose range nobody knows; save 8 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("has pixels of 32 bits, whose range nobody knows; save 8 or 16 bits")
        scaled = (values * 255 + 0x7FFF) // 0xFFFF
        if (clear := image.info.get("transparency")) is not None:
            scaled[values == clear] = 0xFF
        return Image.fromarray(scaled.astype(np.uint8))
    if image.mode in TRANSPARENT or "transparency" in image.info:
        whole = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
    return image


def _resized(image: Image.Image, width: int, height: int, how: str) -> Image.Image:
    method = Image.Resampling.BILINEAR
    if how == "crop":
        return ImageOps.fit(image, (width, height), method)
    if how == "pad":
        return ImageOps.pad(image, (width, height), method)
    return image.resize((width, height), method)


def describe(pixels: np.ndarray) -> str:
    """Return the size and the mode of an image, for a person."""
    height, width, channels = pixels.shape
    return f"{width} x {height} {'grey' if channels == 1 else 'colour'}"


def unlike(kinds: dict[str, tuple[int, str]]) -> str:
    """Return what to do about images of more than one size or mode, or nothing.

    Args:
        kinds: how many images there are, and the first of them, by what `describe` says.
    """
    if len(kinds) <= 1:
        return ""
    found = sorted(kinds.items(), key=lambda item: (-item[1][0], item[0]))
    shown = ", ".join(f"{count} of {kind} ({name})" for kind, (count, name) in found[:5])
    more = f" and {len(found) - 5} more kinds" if len(found) > 5 else ""
    keys = []
    if len({kind.rpartition(" ")[0] for kind in kinds}) > 1:
        keys.append("dataset.size (224, say)")
    if len({kind.rpartition(" ")[2] for kind in kinds}) > 1:
        keys.append("dataset.colour (rgb or grey)")
    return f"images differ: {shown}{more}; set {' and '.join(keys)}"
