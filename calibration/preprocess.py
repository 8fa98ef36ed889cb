"""The preprocessing contract: how a file becomes the tensor that a model takes.

::

    pixels --orientation--> upright --color--> uint8 [H,W,C] --resize, crop--> uint8 [h,w,C]
    tensor[c] = (pixels[c] * scale - mean[c]) / std[c]          float32 [C,h,w]

or, for a model that normalises by itself, the uint8 [h,w,C] as they are (:mod:`calibration.pixel_contract`).

The arithmetic is that of torchvision's classification transforms (Resize with antialias on a PIL image,
CenterCrop, ToDtype(scale=True), Normalize), operation by operation in float32. One contract serves
calibration, evaluation, the bundle and the server; :meth:`Preprocessing.sha256` is its name in everything
made with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from calibration.checks import (
    check_element,
    check_geometry,
    check_scaling,
    is_count,
    numbers_field,
    refusal,
    size_field,
)
from calibration.pixels import crop_center, resize_shorter, to_rgb
from runtimes.errors import DataError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Crop = Literal["center", "none"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
Color = Literal["RGB", "BGR", "L", "raw"]
Orientation = Literal["exif", "none"]
Layout = Literal["NCHW", "NHWC"]
Element = Literal["float32", "uint8"]
Array = npt.NDArray[Any]

_CHOICES: dict[str, tuple[str, ...]] = {
    "crop": get_args(Crop),
    "interpolation": get_args(Interpolation),
    "color": get_args(Color),
    "orientation": get_args(Orientation),
    "layout": get_args(Layout),
    "dtype": get_args(Element),
}
_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}


@dataclass(frozen=True)
class Preprocessing:
    """How a file becomes a tensor; valid by construction, equal to another when every field is.

    Attributes:
        size: Height and width of the tensor in pixels; ``None`` takes each image's own size.
        resize: Length in pixels that the shorter side is scaled to, before the crop; ``None`` for no resize.
        crop: ``"center"`` cuts ``size`` out of the middle; ``"none"`` demands images that already have it.
        interpolation: Filter of the resize; all but ``"nearest"`` are antialiased, as Pillow does.
        color: Channels of the tensor in order; ``"raw"`` for models that no image file can feed, only arrays.
        scale: Factor on the 8-bit values, before ``mean`` is taken off.
        mean: One value for each channel of the tensor, in its order and in scaled units.
        std: One value for each channel, greater than 0, in scaled units.
        orientation: ``"exif"`` turns photographs upright first; ``"none"`` takes pixels as stored.
        layout: Order of the axes; ``"NHWC"`` with uint8, ``"NCHW"`` with float32.
        dtype: Element type of the tensor; uint8 is the pixels themselves, with scale 1, mean 0 and std 1.

    Raises:
        InputError: A field has a value that it cannot take, or two fields contradict each other.
    """

    size: tuple[int, int] | None
    resize: int | None
    crop: Crop
    interpolation: Interpolation
    color: Color
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    orientation: Orientation = "exif"
    layout: Layout = "NCHW"
    dtype: Element = "float32"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise refusal(name, getattr(self, name), f"one of {', '.join(allowed)}")
        # One form for each value, so that equal contracts have equal hashes whatever they were written with.
        object.__setattr__(self, "scale", numbers_field("scale", [self.scale])[0])
        for name in ("mean", "std"):
            object.__setattr__(self, name, numbers_field(name, getattr(self, name)))
        if self.size is not None:
            object.__setattr__(self, "size", size_field(self.size))
        check_scaling(self.scale, self.mean, self.std, self.channels)
        check_geometry(self.size, self.resize, self.crop, self.color)
        check_element(self.dtype, self.layout, (self.scale, *self.mean, *self.std), self.channels)

    @property
    def channels(self) -> int:
        """Number of channels of the tensor."""
        return _CHANNELS.get(self.color, len(self.mean))

    @property
    def any_size(self) -> bool:
        """Whether pictures are taken as they are, each of its own size: the model resizes them by itself."""
        return self.dtype == "uint8" and self.size is None and self.resize is None

    def to_json(self) -> dict[str, Any]:
        """The contract as values that ``json.dump`` takes; :meth:`from_json` reads them back."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """The contract that :meth:`to_json` wrote.

        Args:
            value: Every field by its name. None may be missing: a default would let two releases read one
                file as two contracts.

        Raises:
            InputError: A key is unknown or missing, or a value cannot be used.
        """
        if not isinstance(value, Mapping):
            raise refusal("the contract", value, "an object with the fields of a contract")
        known = {field.name for field in fields(cls)}
        unknown, missing = set(map(str, value)) - known, known - set(value)
        if unknown or missing:
            found = [f"unknown key {name}" for name in sorted(unknown)]
            found += [f"missing key {name}" for name in sorted(missing)]
            raise InputError(f"preprocessing: {', '.join(found)}: the keys are {', '.join(sorted(known))}")
        return cls(**value)

    def sha256(self) -> str:
        """SHA-256 of the canonical JSON (sorted keys, no spaces) as 64 hex digits."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def with_overrides(
        self,
        *,
        size: tuple[int, int] | None = None,
        resize: int | None = None,
        crop: Crop | None = None,
        interpolation: Interpolation | None = None,
        color: Color | None = None,
        scale: float | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        orientation: Orientation | None = None,
    ) -> Preprocessing:
        """This contract with the given fields changed, as options of a command line do.

        ``None`` keeps a field; ``dataclasses.replace`` is the way to set one to ``None``.

        Raises:
            InputError: The fields contradict each other.
        """
        changes: dict[str, Any] = {
            "size": size,
            "resize": resize,
            "crop": crop,
            "interpolation": interpolation,
            "color": color,
            "scale": scale,
            "mean": mean,
            "std": std,
            "orientation": orientation,
        }
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def for_input(self, channels: int, height: int | None = None, width: int | None = None) -> Preprocessing:
        """This contract fitted to a model's input of ``[N, channels, height, width]``.

        The resize keeps its ratio to the crop (256/224 for ``imagenet``). Between 1 and 3 channels every mean
        and std becomes the average over the channels, because grey is a blend of them. Any other channel
        count gives ``color="raw"`` with mean 0 and std 1: only arrays can be fed.

        Args:
            channels: Channels of the input.
            height: Height of the input in pixels; ``None``, with ``width``, keeps the size of this contract.
            width: Width of the input in pixels.

        Raises:
            InputError: A count is less than 1, or only one of height and width is given.
        """
        if not is_count(channels):
            raise refusal("channels", channels, "a whole number, at least 1")
        if (height is None) != (width is None):
            raise InputError(f"preprocessing: height is {height} and width is {width}: give both or neither")
        fitted = self
        if channels in (1, 3) and channels != self.channels and self.color != "raw":
            mean, std = (fmean(self.mean),) * channels, (fmean(self.std),) * channels
            fitted = replace(fitted, color="L" if channels == 1 else "RGB", mean=mean, std=std)
        elif channels != self.channels:
            mean, std = (0.0,) * channels, (1.0,) * channels
            fitted = replace(fitted, color="raw", mean=mean, std=std, resize=None, crop="none")
        if height is None or width is None:
            return fitted
        size, resize = size_field((height, width)), fitted.resize
        if resize is not None and fitted.size is not None:
            resize = round(max(size) * resize / max(fitted.size))
        return replace(fitted, size=size, resize=resize)

    def apply(self, image: Image) -> Array:
        """The tensor of one image.

        Alpha is dropped, not composited (as ``convert("RGB")`` does; a palette with transparency likewise);
        16-bit grey keeps its high byte; CMYK goes through Pillow's uncalibrated conversion.

        Args:
            image: An image of any mode that Pillow reads, except floating point.

        Returns:
            float32 array of shape ``[C, H, W]``, or uint8 of ``[H, W, C]``: as ``dtype`` and ``layout`` say.

        Raises:
            DataError: The image has pixels that cannot be converted, or does not have the size demanded.
        """
        return self._finished(self._pixels(image))

    def apply_pixels(self, pixels: npt.NDArray[np.uint8]) -> Array:
        """The tensor of one decoded picture.

        Args:
            pixels: uint8 array of shape ``[H, W]`` (grey), ``[H, W, 1]``, ``[H, W, 3]`` in RGB order, or for
                ``color="raw"`` ``[H, W, C]`` in the order of the tensor.

        Returns:
            As :meth:`apply`.

        Raises:
            DataError: The array is not of these shapes, or does not have the size demanded.
        """
        from PIL import Image

        raw = self.color == "raw"
        shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
        if len(shape) != 3 or shape[2] not in ((self.channels,) if raw else (1, 3)):
            last = str(self.channels) if raw else "1 or 3"
            raise DataError(f"pixels have the shape {pixels.shape}: give [H,W,C] with C = {last}")
        if not raw:
            return self.apply(Image.fromarray(pixels.reshape(shape[:2]) if shape[2] == 1 else pixels))
        self.check_size(shape[0], shape[1])
        return self._finished(pixels.reshape(shape))

    def check_size(self, height: int, width: int) -> None:
        """Refuse a picture of ``height`` x ``width`` pixels that this contract would have to reshape.

        Raises:
            DataError: The size is not the one that the contract names.
        """
        if self.size is not None and (height, width) != self.size:
            raise DataError(
                f"image is {width}x{height}, the model takes {self.size[1]}x{self.size[0]} without resize: "
                f"give images of that size, or a contract with resize and crop center"
            )

    def _pixels(self, image: Image) -> npt.NDArray[np.uint8]:
        """uint8 ``[H, W, C]``: upright, in colour order, resized and cropped."""
        from PIL import ImageOps

        if self.color == "raw":
            raise DataError(f"an image cannot feed a model of {self.channels} channels: give a .npy array")
        upright = ImageOps.exif_transpose(image) if self.orientation == "exif" else image
        shaped = to_rgb(upright)
        if self.color == "L":
            shaped = shaped.convert("L")
        shaped = self.shape(shaped)
        pixels = np.asarray(shaped, dtype=np.uint8).reshape(shaped.height, shaped.width, self.channels)
        return pixels[:, :, ::-1] if self.color == "BGR" else pixels

    def shape(self, image: Image) -> Image:
        """An upright image in mode RGB or L, resized and cropped.

        Raises:
            DataError: It does not have the size demanded.
        """
        if self.resize is not None:
            image = resize_shorter(image, self.resize, self.interpolation)
        if self.crop == "center" and self.size is not None:
            image = crop_center(image, *self.size)
        self.check_size(image.height, image.width)
        return image

    def normalise(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 ``[..., H, W, C]`` in the order of the tensor -> float32 ``[..., C, H, W]``."""
        # Scale, then subtract, then divide, each rounded to float32: folding them into one multiply and add
        # would differ from the training code in the last bits.
        scaled = pixels.astype(np.float32) * np.float32(self.scale)
        normalised = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(np.moveaxis(normalised, -1, -3))  # [...,H,W,C] -> [...,C,H,W]

    def _finished(self, pixels: npt.NDArray[np.uint8]) -> Array:
        return np.ascontiguousarray(pixels) if self.dtype == "uint8" else self.normalise(pixels)


_IMAGENET = Preprocessing(
    size=(224, 224),
    resize=256,
    crop="center",
    interpolation="bilinear",
    color="RGB",
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)

PRESETS: Mapping[str, Preprocessing] = {
    "imagenet": _IMAGENET,
    # The widely used public training scripts of CIFAR-10 ResNets reuse the ImageNet statistics, so
    # checkpoints made with them need these; the owner of any other checkpoint overrides mean and std.
    "cifar": replace(_IMAGENET, size=(32, 32), resize=None, crop="none"),
}
