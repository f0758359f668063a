"""What kohya's header says of the training, beside what is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import datainf_ray
from datainf_ray.config import DiffusionConfig
from datainf_ray.diffusion.header import pictures_in, told_of_loss, told_of_pictures
from tests.diffusion import pipelines
from tests.diffusion.test_runs import ROWS, prepared

SAYS = "the header of a.safetensors says "
CLASS = "that it was trained on 200 pictures of its class, too: they have a score if they are rows of train"

#: The header, `diffusion`, and what is said.
LOSSES: list[tuple[dict[str, str], dict[str, Any], list[str]]] = [
    ({}, {"min_snr_gamma": 5}, []),
    ({"ss_min_snr_gamma": "None", "ss_noise_offset": "None", "ss_clip_skip": "None"}, {}, []),
    ({"ss_min_snr_gamma": "5.0", "ss_noise_offset": "0.1"}, {"min_snr_gamma": 5, "noise_offset": 0.1}, []),
    ({"ss_min_snr_gamma": "5.0"}, {},
     ["min_snr_gamma 5, and the loss here is without it: set diffusion.min_snr_gamma: 5"]),
    ({"ss_noise_offset": "0.0357"}, {"noise_offset": 0.1}, ["noise_offset 0.0357, and diffusion.noise_offset is 0.1"]),
    ({"ss_noise_offset": "None"}, {"noise_offset": 0.1},
     ["that it was trained without noise_offset, and diffusion.noise_offset is 0.1"]),
    ({"ss_min_snr_gamma": "\x1b[2J"}, {}, ["min_snr_gamma [2J, which is no number"]),
    ({"ss_multires_noise_iterations": "6", "ss_loss_type": "huber", "ss_clip_skip": "2"}, {},
     [f"{what}; the loss here is without it" for what in ("multires_noise_iterations 6", "loss_type huber",
                                                          "clip_skip 2")]),
    ({"ss_loss_type": "l2", "ss_clip_skip": "1", "ss_debiased_estimation": "False", "ss_ip_noise_gamma": "None"}, {},
     []),
    ({"ss_prior_loss_weight": "0.5", "ss_num_reg_images": "0"}, {}, []),
    ({"ss_prior_loss_weight": "0.5", "ss_num_reg_images": "200"}, {},
     [CLASS, "prior_loss_weight 0.5, and the loss here is without it: set diffusion.prior_loss_weight: 0.5, and "
      "train.columns.prior to the column that says which rows they are"]),
    ({"ss_prior_loss_weight": "1.0", "ss_num_reg_images": "200"}, {}, [CLASS]),
    ({"ss_prior_loss_weight": "0.5", "ss_num_reg_images": "200"}, {"prior_loss_weight": 0.5}, [CLASS]),
    ({"ss_prior_loss_weight": "1.0", "ss_num_reg_images": "200"}, {"prior_loss_weight": 0.5},
     [CLASS, "prior_loss_weight 1, and diffusion.prior_loss_weight is 0.5"]),
    ({"ss_prior_loss_weight": "much", "ss_num_reg_images": "200"}, {},
     [CLASS, "prior_loss_weight much, which is no number"]),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(LOSSES)))
def test_what_is_said_of_the_loss(case: int) -> None:
    header, diffusion, said = LOSSES[case]
    told = [*told_of_loss(header, "a.safetensors", DiffusionConfig(**diffusion), False)]
    assert told == [f"{SAYS}{line}" for line in said]


def test_a_schedule_that_ends_in_noise_alone() -> None:
    header = {"ss_zero_terminal_snr": "True"}
    assert [*told_of_loss(header, "a", DiffusionConfig(), False)] == [
        "the header of a says zero_terminal_snr True; the loss here is without it"
    ]
    assert not [*told_of_loss(header, "a", DiffusionConfig(), True)]


DIRS = {"10_cat": {"n_repeats": 10, "img_count": 15}, "5_dog": {"n_repeats": 5, "img_count": 10}}
CLASS = {"1_animal": {"n_repeats": 1, "img_count": 40}}
SETS = [
    {"is_dreambooth": True, "subsets": [
        {"img_count": 12, "num_repeats": 3, "image_dir": "a", "is_reg": False},
        {"img_count": 90, "num_repeats": 1, "image_dir": "class", "is_reg": True},
    ]},
    {"subsets": [{"img_count": 8, "num_repeats": 3}]},
]  # fmt: skip
ON = f"{SAYS}that it was trained on "
HAVE = "influence is of the rows that are there"
TWICE = f"{ON}folders that an epoch repeats 5 times and 10 times, and here each row counts once"
#: The header, the corpus' rows, and what is said.
COUNTS: list[tuple[dict[str, str], int, list[str]]] = [
    ({}, 7, []),
    ({"ss_num_train_images": "120"}, 12, []),  # ten times each
    ({"ss_num_train_images": "120"}, 7, [f"{ON}120 pictures with repeats, and train has 7 rows: {HAVE}"]),
    ({"ss_num_train_images": "200", "ss_dataset_dirs": json.dumps(DIRS)}, 25, [TWICE]),
    ({"ss_dataset_dirs": json.dumps(DIRS)}, 1, [f"{ON}25 pictures, and train has 1 row: {HAVE}", TWICE]),
    ({"ss_datasets": json.dumps(SETS)}, 20, []),  # without the class' pictures
    ({"ss_datasets": json.dumps(SETS)}, 110, []),  # with them
    ({"ss_datasets": json.dumps(SETS)}, 90, [f"{ON}20 pictures and 90 of their class, and train has 90 rows: {HAVE}"]),
    ({"ss_dataset_dirs": json.dumps(DIRS), "ss_reg_dataset_dirs": json.dumps(CLASS)}, 65, [TWICE]),
    ({"ss_dataset_dirs": json.dumps(DIRS), "ss_reg_dataset_dirs": json.dumps(CLASS)}, 40,
     [f"{ON}25 pictures and 40 of their class, and train has 40 rows: {HAVE}", TWICE]),
    ({"ss_dataset_dirs": json.dumps(DIRS), "ss_reg_dataset_dirs": '{"1_c": {"img_count": "x"}}'}, 25, [TWICE]),
    *(({"ss_dataset_dirs": text, "ss_datasets": text, "ss_num_train_images": text}, 3, []) for text in (
        "None", "[]", "{", "[" * 5000, "9" * 5000, "-4", "٣", '{"a": {"img_count": "x"}}', '[{"subsets": [3]}]',
        '{"a": 3}',
    )),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(COUNTS)))
def test_what_is_said_of_the_pictures(case: int) -> None:
    header, rows, said = COUNTS[case]
    assert [*told_of_pictures(pictures_in(header, "a.safetensors"), rows)] == said


def test_the_plan_says_it(tmp_path: Path) -> None:
    config = prepared(tmp_path, "sd")
    file = pipelines.as_kohya(tmp_path, 4.0)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    save_file(load_file(file), file, header | {"ss_num_train_images": "40", "ss_min_snr_gamma": "5.0"})
    config["model"]["adapter"] = str(file)
    loss, count = datainf_ray.plan(config).notes
    assert loss.endswith("set diffusion.min_snr_gamma: 5")
    assert count.endswith(f"trained on 40 pictures with repeats, and train has {ROWS} rows: {HAVE}")
    assert len(datainf_ray.plan(config, **{"diffusion.min_snr_gamma": 5.0}).notes) == 1
