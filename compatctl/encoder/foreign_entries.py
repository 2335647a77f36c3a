"""Entries of other tools' configurations, and what a preprocessing file calls them."""

from __future__ import annotations

from collections.abc import Sequence

_OTHER_NAMES = {
    "crop_pct": "crop_share",
    "crop_mode": "fit",
    "crop_size": 'height and width, with "crop_share": crop_size / size',
    "do_center_crop": '"fit": "crop"',
    "do_normalize": "mean and std, or neither",
    "do_rescale": "scale, or none",
    "do_resize": "resize",
    "image_mean": "mean",
    "image_std": "std",
    "image_size": "height and width",
    "input_size": "height and width, its last two numbers",
    "interpolation": "resize",
    "normalize": "normalise",
    "resample": "resize (2 is bilinear, 3 bicubic, 1 lanczos)",
    "rescale_factor": "scale",
    "size": "height and width, before the crop",
}
"""Entry of a configuration of timm, torchvision or transformers -> what it is here."""


def entries_tip(unknown: Sequence[str], known: Sequence[str]) -> str:
    """What to do about entries that a preprocessing file does not have."""
    called = [f"{name} is {_OTHER_NAMES[name]}" for name in unknown if name in _OTHER_NAMES]
    return "; ".join([*called, f"the entries are {', '.join(known)}"])
