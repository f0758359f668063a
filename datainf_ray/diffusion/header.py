"""What the header of kohya's files says of the training, where that makes another loss, or another corpus, than here.

Nothing of it is done by itself: what a key of the configuration can do as the training did is told with that key, and
the rest by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from datainf_ray.common.words import counted, printable
from datainf_ray.config import DiffusionConfig

#: What the header calls it that these keys of `diffusion` do.
_HONOURED = {"ss_min_snr_gamma": "min_snr_gamma", "ss_noise_offset": "noise_offset"}
#: What changes the loss, and has no key here; and the value that it has where it changes nothing.
_ELSE = {
    "ss_adaptive_noise_scale": None,
    "ss_noise_offset_random_strength": None,
    "ss_multires_noise_iterations": None,
    "ss_ip_noise_gamma": None,
    "ss_zero_terminal_snr": None,
    "ss_scale_v_pred_loss_like_noise_pred": None,
    "ss_v_pred_like_loss": None,
    "ss_debiased_estimation": None,
    "ss_loss_type": "l2",
    "ss_clip_skip": "1",
}
_NOTHING = ("None", "0", "0.0", "False", "", "{}", "[]")
_MOST = 2**20  # characters of JSON in a header that are read


def told_of_loss(header: Mapping[str, str], name: str, asked: DiffusionConfig, rescaled: bool) -> Iterator[str]:
    """What is to be said of the loss that the file called `name` was trained with.

    `rescaled`: the base's scheduler has a schedule that ends in noise alone (zero terminal SNR).
    """
    name = printable(name, 80)
    for key, of_ours in _HONOURED.items():
        if key in header:
            yield from _compared(header[key], name, of_ours, getattr(asked, of_ours))
    for key, plain in _ELSE.items():
        value = header.get(key, "None")
        if value in (*_NOTHING, plain) or (key == "ss_zero_terminal_snr" and rescaled):
            continue
        yield f"the header of {name} says {key.removeprefix('ss_')} {printable(value, 40)}; the loss here is without it"
    if (classes := header.get("ss_num_reg_images", "None")) not in _NOTHING:
        yield (
            f"the header of {name} says that it was trained on {printable(classes, 40)} pictures of its class, too: "
            "they have a score if they are rows of train"
        )
        there, weight = header.get("ss_prior_loss_weight", "1.0"), asked.prior_loss_weight
        if weight is not None or _number(there) != 1:
            also = ", and train.columns.prior to the column that says which rows they are"
            yield from _compared(there, name, "prior_loss_weight", weight, also)


def _compared(there: str, name: str, key: str, here: float | None, also: str = "") -> Iterator[str]:
    """What the header says of a key that the configuration has; `also` is what is to be set with it."""
    value = None if there in _NOTHING else _number(there)
    if value is None and there not in _NOTHING:
        yield f"the header of {name} says {key} {printable(there, 40)}, which is no number"
        return
    if value == here:
        return
    if value is None:
        yield f"the header of {name} says that it was trained without {key}, and diffusion.{key} is {here:g}"
    elif here is None:
        remedy = f"set diffusion.{key}: {value:g}{also}"
        yield f"the header of {name} says {key} {value:g}, and the loss here is without it: {remedy}"
    else:
        yield f"the header of {name} says {key} {value:g}, and diffusion.{key} is {here:g}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def pictures_in(header: Mapping[str, str], name: str) -> dict[str, Any]:
    """On how many pictures the file called `name` was trained, in plain values; {} where its header does not say.

    `counts` has the pictures of each folder and how often an epoch repeats them, and `classes` how many there are of
    the class; where that is not known `all` has their number with repeats.
    """
    found: dict[str, Any] = {}
    subsets = [*_subsets(_json(header.get("ss_datasets")))]
    folders = [one for one in subsets if not one.get("is_reg")] or _folders(header.get("ss_dataset_dirs"))
    classes = [one for one in subsets if one.get("is_reg")] or _folders(header.get("ss_reg_dataset_dirs"))
    counts = [(one.get("img_count"), one.get("n_repeats", one.get("num_repeats", 1))) for one in folders]
    if counts and all(type(count) is int and type(repeats) is int for count, repeats in counts):
        found |= {"counts": counts, "classes": sum(n for one in classes if type(n := one.get("img_count")) is int)}
    elif (total := header.get("ss_num_train_images", "")).isascii() and total.isdigit() and 0 < len(total) < 16:
        found["all"] = int(total)
    return found | {"file": name} if found else {}


def told_of_pictures(trained: Mapping[str, Any], rows: int) -> Iterator[str]:
    """What is to be said where the corpus' rows are not the pictures of the training; see `pictures_in`."""
    said = f"the header of {printable(str(trained.get('file')), 80)} says that it was trained on"
    have = f"train has {counted(rows, 'row')}: influence is of the rows that are there"
    if "counts" in trained:
        pictures = sum(count for count, _ in trained["counts"])
        classes = trained.get("classes", 0)
        if rows not in (pictures, pictures + classes):
            also = f" and {classes:,} of their class" if classes else ""
            yield f"{said} {counted(pictures, 'picture')}{also}, and {have}"
        repeats = {times for _, times in trained["counts"]}
        if len(repeats) > 1:
            some = " and ".join(f"{times} times" for times in sorted(repeats))
            yield f"{said} folders that an epoch repeats {some}, and here each row counts once"
    elif "all" in trained and trained["all"] % rows:
        yield f"{said} {counted(trained['all'], 'picture')} with repeats, and {have}"


def _subsets(datasets: Any) -> Iterator[Mapping[str, Any]]:
    """The folders of all datasets."""
    for dataset in datasets if isinstance(datasets, list) else ():
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else None
        for one in subsets if isinstance(subsets, list) else ():
            if isinstance(one, dict):
                yield one


def _folders(text: str | None) -> list[Mapping[str, Any]]:
    dirs = _json(text)
    return [one for one in dirs.values() if isinstance(one, dict)] if isinstance(dirs, dict) else []


def _json(text: str | None) -> Any:
    if text is None or len(text) > _MOST:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
