"""Folders as `datasets`, the hub and others write them, each compared with what `datasets` or pyarrow makes of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.data_files import get_data_patterns

from datainf_ray.common.errors import RequestError
from datainf_ray.corpus.find import find_files
from tests.corpus.reading import plan, read

TEXTS = [f"row {i}" for i in range(10)]


@pytest.fixture
def saved() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": TEXTS, "number": list(range(10))})


def texts(path: str, **options: Any) -> list[Any]:
    return [row.fields["text"] for row in read(plan(path, **options))]


def refused(path: str, key: str = "train.path") -> str:
    with pytest.raises(RequestError) as caught:
        find_files([path], key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_dataset_is_the_rows_that_load_from_disk_gives(saved: datasets.Dataset, tmp_path: Path) -> None:
    folder = str(tmp_path / "saved")
    saved.save_to_disk(folder, num_shards=3)
    loaded = datasets.load_from_disk(folder)
    loaded.map(lambda row: {"text": row["text"].upper()}).filter(lambda row: row["number"] > 3).shuffle(seed=1)
    beside = sorted(path.name for path in Path(folder).glob("cache-*.arrow"))
    assert len(beside) >= 2
    for path in (folder, f"{folder}/*.arrow", f"{folder}/**/*.arrow", f"{folder}/d*"):
        assert texts(path) == loaded["text"], path
    assert read(plan(folder))[9].id == "data-00002-of-00003.arrow#2"
    assert [file.name for file in find_files([f"{folder}/cache-*.arrow"], "train.path")] == beside  # asked for


def test_what_load_dataset_caches_is_the_rows_of_the_file(write: Callable[..., str], tmp_path: Path) -> None:
    path = write("a.jsonl", [{"text": text, "number": i} for i, text in enumerate(TEXTS)])
    made = datasets.load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    made.map(lambda row: {"text": row["text"].upper()}).filter(lambda row: row["number"] > 3)
    folder = Path(made.cache_files[0]["filename"]).parent
    assert len(list(folder.glob("cache-*.arrow"))) >= 2
    assert not (folder / "state.json").exists()
    assert texts(str(folder)) == texts(f"{folder}/*.arrow") == TEXTS


def test_a_selection_is_saved_as_its_rows(saved: datasets.Dataset, tmp_path: Path) -> None:
    saved.shuffle(seed=1).select([5, 1, 2]).save_to_disk(str(tmp_path / "some"))
    assert texts(str(tmp_path / "some")) == datasets.load_from_disk(str(tmp_path / "some"))["text"]


def test_files_of_an_old_selection_or_gone_ones_are_told(saved: datasets.Dataset, tmp_path: Path) -> None:
    saved.save_to_disk(str(tmp_path / "old"), num_shards=2)
    state = tmp_path / "old" / "state.json"
    told = json.loads(state.read_text())
    state.write_text(json.dumps(told | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    assert "was saved with a selection of its rows beside it" in refused(str(tmp_path / "old"))
    state.write_text(json.dumps(told))
    (tmp_path / "old" / "data-00001-of-00002.arrow").unlink()
    assert "old: data-00001-of-00002.arrow is not there, which its state.json names" in refused(str(tmp_path / "old"))


def test_a_state_that_is_not_of_datasets_may_be_rows(write: Callable[..., str], tmp_path: Path) -> None:
    write("d/state.json", b'{"text": "Ohio"}\n{"text": "Utah"}\n')
    assert texts(str(tmp_path / "d")) == texts(f"{tmp_path}/d/*.json") == ["Ohio", "Utah"]


def test_a_dictionary_of_datasets_asks_which(saved: datasets.Dataset, tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": saved, "test": saved.select([1])})
    both.save_to_disk(str(tmp_path / "dd"))
    says = f'{tmp_path}/dd: holds several splits or configurations: {{}}; name one, as in path: "{tmp_path}/dd/{{}}"'
    assert refused(f"{tmp_path}/dd") == "train.path: " + says.format("train, test", "train")
    assert refused(f"{tmp_path}/dd", "queries.path") == "queries.path: " + says.format("test, train", "test")
    for split in both:
        assert texts(f"{tmp_path}/dd/{split}") == datasets.load_from_disk(str(tmp_path / "dd"))[split]["text"]
    datasets.DatasetDict({"wiki": saved, "books": saved}).save_to_disk(str(tmp_path / "in" / "dd"))
    assert "dd/books, dd/wiki; name one" in refused(f"{tmp_path}/in")
    assert texts(f"{tmp_path}/in/dd/wiki") == TEXTS
    datasets.DatasetDict({"only": saved}).save_to_disk(str(tmp_path / "one"))
    assert texts(f"{tmp_path}/one") == TEXTS


CARD = """---
language:
- no
configs:
- config_name: easy
  data_files:
  - split: train
    path: easy/rows-*
- config_name: hard
  data_dir: hard
---
# A dataset
"""


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A clone of a repository of the hub, as push_to_hub makes them."""
    root = tmp_path / "hub"
    for name, content in (
        ("README.md", "---\nlicense: mit\n---\n"), (".gitattributes", "*.parquet lfs"), (".git/x.parquet", "PAR1"),
        ("dataset_infos.json", '{"default": {}}'), (".cache/huggingface/x.json", "{}"),
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "data").mkdir()
    for name, rows in (
        ("train-00000-of-00002", TEXTS[:6]), ("train-00001-of-00002", TEXTS[6:]), ("test-00000-of-00001", ["more"]),
    ):  # fmt: skip
        pq.write_table(pa.table({"text": rows}), root / "data" / f"{name}.parquet")
    return root


def test_a_hub_folder_asks_which_split_and_gives_it(hub: Path) -> None:
    assert refused(str(hub)).endswith(f'tions: train, test; name one, as in path: "{hub}/data/train-*"')
    assert refused(str(hub / "data")).endswith(f'tions: train, test; name one, as in path: "{hub}/data/train-*"')
    assert refused(str(hub), "queries.path").endswith(f'path: "{hub}/data/test-00000-of-00001.parquet"')
    loaded = datasets.load_dataset(str(hub), cache_dir=str(hub.parent / "cache"))
    assert texts(f"{hub}/data/train-*") == list(loaded["train"]["text"])
    for extra in hub.glob("data/test*"):
        extra.unlink()
    assert texts(str(hub)) == texts(str(hub / "data")) == TEXTS
    assert [file.name for file in find_files([f"{hub}/**/*.parquet"], "train.path")] == [
        f"data/train-0000{i}-of-00002.parquet" for i in (0, 1)
    ]


def test_configurations_of_a_dataset_card(write: Callable[..., str], tmp_path: Path) -> None:
    write("d/README.md", CARD)
    for name in ("easy/rows-0.jsonl", "easy/rows-1.jsonl", "hard/rows.jsonl"):
        write(f"d/{name}", [{"text": name}])
    assert refused(f"{tmp_path}/d").endswith(
        f'configurations: easy train, hard; name one, as in path: "{tmp_path}/d/easy"'
    )
    loaded = datasets.load_dataset(f"{tmp_path}/d", "easy", cache_dir=str(tmp_path / "cache"))
    assert texts(f"{tmp_path}/d/easy") == list(loaded["train"]["text"])
    write("d/README.md", f"---\nconfigs: [{{config_name: a, data_dir: '{'*a' * 60}b'}}]\n---\n")
    write(f"d/easy/{'a' * 200}.jsonl", [{"text": "a"}])  # a pattern and a name that would take years to match
    assert len(texts(f"{tmp_path}/d")) == 4
    (tmp_path / f"d/easy/{'a' * 200}.jsonl").unlink()
    for broken in ("---\n{\n---\n", "---\nconfigs: 5\n---\n", "---\nconfigs: [{data_files: [{path: [1]}]}, 2]\n---\n"):
        write("d/README.md", broken)
        assert len(texts(f"{tmp_path}/d")) == 3


#: Files of a folder; what it is that `datasets` finds several splits in, and we ask for one of.
LAYOUTS = {
    "one": ["a.jsonl", "b.jsonl"],
    "files": ["train.jsonl", "test.jsonl"],
    "files with numbers": ["train-0.jsonl", "train-1.jsonl", "dev-0.jsonl"],
    "only train": ["train-0.jsonl", "train-1.jsonl"],
    "in names": ["my_train_file.jsonl", "my.eval.jsonl"],
    "within words": ["restrained.jsonl", "contest.jsonl", "device.jsonl"],
    "folders": ["train/a.jsonl", "test/a.jsonl", "valid/a.jsonl"],
    "folders with suffixes": ["train_sft/a.jsonl", "test_sft/a.jsonl"],
    "one folder, and files that have a word": ["train/test-a.jsonl", "train/b.jsonl"],
    "deeper": ["x/train/a.jsonl", "x/y/test/a.jsonl"],
    "shards": ["data/wiki-00000-of-00002.jsonl", "data/wiki-00001-of-00002.jsonl", "data/book-00000-of-00001.jsonl"],
    "shards of one": ["data/test_sft-00000-of-00002.jsonl", "data/test_sft-00001-of-00002.jsonl", "train.jsonl"],
    "dumps": [f"data/CC-MAIN-{year}/train-00000-of-00001.jsonl" for year in (2013, 2014)],
    "upper case": ["Train.jsonl", "Test.jsonl"],
    "partitions": ["lang=en/part-0.jsonl", "lang=de/part-0.jsonl"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_those_that_datasets_finds(write: Callable[..., str], tmp_path: Path, layout: str) -> None:
    for name in LAYOUTS[layout]:
        write(f"d/{name}", [{"text": name}])
    wanted = set(map(str, get_data_patterns(str(tmp_path / "d"))))
    if len(wanted) == 1:
        assert sorted(texts(f"{tmp_path}/d")) == sorted(LAYOUTS[layout])
        return
    said = refused(f"{tmp_path}/d")
    assert set(said.partition("configurations: ")[2].partition(";")[0].split(", ")) == wanted
    named = said.partition('as in path: "')[2].removesuffix('"')
    split = min(wanted, key=lambda name: (name != "train", name))
    loaded = datasets.load_dataset(f"{tmp_path}/d", split=split, cache_dir=str(tmp_path / "cache"))
    assert texts(named) == list(loaded["text"])


def test_splits_of_any_name_are_told_in_their_own_folder_too(write: Callable[..., str], tmp_path: Path) -> None:
    for name in LAYOUTS["shards"]:
        write(f"d/{name}", [{"text": name}])
    says = f'book, wiki; name one, as in path: "{tmp_path}/d/data/book-00000-of-00001.jsonl"'
    assert refused(f"{tmp_path}/d").endswith(says)
    assert refused(f"{tmp_path}/d/data").endswith(says)
    for name in LAYOUTS["shards"]:  # elsewhere, such names are two families of one corpus
        write(f"e/{name.removeprefix('data/')}", [{"text": name}])
    assert len(texts(f"{tmp_path}/e")) == 3


def test_splits_without_a_simple_pattern_are_named_file_by_file(write: Callable[..., str], tmp_path: Path) -> None:
    for name in ("a_train_x.jsonl", "b_train_y.jsonl", "c_test_x.jsonl"):
        write(f"d/{name}", [{"text": name}])
    assert refused(f"{tmp_path}/d").endswith("train, test; name one, as in path: [FILE, FILE]")


HIDDEN = ["a.jsonl", "b/c.jsonl", ".ipynb_checkpoints/a.jsonl", "_temporary/0/a.jsonl", "b/.x/c.jsonl", "_SUCCESS",
          "b/_c.jsonl"]  # fmt: skip


def test_what_is_hidden_is_no_row_unless_it_is_asked_for(write: Callable[..., str], tmp_path: Path) -> None:
    for name in HIDDEN:
        write(f"d/{name}", [{"text": name}])

    def found(pattern: str) -> list[str]:
        return [file.path[len(f"{tmp_path}/d/") :] for file in find_files([f"{tmp_path}/d{pattern}"], "train.path")]

    assert found("") == found("/**/*.jsonl") == ["a.jsonl", "b/c.jsonl"]
    assert found("/*/*.jsonl") == ["b/c.jsonl"]
    assert found("/.ipynb*/*.jsonl") == found("/.ipynb_checkpoints") == [".ipynb_checkpoints/a.jsonl"]
    assert found("/_temporary/**/*.jsonl") == ["_temporary/0/a.jsonl"]
    assert found("/b/_*.jsonl") == ["b/_c.jsonl"]
    assert "no file matches" in refused(f"{tmp_path}/d/_temp*/*.jsonl")


def test_pipes_beside_rows_are_not_waited_for(write: Callable[..., str], tmp_path: Path) -> None:
    write("d/a.jsonl", [{"text": "a"}])
    for name in ("README.md", "dataset_dict.json"):
        os.mkfifo(tmp_path / "d" / name)
    assert texts(f"{tmp_path}/d") == ["a"]
    os.mkfifo(tmp_path / "d" / "state.json")  # which may hold rows
    assert "state.json: is a pipe, not a file" in refused(f"{tmp_path}/d")
    assert "state.json: is a pipe, not a file" in refused(f"{tmp_path}/d/*.json")


def test_a_link_to_a_folder_of_rows_is_told(write: Callable[..., str], tmp_path: Path) -> None:
    write("d/a.jsonl", [{"text": "a"}])
    write("other/deep/b.jsonl", [{"text": "b"}])
    (tmp_path / "d" / "again").symlink_to(tmp_path / "d")
    (tmp_path / "empty").mkdir()
    (tmp_path / "d" / "nothing").symlink_to(tmp_path / "empty")
    (tmp_path / "d" / "c.jsonl").symlink_to(tmp_path / "other/deep/b.jsonl")  # a file is followed, as the hub's cache
    assert texts(f"{tmp_path}/d") == texts(f"{tmp_path}/d/**/*.jsonl") == ["a", "b"]
    (tmp_path / "d" / "link").symlink_to(tmp_path / "other")
    says = f"train.path: {tmp_path}/d/link: is a link to a folder, which is not followed; name "
    assert refused(f"{tmp_path}/d") == says + f'both, as in path: ["{tmp_path}/d", "{tmp_path}/d/link"]'
    assert refused(f"{tmp_path}/d/**/*.jsonl").startswith(says)
    assert refused(f"{tmp_path}/d/*/*/b.jsonl").startswith(says)
    assert texts(f"{tmp_path}/d/*.jsonl") == ["a", "b"]
    assert texts(f"{tmp_path}/d/link") == ["b"]


def test_folders_in_memory_are_read_alike(saved: datasets.Dataset, tmp_path: Path) -> None:
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(str(tmp_path / "dd"))
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "dd"), "/corpus-folders/dd", recursive=True)
    assert refused("memory://corpus-folders/dd").endswith('path: "memory:///corpus-folders/dd/train"')
    assert texts("memory://corpus-folders/dd/train") == TEXTS
