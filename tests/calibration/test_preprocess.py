import json
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from calibration.preprocess import PRESETS, Preprocessing
from runtimes.errors import DataError, InputError

IMAGENET, CIFAR = PRESETS["imagenet"], PRESETS["cifar"]
# The pixels alone: (x * 1 - 0) / 1 is exact, so any difference is one of resize, crop or colour.
UNSCALED = replace(IMAGENET, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
OWN_SIZE = replace(UNSCALED, size=None, resize=None, crop="none")


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def torchvision_pixels(image, resize, size, mode=InterpolationMode.BILINEAR):
    shape = v2.Compose([v2.Resize(resize, interpolation=mode, antialias=True), v2.CenterCrop(size)])
    return v2.functional.pil_to_tensor(shape(image)).numpy()


def preset_fields(**changes):
    return IMAGENET.to_json() | changes


# --- agreement with torchvision -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    more=st.integers(0, 20),
    mode=st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
def test_resize_and_crop_give_the_same_bytes_as_torchvision(height, width, crop, more, mode):
    image, resize = noise(height, width), max(crop) + more
    contract = replace(UNSCALED, size=crop, resize=resize, interpolation=mode)
    expected = torchvision_pixels(image, resize, crop, InterpolationMode(mode))
    np.testing.assert_array_equal(contract.apply(image), expected.astype(np.float32))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (224, 224), (256, 257)])
def test_the_imagenet_preset_equals_the_torchvision_preset_within_one_ulp(height, width):
    pipeline = v2.Compose(
        [
            v2.Resize(256, antialias=True),
            v2.CenterCrop(224),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    image = noise(height, width)
    tensor = IMAGENET.apply(image)
    assert tensor.shape == (3, 224, 224)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    np.testing.assert_array_max_ulp(tensor, pipeline(image).numpy(), maxulp=1)


def test_a_grey_contract_equals_torchvision_on_the_grey_image():
    image = noise(60, 80)
    contract = replace(UNSCALED.for_input(1, 32, 32), resize=40)
    np.testing.assert_array_equal(contract.apply(image), torchvision_pixels(image.convert("L"), 40, 32))


def test_bgr_is_rgb_with_its_channels_reversed():
    image = noise(8, 9)
    reversed_contract = replace(OWN_SIZE, color="BGR")
    np.testing.assert_array_equal(reversed_contract.apply(image), OWN_SIZE.apply(image)[::-1])


def test_mean_and_std_follow_the_order_of_the_tensor():
    contract = replace(OWN_SIZE, color="BGR", mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    pixel = contract.apply(Image.new("RGB", (1, 1), (11, 22, 33)))
    assert pixel.ravel().tolist() == [32.0, 10.0, 2.0]


# --- orientation and modes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path, orientation):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    # How a camera stores a picture that has to be shown in this orientation.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(OWN_SIZE.apply(image)[0], upright)
        np.testing.assert_array_equal(replace(OWN_SIZE, orientation="none").apply(image)[0], stored)


def test_a_grey_image_feeds_an_rgb_model_with_three_equal_channels():
    image = noise(5, 4, channels=1)
    for channel in OWN_SIZE.apply(image):
        np.testing.assert_array_equal(channel, np.asarray(image))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grey_keeps_its_high_byte(mode):
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=np.uint16)
    if mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    else:
        raw = values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
        image = Image.frombytes(mode, (5, 1), raw)
    assert image.mode == mode
    assert OWN_SIZE.apply(image)[0].tolist() == [[0, 0, 1, 0x12, 0xFF]]


def test_a_sixteen_bit_png_is_not_clipped_to_white(tmp_path):
    Image.fromarray(np.array([[1000, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert OWN_SIZE.apply(image)[0].tolist() == [[1000 >> 8, 255]]


@pytest.mark.parametrize(
    "image",
    [Image.new("F", (2, 2), 0.5), Image.new("I", (2, 2), 70000), Image.new("I", (2, 2), -1)],
    ids=["float", "above 16 bits", "negative"],
)
def test_pixels_of_unknown_range_are_refused(image):
    with pytest.raises(DataError, match="save it with 8 or 16 bits"):
        OWN_SIZE.apply(image)


def test_a_bilevel_image_becomes_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert OWN_SIZE.apply(image)[0].tolist() == [[0, 255]]


def test_cmyk_is_converted_to_rgb():
    pixel = OWN_SIZE.apply(Image.new("CMYK", (1, 1), (255, 0, 0, 0)))
    assert pixel.ravel().tolist() == [0, 255, 255]


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_dropped_and_not_composited(alpha):
    assert OWN_SIZE.apply(Image.new("RGBA", (1, 1), (10, 20, 30, alpha))).ravel().tolist() == [10, 20, 30]
    assert OWN_SIZE.apply(Image.new("LA", (1, 1), (10, alpha))).ravel().tolist() == [10, 10, 10]


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"], ids=["one entry", "an alpha for each entry"])
def test_a_palette_with_transparency_keeps_the_colours_of_its_palette(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=transparency)
    with warnings.catch_warnings(), Image.open(tmp_path / "palette.png") as opened:
        warnings.simplefilter("error")
        assert opened.mode == "P"
        assert OWN_SIZE.apply(opened)[:, 0, :].T.tolist() == [[10, 20, 30], [40, 50, 60]]


def test_applying_a_contract_leaves_the_image_as_it_was():
    image = noise(300, 280)
    before = image.tobytes()
    IMAGENET.apply(image)
    assert (image.size, image.tobytes()) == ((280, 300), before)


# --- sizes ----------------------------------------------------------------------------------------------------


def test_an_image_of_another_size_is_refused_without_resize():
    with pytest.raises(DataError, match="image is 64x48, the model takes 32x32 without resize"):
        CIFAR.apply(noise(48, 64))


def test_an_image_smaller_than_the_crop_is_refused_and_not_padded():
    with pytest.raises(DataError, match="image is 100x300, smaller than the crop 224x224"):
        replace(IMAGENET, resize=None).apply(noise(300, 100))


def test_a_sliver_that_would_become_a_giant_is_refused():
    with pytest.raises(DataError, match="too narrow to resize"):
        IMAGENET.apply(Image.new("RGB", (1, 60000)))


def test_without_a_size_an_image_keeps_its_own():
    assert OWN_SIZE.apply(noise(7, 11)).shape == (3, 7, 11)


# --- pixels given as arrays -----------------------------------------------------------------------------------


def test_pixels_and_the_image_of_them_give_one_tensor():
    image = noise(300, 260)
    np.testing.assert_array_equal(IMAGENET.apply_pixels(np.asarray(image)), IMAGENET.apply(image))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_grey_pixels_feed_an_rgb_model(shape):
    assert OWN_SIZE.apply_pixels(np.full(shape, 9, np.uint8)).tolist() == np.full((3, 4, 5), 9).tolist()


def test_raw_pixels_are_normalised_channel_by_channel():
    contract = replace(CIFAR.for_input(4, 1, 1), mean=(0.0, 0.0, 0.0, 1.0), std=(1.0, 1.0, 1.0, 0.5))
    tensor = contract.apply_pixels(np.array([[[0, 255, 0, 255]]], np.uint8))
    np.testing.assert_allclose(tensor.ravel(), [0, 1, 0, 0], atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8, 4), (8,), (1, 8, 8, 3)])
def test_pixels_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match=r"give \[H,W,C\]"):
        OWN_SIZE.apply_pixels(np.zeros(shape, np.uint8))


def test_raw_pixels_of_another_size_are_refused():
    with pytest.raises(DataError, match="image is 9x8, the model takes 8x8"):
        CIFAR.for_input(5, 8, 8).apply_pixels(np.zeros((8, 9, 5), np.uint8))


def test_an_image_cannot_feed_a_raw_contract():
    with pytest.raises(DataError, match=r"5 channels: give a \.npy array"):
        CIFAR.for_input(5, 8, 8).apply(noise(8, 8))


# --- validation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": [0.2, 0.0, 0.2]}, "std is .* greater than 0"),
        ({"std": [0.2, 1e-300, 0.2]}, "std is .* greater than 0"),
        ({"std": [0.2, 0.2]}, "std is .* each of the 3 channels"),
        ({"mean": [0.5]}, "mean is .* each of the 3 channels"),
        ({"mean": []}, "mean is .* finite numbers"),
        ({"mean": [0.1, float("nan"), 0.1]}, "mean is .* finite numbers"),
        ({"mean": [0.1, 10**400, 0.1]}, "mean is .* finite numbers"),
        ({"mean": "abc"}, "mean is 'abc'.* finite numbers"),
        ({"scale": 0}, "scale is .* greater than 0"),
        ({"scale": True}, "scale is .* finite numbers"),
        ({"size": [224]}, "size is .* height and width"),
        ({"size": [0, 224]}, "size is .* height and width"),
        ({"size": [224.0, 224]}, "size is .* height and width"),
        ({"size": None}, "crop is center but size is null"),
        ({"resize": 223}, "crop 224x224 does not fit.*set resize to 224"),
        ({"resize": "256"}, "resize is '256'"),
        ({"crop": "none"}, "resize 256 keeps the proportions"),
        ({"crop": "five"}, "crop is 'five': give one of center, none"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'"),
        ({"color": "CMYK"}, "color is 'CMYK'"),
        ({"color": "raw"}, "color raw takes arrays"),
        ({"color": "L"}, "mean is .* each of the 1 channels"),
        ({"orientation": ["exif"]}, "orientation is"),
        ({"layout": "NHWC"}, "layout is 'NHWC': give NCHW, which float32"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_a_contract_that_cannot_be_met_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Preprocessing.from_json(preset_fields(**changes))


def test_unknown_and_missing_keys_are_named():
    given = preset_fields(gamma=2.2)
    del given["std"]
    with pytest.raises(InputError, match="unknown key gamma, missing key std"):
        Preprocessing.from_json(given)


def test_json_that_is_no_object_is_refused():
    with pytest.raises(InputError, match="the contract is 3"):
        Preprocessing.from_json(3)  # type: ignore[arg-type]


# --- JSON and hash --------------------------------------------------------------------------------------------


numbers = st.floats(-1e3, 1e3, allow_nan=False)


@given(
    size=st.none() | st.tuples(st.integers(1, 64), st.integers(1, 64)),
    mean=st.tuples(numbers, numbers, numbers),
    std=st.tuples(*[st.floats(1e-6, 1e3)] * 3),
    scale=st.floats(1e-6, 10),
    color=st.sampled_from(["RGB", "BGR", "raw"]),
    orientation=st.sampled_from(["exif", "none"]),
)
def test_a_contract_survives_json_with_its_hash(size, mean, std, scale, color, orientation):
    contract = Preprocessing(size, None, "none", "bicubic", color, scale, mean, std, orientation)
    back = Preprocessing.from_json(json.loads(json.dumps(contract.to_json())))
    assert back == contract
    assert back.sha256() == contract.sha256()


def test_the_hash_does_not_depend_on_how_the_numbers_were_written():
    plain = replace(OWN_SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    other = replace(OWN_SIZE, mean=[0, -0.0, 0], std=[1, 1, 1])  # type: ignore[arg-type]
    assert (other, other.sha256()) == (plain, plain.sha256())


def test_the_hashes_of_the_presets_never_change():
    # They are written into range files and bundles: another value here makes all of those unusable.
    assert IMAGENET.sha256() == "ca8b0dd0a8dd25c30c84d4afe376c92a5872ac2cb90f82851f0bd01c09cd36c1"
    assert CIFAR.sha256() == "5651fca8f368b28cf211df9c3abe6d897cbb5bf86714c70768c46ad0b35317ce"


@pytest.mark.parametrize(
    "changes", [{"resize": 255}, {"color": "BGR"}, {"orientation": "none"}, {"std": (0.229, 0.224, 0.2250001)}]
)
def test_a_change_of_any_field_changes_the_hash(changes):
    assert replace(IMAGENET, **changes).sha256() != IMAGENET.sha256()


# --- deriving contracts ---------------------------------------------------------------------------------------


def test_overrides_change_what_is_given_and_keep_the_rest():
    changed = IMAGENET.with_overrides(mean=(0.5,) * 3, interpolation="bicubic")
    assert changed == replace(IMAGENET, mean=(0.5,) * 3, interpolation="bicubic")
    assert IMAGENET.with_overrides() == IMAGENET


def test_the_input_of_the_preset_gives_the_preset():
    assert IMAGENET.for_input(3, 224, 224) == IMAGENET
    assert IMAGENET.for_input(3) == IMAGENET


@pytest.mark.parametrize(
    ("height", "width", "resize"), [(192, 192, 219), (112, 112, 128), (448, 448, 512), (160, 320, 366), (1, 1, 1)]
)
def test_another_input_size_keeps_the_ratio_of_resize_to_crop(height, width, resize):
    fitted = IMAGENET.for_input(3, height, width)
    assert (fitted.size, fitted.resize) == ((height, width), resize)


def test_a_grey_input_takes_the_average_of_mean_and_std():
    fitted = IMAGENET.for_input(1, 224, 224)
    assert (fitted.color, fitted.channels) == ("L", 1)
    np.testing.assert_allclose(fitted.mean, [0.449])
    np.testing.assert_allclose(fitted.std, [0.226])


def test_a_grey_contract_widens_to_rgb():
    widened = IMAGENET.for_input(1).for_input(3)
    assert widened.color == "RGB"
    np.testing.assert_allclose(widened.mean, [0.449] * 3)


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_an_input_of_other_channels_takes_arrays_only(channels):
    fitted = IMAGENET.for_input(channels, 96, 128)
    assert (fitted.color, fitted.channels, fitted.size) == ("raw", channels, (96, 128))
    assert (fitted.mean, fitted.std) == ((0.0,) * channels, (1.0,) * channels)


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 8, 8), "channels is 0"), ((3, 8, None), "both or neither"), ((3, 0, 8), "size")]
)
def test_an_impossible_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        IMAGENET.for_input(*arguments)


def test_importing_the_contract_loads_neither_pillow_nor_torch():
    code = "import sys, calibration.images, calibration.preprocess; print({'PIL', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
