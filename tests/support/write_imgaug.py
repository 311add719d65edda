"""What imgaug 0.4.0 makes of a picture: writes imgaug.npz, which test_augmentations.py reads.

Run it where imgaug==0.4.0, numpy<1.24, opencv-python-headless and scipy are installed: `python write_imgaug.py`.
Keys: "image"; SET/OPERATION, or SET/OPERATION/SIGN for what is drawn either way; (S, S, 3) uint8.
"""

from pathlib import Path

import imgaug.augmenters as iaa
import numpy as np
from imgaug.augmenters import pillike
from scipy.ndimage import gaussian_filter

SIDE = 24
CUT_AT = 0.1, 0.95  # x, y
LEVEL = 0.9  # of mmaction's "default"
M = 7 / 30  # of iaa.RandAugment(n=4, m=7)


def picture():
    rng = np.random.default_rng(3)
    smooth = np.stack([gaussian_filter(rng.standard_normal((SIDE, SIDE)), 1.2) for _ in range(3)], axis=-1)
    image = (20 + 200 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    image[4:8, 5:12] = 250, 10, 90
    return image


def augmenters():
    cutout = {"nb_iterations": 1, "position": CUT_AT, "squared": True, "cval": 128}
    for sign in (1, -1):
        yield f"default/shear_x/{sign}", iaa.ShearX(shear=17.19 * LEVEL * sign)
        yield f"default/shear_y/{sign}", iaa.ShearY(shear=17.19 * LEVEL * sign)
        yield f"default/translate_x/{sign}", iaa.TranslateX(percent=0.2 * LEVEL * sign)
        yield f"default/translate_y/{sign}", iaa.TranslateY(percent=0.2 * LEVEL * sign)
        yield f"default/rotate/{sign}", iaa.Rotate(rotate=30 * LEVEL * sign)
        corner = {"center": (0.0, 0.0), "fillcolor": 128}
        shear, shift = np.rad2deg(0.3) * M * sign, 0.33 * M * sign
        yield f"n4_m7/shear_x/{sign}", pillike.Affine(shear={"x": shear}, **corner)
        yield f"n4_m7/shear_y/{sign}", pillike.Affine(shear={"y": shear}, **corner)
        yield f"n4_m7/translate_x/{sign}", pillike.Affine(translate_percent={"x": shift}, **corner)
        yield f"n4_m7/translate_y/{sign}", pillike.Affine(translate_percent={"y": shift}, **corner)
        yield f"n4_m7/rotate/{sign}", pillike.Affine(rotate=30 * M * sign, center=(0.5, 0.5), fillcolor=128)
        for name in ("Color", "Contrast", "Brightness", "Sharpness"):
            yield f"n4_m7/{name.lower()}/{sign}", getattr(pillike, f"Enhance{name}")(1 + 0.9 * M * sign)
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        yield f"default/{name.lower()}", getattr(pillike, f"Enhance{name}")(1.8 * LEVEL + 0.1)
    yield "default/posterize", iaa.Posterize(nb_bits=int(4 * LEVEL))
    yield "default/solarize", iaa.Solarize(p=1.0, threshold=256 * LEVEL)
    yield "default/cutout", iaa.Cutout(size=0.2 * LEVEL, **cutout)
    yield "n4_m7/posterize", pillike.Posterize(nb_bits=8 - int(6 * M))
    yield "n4_m7/solarize", pillike.Solarize(p=1.0, threshold=256 - int(256 * M))
    yield "n4_m7/cutout", iaa.Cutout(size=20 / 32 * M, **cutout)
    yield "n4_m7/blur", pillike.FilterBlur()
    yield "n4_m7/smooth", pillike.FilterSmooth()
    for which in ("default", "n4_m7"):
        yield f"{which}/autocontrast", pillike.Autocontrast(cutoff=0)
        yield f"{which}/equalize", pillike.Equalize()
        yield f"{which}/invert", iaa.Invert(p=1.0)
    yield "n4_m7/identity", iaa.Identity()


if __name__ == "__main__":
    image = picture()
    made = {name: augmenter.augment_image(image) for name, augmenter in augmenters()}
    np.savez_compressed(Path(__file__).parents[1] / "unit/imgaug.npz", image=image, **made)
