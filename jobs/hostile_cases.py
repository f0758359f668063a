"""Wrong requests: by name, how each is made in a folder of its own, and the status that it must have.

The folder has base/, adapter/, train.jsonl, queries.jsonl, c.yaml (a right request for out/), and done/, which looks
like a finished run without an index. In a case's arguments @ stands for it.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file, save_file

from datainf_ray.config import RunConfig

#: Nothing is asked of a network, and no credentials are found.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_GCE_CHECK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_COLOR": "1",
    "TERM": "dumb",
}


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Path], list[str]]  # puts what is needed into the folder, and returns the command's arguments
    status: int = 2
    says: str = ""  # what the line must say
    usage: bool = False  # the answer is the command's usage
    joins: bool = False  # a cluster is looked for, which is not there


def scene(folder: Path) -> Path:
    """The folder that every case begins with."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=64,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    base.save_pretrained(folder / "base")
    words = {word: k for k, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", *(f"w{n}" for n in range(60))))}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder / "base")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    model.save_pretrained(str(folder / "adapter"))
    for name, count in (("train", 30), ("queries", 3)):
        write_rows(folder / f"{name}.jsonl", [row(k) for k in range(count)])
    (folder / "c.yaml").write_text(yaml.safe_dump(config()))
    return folder


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"name": f"row-{number}", "prompt": f"w{number % 50} w1", "completion": f" w{number % 40} w2 w3", **more}


def write_rows(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def config() -> dict[str, Any]:
    return {
        "model": {"base": "base", "adapter": "adapter"},
        "train": {"path": "train.jsonl"},
        "queries": {"path": "queries.jsonl"},
        "output": "out",
    }


def asking(*arguments: str, **changes: Any) -> Callable[[Path], list[str]]:
    """`datainf ARGUMENTS` with c.yaml as it is but for `changes`, whose keys have __ for the configuration's dots."""

    def make(folder: Path) -> list[str]:
        tree: dict[str, Any] = config()
        for key, value in changes.items():
            *path, last = key.split("__")
            inner = tree
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = value
        (folder / "c.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
        return list(arguments or ("run", "c.yaml"))

    return make


def after(change: Callable[[Path], Any], *arguments: str, **changes: Any) -> Callable[[Path], list[str]]:
    """The same, when `change` has done something to the folder."""

    def make(folder: Path) -> list[str]:
        change(folder)
        return asking(*arguments, **changes)(folder)

    return make


def in_turn(*changes: Callable[[Path], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for change in changes:
            change(folder)

    return make


def asked_after(change: Callable[[Path], Any], arguments: list[str]) -> Callable[[Path], list[str]]:
    """These arguments as they are, when `change` has done something to the folder."""

    def make(folder: Path) -> list[str]:
        change(folder)
        return arguments

    return make


def text(content: str | bytes, name: str = "c.yaml") -> Callable[[Path], list[str]]:
    data = content.encode() if isinstance(content, str) else content

    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(data)
        return ["run", name]

    return make


def _syntax() -> Iterator[Case]:
    right = yaml.safe_dump(config())
    contents: dict[str, str | bytes] = {
        "nothing": "",
        "null": "null\n",
        "a list": "- a\n- b\n",
        "a word": "run\n",
        "a number": "3\n",
        "a tab": "model:\n\tbase: x\n",
        "not UTF-8": b"model: \xff\xfe\n",
        "UTF-16": "model: {}\n".encode("utf-16"),
        "an open bracket": "model: [\n",
        "a NUL": b"a: \x00\n",
        "a tag": "model: !!python/object/apply:os.system ['true']\n",
        "an alias to nothing": "model: *there\n",
        "two documents": f"{right}---\n{right}",
        "a key twice": f"{right}output: two\n",
        "a key twice within": right.replace("model:", "model:\n  base: x"),
        "on as a key": f"{right}on: 1\n",
        "on as a value": f"{right}gradients: on\n",
        "yes": f"{right}results: {{scores: yes}}\n",
        "no": f"{right}results: {{scores: no}}\n",
        "octal": f"{right}seed: 010\n",
        "octal 0o": f"{right}seed: 0o10\n",
        "sexagesimal": f"{right}seed: 30:00\n",
        "sexagesimal float": f"{right}cluster: {{checkpoint_seconds: 1:30.5}}\n",
        ".inf": f"{right}method: {{damping: .inf}}\n",
        ".nan": f"{right}method: {{damping: .nan}}\n",
        "a number as a key": f"{right}3: 4\n",
        "null as a key": f"{right}~: 4\n",
        "deep": "a: " + "[" * 5000 + "]" * 5000,
        "a bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + k)}: &{chr(98 + k)} [{','.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(9)),
        "HTML": "<html><body>404</body></html>",
        "JSON cut off": '{"model": {"base": ',
        "a very long line": "a: " + "x" * 100_000,
    }
    for name, content in contents.items():
        yield Case(f"config: {name}", text(content))

    def unlinked(folder: Path) -> None:
        (folder / "c.yaml").unlink()

    for name, change in {
        "missing": unlinked,
        "a folder": in_turn(unlinked, lambda f: (f / "c.yaml").mkdir()),
        "a FIFO": in_turn(unlinked, lambda f: os.mkfifo(f / "c.yaml")),
        "a device": in_turn(unlinked, lambda f: (f / "c.yaml").symlink_to("/dev/zero")),
        "a link to itself": in_turn(unlinked, lambda f: (f / "c.yaml").symlink_to(f / "c.yaml")),
    }.items():
        for command in ("run", "plan"):  # check prints its findings
            yield Case(f"config: {name}, {command}", asked_after(change, [command, "c.yaml"]))
    yield Case("config: an unknown protocol", lambda f: ["run", "nowhere://b/c.yaml"])
    yield Case("config: a closed port", lambda f: ["run", "http://127.0.0.1:9/c.yaml"], says="reached")


def _keys() -> Iterator[Case]:
    """Every key misspelt, and with values that it cannot have."""
    bad: dict[str, Any] = {
        "text": "many",
        "negative": -1,
        "huge": 10**400,
        "a list": ["x", 3],
        "a mapping": {"x": {"y": 1}},
        "true": True,
        "a float": 0.5,
    }
    for part, field in RunConfig.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        names = {part: field} if inner is None else {f"{part}.{name}": value for name, value in inner.items()}
        for key, found in names.items():
            yield Case(f"key: {key} misspelt", asking("run", "c.yaml", "--set", f"{key}x=1"), says="unknown key")
            kinds = {str(kind) for kind in _kinds(found.annotation)}
            for name, value in bad.items():
                if _cannot(name, kinds, key):
                    yield Case(
                        f"key: {key} {name}",
                        asking("run", "c.yaml", "--set", f"{key}={json.dumps(value)}"),
                        says=key.partition(".")[0],
                    )
    for key in ("model", "train", "queries", "output", "model.base", "model.adapter", "train.path"):
        yield Case(f"key: {key} null", asking("run", "c.yaml", "--set", f"{key}=null"), says=key)
        yield Case(f"key: {key} empty", asking("run", "c.yaml", "--set", f"{key}=''"), says=key)
    for value in ("1e-50", "0", "-0.1", "1e300", "1e-320", ".inf"):
        yield Case(
            f"key: method.damping {value}",
            asking("run", "c.yaml", "--set", f"method.damping={value}"),
            says="method.damping",
        )
    for name, sets in {
        "min above max": ["cluster.min_workers=3", "cluster.max_workers=2"],
        "a fallback without labels": ["cluster.fallback_selector={a: b}"],
        "a projection without an index": ["index_projection=4"],
        "keep with an index of nothing": ["index= ", "index_projection=4"],
        "a sample without a curvature": ["method.name=hessian-free", "method.curvature_rows=10"],
        "a method that is none": ["method.name=datainff"],
        "a tolerance of a closed form": ["method.tolerance=1e-3"],
        "a tolerance of nothing": ["method.name=exact", "method.tolerance=0"],
        "iterations of a closed form": ["method.iterations=3"],
        "no iterations": ["method.name=lissa", "method.iterations=0"],
        "a scale of exact": ["method.name=exact", "method.scale=2"],
        "a scale below zero": ["method.name=lissa", "method.scale=-1"],
        "a row's cosine with itself": ["method.name=cosine", "results.self_influence=true"],
        "a task that is none": ["model.task=causal"],
        "a task of nothing": ["model.task=nowhere:TASK"],
        "a task of ours that is none": ["model.task=os:system"],
        "a task of a path": ["model.task=../x:TASK"],
        "options of an unknown protocol": ["storage_options={nowhere: {a: b}}"],
        "options that are a text": ["storage_options=x"],
    }.items():
        yield Case(f"keys: {name}", asking("run", "c.yaml", *itertools.chain(*(("--set", one) for one in sets))))
    for word in (
        "",
        "=",
        "a",
        "=3",
        "train.path",
        "train.path.x=3",
        "output.x=1",
        "method=3",
        "a.b.c=1",
        "cluster.=1",
        ".cluster=1",
        "seed=[",
        "seed=!!x 1",
        "seed=1\nseed=2",
    ):
        yield Case(f"--set {word!r}", asking("run", "c.yaml", "--set", word))
    for value in ("x", "-1%", "101%", "2", "nan", "inf", "", "1%%", "0.1.1"):
        yield Case(f"--fail-over {value!r}", asking("run", "c.yaml", f"--fail-over={value}"))


def _kinds(annotation: Any) -> Iterator[Any]:
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for one in inner:
        yield from _kinds(one)


def _cannot(name: str, kinds: set[str], key: str) -> bool:
    """Whether a key of these kinds cannot have the bad value of that name."""
    takes_text = "<class 'str'>" in kinds
    if key.endswith(("columns", "selector", "storage_options", "chat_template_kwargs")):
        return name != "a mapping"
    takes = {
        "text": takes_text,
        "negative": False,
        "huge": False,
        "a list": key.endswith(".path"),
        "a mapping": False,
        "true": "<class 'bool'>" in kinds,
        "a float": "<class 'float'>" in kinds,
    }
    return not takes[name] and not (takes_text and name == "text")


def _places() -> Iterator[Case]:
    def rows_in_folders(folder: Path) -> None:
        for name in ("train", "queries"):
            (folder / "data" / name / "rows").mkdir(parents=True)
            shutil.copy(folder / f"{name}.jsonl", folder / "data" / name / "rows" / "part-000000.jsonl")
        for name in ("base", "adapter"):
            (folder / "data" / name).mkdir(parents=True)
            shutil.copytree(folder / name, folder / "data" / name / "rows")

    read = {"model__base": "base", "model__adapter": "adapter", "train__path": "train", "queries__path": "queries"}
    apart = {key: f"data/{name}/rows" for key, name in read.items()}
    for (key, name), written, (relation, path) in itertools.product(
        read.items(),
        ("output", "index"),
        {"is": "data/{}/rows", "holds": "data/{}", "lies in": "data/{}/rows/a/b"}.items(),
    ):
        changes = {**apart, written: path.format(name)}
        yield Case(
            f"places: {written} {relation} {key.replace('__', '.')}", after(rows_in_folders, **changes), says=written
        )
        if relation == "lies in" and written == "output":
            yield Case(
                f"places: plan, {written} {relation} {key}",
                after(rows_in_folders, "plan", "c.yaml", **changes),
                says=written,
            )
    for name in (
        "report.html",
        "top.parquet",
        "queries.parquet",
        "examples/part-000000.parquet",
        "checkpoints/last/adapter_model.safetensors",
        "a.txt",
    ):

        def foreign(folder: Path, name: str = name) -> None:
            (folder / "theirs" / name).parent.mkdir(parents=True)
            (folder / "theirs" / name).write_text("theirs")

        for written, command in itertools.product(("output", "index"), ("run", "plan")):
            yield Case(
                f"places: {written} holds {name}, {command}",
                after(foreign, command, "c.yaml", **{written: "theirs"}),
                says="not empty",
            )
    for where in ("out", "out/examples", "out/checkpoints", "out/events", "out/x.parquet", "."):
        yield Case(f"places: index at {where}", asking(index=where), says="index")
    for where in (
        "/proc/x",
        "/dev/null",
        "/dev/null/x",
        "base/config.json",
        "train.jsonl",
        "memory://x",
        "nowhere://x",
        "http://127.0.0.1:9/x",
        "\0",
        "x" * 5000,
        "x/" * 3000,
    ):
        yield Case(f"places: output {where[:30]!r}", asking(output=where), says="output")


def _rows() -> Iterator[Case]:
    def made(data: bytes | str, name: str = "x.jsonl") -> Callable[[Path], Any]:
        return lambda f: (f / name).write_bytes(data.encode() if isinstance(data, str) else data)

    def table(change: Callable[[bytearray], Any]) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            pq.write_table(
                pa.table({"prompt": ["w1"] * 500, "completion": [f"w{k % 50} w2" for k in range(500)]}),
                folder / "x.parquet",
            )
            data = bytearray((folder / "x.parquet").read_bytes())
            (folder / "x.parquet").write_bytes(change(data) or data)

        return make

    good = json.dumps(row(1)) + "\n"
    files: dict[str, tuple[Callable[[Path], Any], str]] = {
        "nothing": (lambda f: None, "x.jsonl"),
        "empty": (made(""), "x.jsonl"),
        "blank lines": (made("\n\n \n"), "x.jsonl"),
        "no suffix": (made(good, "x"), "x"),
        "an unknown suffix": (made(good, "x.exe"), "x.exe"),
        "binary": (made(bytes(range(256)) * 10), "x.jsonl"),
        "a JSON list": (made("[1, 2]\n"), "x.jsonl"),
        "numbers": (made("1\n2\n"), "x.jsonl"),
        "no column of ours": (made('{"a": 1}\n'), "x.jsonl"),
        "a FIFO": (lambda f: os.mkfifo(f / "x.jsonl"), "x.jsonl"),
        "a device": (lambda f: (f / "x.jsonl").symlink_to("/dev/zero"), "x.jsonl"),
        "a random device": (lambda f: (f / "x.jsonl").symlink_to("/dev/urandom"), "x.jsonl"),
        "a FIFO in a folder": (in_turn(lambda f: (f / "d").mkdir(), lambda f: os.mkfifo(f / "d" / "x.jsonl")), "d"),
        "a FIFO by a glob": (lambda f: os.mkfifo(f / "x.jsonl"), "x*.jsonl"),
        "a FIFO as parquet": (lambda f: os.mkfifo(f / "x.parquet"), "x.parquet"),
        "a socket": (_socket, "x.jsonl"),
        "standard input": (lambda f: None, "/dev/stdin"),
        "a folder of that name": (lambda f: (f / "x.jsonl").mkdir(), "x.jsonl"),
        "an empty folder": (lambda f: (f / "d").mkdir(), "d"),
        "a glob of nothing": (lambda f: None, "no*.jsonl"),
        "a glob of folders": (lambda f: (f / "d.jsonl").mkdir(), "d*"),
        "a dangling link": (lambda f: (f / "x.jsonl").symlink_to("nowhere"), "x.jsonl"),
        "a link to itself": (lambda f: (f / "x.jsonl").symlink_to("x.jsonl"), "x.jsonl"),
        "CSV of no rows": (made("prompt,completion\n", "x.csv"), "x.csv"),
        "CSV of an open quote": (made('prompt,completion\n"w1,w2\n', "x.csv"), "x.csv"),
        "gzip cut off": (
            lambda f: (f / "x.jsonl.gz").write_bytes(gzip.compress(good.encode() * 500)[:60]),
            "x.jsonl.gz",
        ),
        "no gzip": (made(good, "x.jsonl.gz"), "x.jsonl.gz"),
        "no zstd": (made(good, "x.jsonl.zst"), "x.jsonl.zst"),
        "no Parquet": (made(good, "x.parquet"), "x.parquet"),
        "no Arrow": (made(good, "x.arrow"), "x.arrow"),
        "Parquet cut off": (table(lambda d: d[: len(d) // 2]), "x.parquet"),
        "Parquet flipped": (
            table(lambda d: [d.__setitem__(k, d[k] ^ 255) for k in range(4, 60)] and None),
            "x.parquet",
        ),
        "Parquet without a footer": (table(lambda d: d[:-20]), "x.parquet"),
        "Parquet empty": (made("", "x.parquet"), "x.parquet"),
        "completions null": (made((json.dumps({"prompt": "w1", "completion": None}) + "\n") * 100), "x.jsonl"),
        "completions numbers": (made((json.dumps({"prompt": "w1", "completion": 3}) + "\n") * 9), "x.jsonl"),
        "ids out of range": (made((json.dumps({"input_ids": [99999, 5]}) + "\n") * 9), "x.jsonl"),
        "ids negative": (made((json.dumps({"input_ids": [-3, 5]}) + "\n") * 9), "x.jsonl"),
        "ids of text": (made((json.dumps({"input_ids": ["a"]}) + "\n") * 9), "x.jsonl"),
        "messages of nothing": (made((json.dumps({"messages": []}) + "\n") * 9), "x.jsonl"),
        "labels": (made((json.dumps({"text": "w1", "label": 1}) + "\n") * 9), "x.jsonl"),
        "a closed port": (lambda f: None, "http://127.0.0.1:9/x.jsonl"),
        "an unknown protocol": (lambda f: None, "nowhere://x.jsonl"),
        "a NUL": (lambda f: None, "x\0.jsonl"),
        "a long name": (lambda f: None, "x" * 5000),
        "a hostile name": (lambda f: None, "\x1b[31mred\u202e.jsonl"),
        "an archive that is none": (made(good, "x.zip"), "zip://*.jsonl::x.zip"),
    }
    for name, (change, path) in files.items():
        for part in ("train", "queries"):
            says = "chat template" if name == "messages of nothing" else part
            yield Case(f"rows: {part} {name}", after(change, **{f"{part}__path": path}), says=says)
    for key, value in {"columns": {"prompt": "nowhere"}, "id": "nowhere", "max_length": 1}.items():
        yield Case(f"rows: {key} {value}", asking(**{f"train__{key}": value}), says="train")
    for targets in ("assistant", "last-assistant", "nowhere", "completions", "", ["all"]):
        yield Case(f"rows: targets {targets!r}", asking(train__targets=targets), says="train")
    for text in (
        "{{ prompt",
        "{{ nowhere }}",
        "{% include 'c.yaml' %}",
        "{{ prompt.__class__ }}",
        "{{ prompt | nowhere }}",
        "{% for a in range(10**9) %}{{ a }}{% endfor %}",
        "{{ 'x' * 10**9 }}",
    ):
        yield Case(f"rows: a column {text}", asking(train__columns={"prompt": text, "completion": "completion"}))
    yield Case("rows: Jinja for a role of lists", asking(train__columns={"messages": "{{ prompt }}"}), says="messages")
    for value in ("nowhere", 3, ["none"], ""):
        yield Case(f"rows: quoting {value!r}", asking(train__quoting=value), says="train.quoting")
    splits = in_turn(
        lambda f: (f / "d").mkdir(), lambda f: made(good, "d/train.jsonl")(f), lambda f: made(good, "d/test.jsonl")(f)
    )
    yield Case("rows: a folder of two splits", after(splits, train__path="d"), says="train.path")
    yield Case("rows: UTF-16", after(made(good.encode("utf-16")), train__path="x.jsonl"), says="train.path")
    talks = made((json.dumps({"messages": [{"role": "user", "content": "w1"}]}) + "\n") * 9)
    yield Case("rows: talks without an assistant", after(talks, train__path="x.jsonl"), says="chat template")
    yield Case("rows: an unknown role", asking(train__columns={"nonsense": "prompt"}), says="nonsense")
    yield Case("rows: max_length 2", asking(train__max_length=2), says="max_length")
    yield Case("rows: a group that is not there", asking(queries__group="nowhere"), says="queries.group")
    yield Case(
        "rows: plan of nothing usable",
        after(
            made((json.dumps({"prompt": "w1", "completion": None}) + "\n") * 100),
            "plan",
            "c.yaml",
            train__path="x.jsonl",
        ),
        says="train",
    )


def _socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # a socket's name may not be long
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("x.jsonl")
    os.chdir(here)


def _models() -> Iterator[Case]:
    def weights(
        name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    ) -> Callable[[Path], None]:
        return lambda f: save_file(change(load_file(f / name)), f / name, {"format": "pt"})

    def cut(name: str, keep: float) -> Callable[[Path], Any]:
        return lambda f: (f / name).write_bytes((f / name).read_bytes()[: int(keep * (f / name).stat().st_size)])

    def replaced(name: str, data: bytes) -> Callable[[Path], Any]:
        return lambda f: (f / name).write_bytes(data)

    def edited(name: str, **changes: Any) -> Callable[[Path], Any]:
        return lambda f: (f / name).write_text(json.dumps({**json.loads((f / name).read_text()), **changes}))

    def pickled(folder: str, name: str) -> Callable[[Path], None]:
        def change(f: Path) -> None:
            file = next((f / folder).glob("*.safetensors"))
            torch.save(load_file(file), f / folder / name)
            file.unlink()

        return change

    def fifo(name: str) -> Callable[[Path], None]:
        def change(f: Path) -> None:
            (f / name).unlink()
            os.mkfifo(f / name)

        return change

    base, adapter = "base/model.safetensors", "adapter/adapter_model.safetensors"
    nan = float("nan")
    for name, change in {
        "adapter of NaN": weights(adapter, lambda w: {k: v * nan for k, v in w.items()}),
        "adapter of one NaN": weights(
            adapter, lambda w: {k: v.index_fill(0, torch.tensor([1]), nan) for k, v in w.items()}
        ),
        "adapter of infinity": weights(adapter, lambda w: {k: v + float("inf") for k, v in w.items()}),
        "adapter cut off": cut(adapter, 0.7),
        "adapter's header cut off": cut(adapter, 0.02),
        "adapter empty": replaced(adapter, b""),
        "adapter a text": replaced(adapter, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "adapter without a tensor": weights(adapter, lambda w: dict(list(w.items())[1:])),
        "adapter of another rank": edited("adapter/adapter_config.json", r=8),
        "adapter of another kind": edited("adapter/adapter_config.json", peft_type="IA3"),
        "adapter of no kind": edited("adapter/adapter_config.json", peft_type="NOTHING"),
        "adapter's config half": cut("adapter/adapter_config.json", 0.5),
        "adapter's config []": replaced("adapter/adapter_config.json", b"[]"),
        "adapter's config gone": lambda f: (f / "adapter/adapter_config.json").unlink(),
        "adapter's config a FIFO": fifo("adapter/adapter_config.json"),
        "adapter a FIFO": fifo(adapter),
        "adapter's targets nowhere": edited("adapter/adapter_config.json", target_modules=["nowhere"]),
        "base of NaN": weights(base, lambda w: {k: v * nan for k, v in w.items()}),
        "base cut off": cut(base, 0.7),
        "base's header cut off": cut(base, 0.001),
        "base empty": replaced(base, b""),
        "base a text": replaced(base, b"version https://git-lfs"),
        "base pickled": pickled("base", "pytorch_model.bin"),
        "base without weights": lambda f: (f / base).unlink(),
        "base's config half": cut("base/config.json", 0.5),
        "base's config []": replaced("base/config.json", b"[]"),
        "base's config gone": lambda f: (f / "base/config.json").unlink(),
        "base's config a FIFO": fifo("base/config.json"),
        "base of an unknown kind": edited("base/config.json", model_type="nothing"),
        "base of another width": edited("base/config.json", hidden_size=64),
        "base of an absurd width": edited("base/config.json", hidden_size="wide"),
        "base's tokenizer half": cut("base/tokenizer.json", 0.5),
        "base's tokenizer a FIFO": fifo("base/tokenizer.json"),
        "base a FIFO": fifo(base),
        "base of missing shards": lambda f: (
            (f / base).rename(f / "base/model-00001-of-00002.safetensors"),
            (f / "base/model.safetensors.index.json").write_text(
                json.dumps({"metadata": {}, "weight_map": {"a": "model-00002-of-00002.safetensors"}})
            ),
        ),
    }.items():
        yield Case(f"model: {name}", after(change), says="model.")
    for key, value in itertools.product(
        ("base", "adapter"),
        (
            "nowhere",
            "/nowhere",
            "./nowhere",
            "org/nothing",
            "org/a/b",
            "train.jsonl",
            "nowhere://x",
            "http://127.0.0.1:9/x",
            "",
            "\x1b[31mred",
        ),
    ):
        yield Case(f"model: {key} {value!r}", asking(**{f"model__{key}": value}), says=f"model.{key}")
    talks = in_turn(
        lambda f: write_rows(f / "x.jsonl", [{"messages": [{"role": "user", "content": "w1"}]}] * 9),
        lambda f: (f / "t.jinja").write_text("{{ raise_exception('no \x1b[31m') }}"),
        lambda f: (f / "t.bin").write_bytes(b"\xff{{"),
        lambda f: (f / "large").write_text("{{ 1 }}" + "x" * 2**21),
        lambda f: os.mkfifo(f / "fifo"),
    )
    for template in (
        "nowhere",
        "base",
        "c.yaml",
        "t.bin",
        "large",
        "fifo",
        "/dev/zero",
        "{{ 1",
        "t.jinja",
        "x://y",
        "",
    ):
        yield Case(
            f"model: chat_template {template!r}", after(talks, model__chat_template=template, train__path="x.jsonl")
        )
    for kwargs in ("x", ["a"], {"messages": 1}, {"tokenize": True}, {"date": "tomorrow"}, {"a-b": 1}, {3: 4}):
        yield Case(
            f"model: chat_template_kwargs {kwargs}",
            after(talks, model__chat_template_kwargs=kwargs, train__path="x.jsonl"),
        )
    yield Case("model: a classifier's task", asking(model__task="sequence-classification"))
    yield Case("model: a translator's task", asking(model__task="seq2seq-lm"))


def _commands() -> Iterator[Case]:
    def run(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
        return in_turn(lambda f: (f / "r").mkdir(), lambda f: make(f / "r" / name))

    def holding(content: bytes) -> Callable[[Path], None]:
        return run("run.json", lambda path: path.write_bytes(content))

    for name, change in {
        "is missing": lambda f: None,
        "is empty": lambda f: (f / "r").mkdir(),
        "is a file": lambda f: (f / "r").write_text("x"),
        "has []": holding(b"[]"),
        "has {}": holding(b"{}"),
        "has a folder": run("run.json", Path.mkdir),
        "has nonsense": holding(b"\xff\x00"),
        "has format 2": holding(b'{"format": 2}'),
        "has no config": holding(b'{"format": 1, "state": "done"}'),
        "has a FIFO": run("run.json", os.mkfifo),
    }.items():
        for command in (
            ["top", "r"],
            ["report", "r"],
            ["query", "r", "--queries", "queries.jsonl", "--output", "o"],
            ["run", "c.yaml", "--set", "output=r"],
        ):
            if command[0] == "run" and name in ("is missing", "is empty"):
                continue  # a right request
            yield Case(f"{command[0]}: a run that {name}", asked_after(change, command))
    for words in (
        ["nothing"],
        ["run"],
        ["run", "c.yaml", "--nothing"],
        ["top"],
        ["top", "r", "-k", "0"],
        ["top", "r", "-k", "x"],
        ["top", "r", "--format", "x"],
        ["query", "r"],
        ["plan", "c.yaml", "more"],
        ["tokens"],
        ["tokens", "c.yaml", "--row", "x"],
        ["tokens", "c.yaml", "--row"],
        ["--nothing"],
    ):
        yield Case(f"usage: {' '.join(words)}", asked_after(lambda f: None, words), usage=True)
    for number in (30, -1, 2**70):
        yield Case(f"tokens: row {number}", asking("tokens", "c.yaml", "--row", str(number)), says="--row")
    for key in ("train.path=nowhere", "model.adapter=nowhere", "model.base=nowhere"):
        yield Case(f"tokens: {key}", asking("tokens", "c.yaml", "--set", key))
    yield Case("tokens: of no configuration", lambda f: ["tokens", "nowhere.yaml"])
    for value in ("x", "", "lines "):
        yield Case(f"--progress {value!r}", asking("run", "c.yaml", "--progress", value))
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9", "nowhere.invalid:6379", "x", "http://127.0.0.1:9"):
        yield Case(f"cluster.address {address}", asking(cluster__address=address), says="cluster.address", joins=True)


CASES: list[Case] = [*_syntax(), *_keys(), *_places(), *_rows(), *_models(), *_commands()]
