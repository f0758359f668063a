"""Adapters of models that were changed before they were trained, or come from elsewhere, and their gradients."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from datainf_ray.common.errors import RequestError
from datainf_ray.config import ModelConfig
from datainf_ray.model.inspect import inspect_model
from tests import reference, tiny
from tests.model.compare import captured, examples_of, relative, rows_for

QV = ["q_proj", "v_proj"]
MORE = tiny.VOCABULARY + 3
_LLAMA = tiny.CONFIGS["llama"]
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": tiny.VOCABULARY}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SEEN = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}


def moe() -> Any:
    return transformers.Qwen3MoeConfig(
        **_SMALL, **_IDS, num_key_value_heads=2, head_dim=8, intermediate_size=48, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip


def qwen_with_eyes() -> Any:
    text = tiny.CONFIGS["llama"]().to_dict() | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    }
    return transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config={**_SEEN, "fullatt_block_indexes": [0]}, image_token_id=60, video_token_id=61,
        vision_start_token_id=62, vision_end_token_id=63,
    )  # fmt: skip


def save(
    folder: Path,
    config: Any,
    adapter: Any,
    *,
    grow: int | None = None,
    auto: Any = transformers.AutoModelForCausalLM,
    **saving: Any,
) -> dict[str, Any]:
    """Base and adapter as their users save them; `grow`: to so many tokens before the adapter is made."""
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder / "base")
    tiny.tokenizer().save_pretrained(folder / "base")
    base = auto.from_pretrained(folder / "base", dtype=torch.float32)
    if grow is not None:
        base.resize_token_embeddings(grow, mean_resizing=False)
    model = peft.get_peft_model(base, adapter)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder / "adapter", **saving)
    return {"base": str(folder / "base"), "adapter": str(folder / "adapter"), "task": "causal-lm"}


def is_right(
    model: dict[str, Any], folder: Path, grow: int | None = None, auto: Any = transformers.AutoModelForCausalLM
) -> list[str]:
    """The replica's gradients are autograd's, of a model that was put together by hand. Returns the blocks' names."""
    facts = inspect_model(ModelConfig(**model), tiny.task(model["task"]))
    replica = tiny.replica(model)
    assert replica.blocks == facts.blocks
    base = auto.from_pretrained(model["base"], dtype=torch.float32, attn_implementation="eager")
    if grow is not None:
        base.resize_token_embeddings(grow, mean_resizing=False)
    if hasattr(base.config, "num_experts"):
        base.set_experts_implementation("eager")  # the others know no float64
    exact = peft.PeftModel.from_pretrained(base, model["adapter"], is_trainable=True).double().eval()
    rows = rows_for(model, folder)
    if grow is not None:
        for row in rows:
            for key in ("input_ids", "labels"):
                row[key] = [min(token, grow - 1) for token in row[key]]
        rows[0]["input_ids"][-2:-1] = rows[0]["labels"][-2:-1] = [grow - 1]  # perhaps one that the base does not have
    want = reference.gradients(exact, rows)
    losses = torch.stack([reference.loss(exact, row) for row in rows]).detach()
    got, found = captured(replica, examples_of(rows), 3)
    assert replica.path == "hooks", replica.reason
    torch.testing.assert_close(found.double(), losses, rtol=1e-5, atol=0)
    assert len(got) == len(want)
    for (name, gradients), exactly in zip(got.items(), want.values(), strict=True):
        assert relative(gradients, exactly) < 1e-4, name
    return [block.name for block in replica.blocks]


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": QV, **settings})


def tied() -> Any:
    config = _LLAMA()
    config.tie_word_embeddings = True
    return config


#: What was changed of the base, how the adapter was made, and how many tokens there then are.
CHANGED: dict[str, tuple[Callable[[], Any], dict[str, Any], int | None]] = {
    "longer": (_LLAMA, {}, MORE),
    "shorter": (_LLAMA, {}, tiny.VOCABULARY - 2),
    "longer, and saved whole": (_LLAMA, {"modules_to_save": ["embed_tokens", "lm_head"]}, MORE),
    "longer, and single tokens": (_LLAMA, {"trainable_token_indices": [64, 65, 66]}, MORE),
    "longer, and the head": (tied, {"target_modules": ["q_proj", "lm_head"]}, MORE),
    "the head": (_LLAMA, {"target_modules": ["q_proj", "lm_head"]}, None),
    "the table": (_LLAMA, {"target_modules": ["q_proj", "embed_tokens"]}, None),
    "longer, and the table": (tied, {"target_modules": ["q_proj", "embed_tokens"]}, MORE),
    "frozen lora_B": (_LLAMA, {"init_lora_weights": "mica"}, None),
    "another base": (_LLAMA, {"init_lora_weights": "pissa"}, None),
    "fused experts alone": (moe, {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}, None),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_model_that_was_changed_before_it_was_trained(case: str, tmp_path: Path) -> None:
    config, settings, grow = CHANGED[case]
    model = save(tmp_path, config(), lora(**settings), grow=grow)
    names = is_right(model, tmp_path, grow)
    trained = settings.get("modules_to_save") or settings.get("trainable_token_indices")
    assert any(name.endswith(("embed_tokens.weight", "lm_head.weight")) for name in names) == (
        bool(settings.get("modules_to_save"))
    ), "a table that was only brought along is no block"
    assert any("tokens" in name for name in names) or not trained


def test_new_tokens_that_nobody_has_are_refused(tmp_path: Path) -> None:
    """PEFT leaves the tables out where it cannot see that they were resized, and one where the other is trained."""
    for k, (adapter, saving) in enumerate(
        (
            (lora(trainable_token_indices=[66]), {"save_embedding_layers": False}),
            (lora(target_modules=["q_proj", "embed_tokens"]), {}),
            (lora(target_modules=["q_proj", "lm_head"]), {}),
        )
    ):
        model = save(tmp_path / str(k), _LLAMA(), adapter, grow=MORE, **saving)
        with pytest.raises(RequestError, match=r"made for 67 tokens, the base has 64, .* save_embedding_layers=True"):
            inspect_model(ModelConfig(**model), tiny.task("causal-lm"))


def per_expert(folder: Path) -> None:
    """Turn the adapter's file into one of transformers 4, where every expert had linear layers of its own."""
    file, settings = folder / "adapter" / "adapter_model.safetensors", folder / "adapter" / "adapter_config.json"
    state, made = load_file(file), json.loads(settings.read_text())
    generator = torch.Generator().manual_seed(1)
    for layer in range(2):
        for expert in range(4):
            for name, (wide, out) in {"gate_proj": (32, 16), "up_proj": (32, 16), "down_proj": (16, 32)}.items():
                at = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{name}"
                state[f"{at}.lora_A.weight"] = 0.2 * torch.randn(3, wide, generator=generator)
                state[f"{at}.lora_B.weight"] = 0.2 * torch.randn(out, 3, generator=generator)
    save_file(state, file)
    settings.write_text(json.dumps(made | {"target_modules": [*QV, "gate_proj", "up_proj", "down_proj"]}))


def test_experts_of_transformers_4(tmp_path: Path) -> None:
    model = save(tmp_path, moe(), lora())
    per_expert(tmp_path)
    names = is_right(model, tmp_path)
    assert "model.layers.1.mlp.experts.base_layer.lora_B.weight" in names


@pytest.mark.parametrize("kind", ["its own", "of images and texts"])
def test_texts_for_a_model_of_images_and_texts(kind: str, tmp_path: Path) -> None:
    """The class of model is the one that the adapter's tensors fit."""
    auto = transformers.AutoModelForImageTextToText
    adapter = lora(target_modules=r".*language_model.*\.(q_proj|v_proj)")
    if kind == "its own":  # one that transformers' language models know, too
        config = transformers.Gemma3Config(
            text_config={**_SMALL, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, **_IDS},
            vision_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                           "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
            image_token_index=60, mm_tokens_per_image=4,
        )  # fmt: skip
    else:
        config = qwen_with_eyes()
    names = is_right(save(tmp_path, config, adapter, auto=auto), tmp_path, auto=auto)
    assert len(names) == 8


KINDS: dict[str, Callable[[], Any]] = {
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "AdaLoRA": lambda: peft.AdaLoraConfig(target_modules=QV, init_r=3, target_r=2, total_step=10),
    "LoHa": lambda: peft.LoHaConfig(target_modules=QV, r=3),
    "LoKr": lambda: peft.LoKrConfig(target_modules=QV, r=3),
    "OFT": lambda: peft.OFTConfig(target_modules=QV, oft_block_size=8, use_cayley_neumann=False),
    "VeRA": lambda: peft.VeraConfig(target_modules=QV, r=8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapters(kind: str, tmp_path: Path) -> None:
    is_right(save(tmp_path, _LLAMA(), KINDS[kind]()), tmp_path)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "prompts": (lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PROMPT_TUNING: it puts"),
    "prefixes": (lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PREFIX_TUNING"),
    "a base at random": (lambda: lora(init_lora_weights="pissa_niter_4"), "path_initial_model_for_weight_conversion"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_attributed_is_refused_by_name(case: str, tmp_path: Path) -> None:
    adapter, said = REFUSED[case]
    model = save(tmp_path, _LLAMA(), adapter())
    with pytest.raises(RequestError, match=said):
        inspect_model(ModelConfig(**model), tiny.task("causal-lm"))


def test_a_base_whose_checkpoint_lacks_something_is_found_before_it_is_loaded(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "llama")
    file = tmp_path / "base" / "model.safetensors"
    state = load_file(file)
    removed = state.pop("model.norm.weight")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(RequestError, match=r"checkpoint has no model\.norm\.weight .* random weights"):
        inspect_model(ModelConfig(**model), tiny.task("causal-lm"))
    save_file({**state, "model.norm.weight": removed[:-1].clone()}, file, {"format": "pt"})
    with pytest.raises(RequestError, match=r"has model\.norm\.weight as 31, and by its config\.json it is 32"):
        inspect_model(ModelConfig(**model), tiny.task("causal-lm"))


def test_a_model_without_an_adapter(tmp_path: Path) -> None:
    """One that was trained itself; its tables are tied, and its head counts with them."""
    for arch, settings, patterns in (
        ("llama", {"tie_word_embeddings": True}, ("*",)),
        ("gpt2", {}, ("!*.ln_*", "!*.h.0.*")),
        ("bert", {}, ("*.attention.*", "classifier.*", "!*.key.bias")),
    ):
        folder = tmp_path / arch
        model = tiny.save_model(folder, arch, settings=settings) | {"adapter": None, "blocks": patterns}
        if arch == "bert":  # a head that was trained is in the checkpoint
            model["base"] = str(folder / "base")
        base = reference.KINDS[model["task"]].from_pretrained(model["base"], dtype=torch.float64)
        blocks = {n: p for n, p in base.eval().named_parameters() if _asked(n, patterns)}
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name in blocks)
        replica = tiny.replica(model)
        assert [block.name for block in replica.blocks] == list(blocks)
        rows = rows_for(model, folder)
        got, losses = captured(replica, examples_of(rows), 3)
        assert replica.path == "hooks", replica.reason
        want = reference.gradients(base, rows)
        torch.testing.assert_close(
            losses.double(), torch.stack([reference.loss(base, row) for row in rows]).detach(), rtol=1e-5, atol=0
        )
        for name, exactly in want.items():
            assert relative(got[name], exactly) < 1e-4, (arch, name)


def _asked(name: str, patterns: tuple[str, ...]) -> bool:
    """By hand, for the three above."""
    if patterns[0] == "*":
        return True
    if "!" in patterns[0]:
        return ".ln_" not in name and ".h.0." not in name
    return (".attention." in name or name.startswith("classifier.")) and not name.endswith(".key.bias")


BLOCKS: dict[str, tuple[tuple[str, ...], str | list[str]]] = {
    "of one layer": (("*.layers.1.*",), ["1.self_attn.q_proj", "1.self_attn.v_proj"]),
    "but those": (("!*.v_proj.*",), ["0.self_attn.q_proj", "1.self_attn.q_proj"]),
    "the last counts": (("*", "!*.layers.*", "*.1.*.v_proj.*"), ["1.self_attn.v_proj"]),
    "nothing there": (("*.k_proj.*",), "model.blocks: *.k_proj.*: fits no block; the blocks are model.layers.0"),
    "none left": (("*", "!*"), "leaves no block"),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_are_chosen_by_patterns(case: str, tmp_path: Path) -> None:
    patterns, expected = BLOCKS[case]
    model = tiny.save_model(tmp_path, "llama") | {"blocks": patterns}
    if isinstance(expected, str):
        with pytest.raises(RequestError) as refused:
            inspect_model(ModelConfig(**model), tiny.task("causal-lm"))
        assert expected in str(refused.value)
        return
    replica = tiny.replica(model)
    assert replica.blocks == inspect_model(ModelConfig(**model), tiny.task("causal-lm")).blocks
    stems = [name.removeprefix("model.layers.").partition(".lora_")[0] for name in (b.name for b in replica.blocks)]
    assert sorted(set(stems)) == expected


class Hostile:
    """Unpickled by whoever trusts pickles, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "run"))


def test_pickled_adapters_are_read_as_tensors_and_nothing_else(tmp_path: Path) -> None:
    model = save(tmp_path, _LLAMA(), lora())
    wanted = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    file = tmp_path / "adapter" / "adapter_model.bin"
    torch.save(wanted, file)
    replica = tiny.replica(model)
    for name, parameter in replica.parameters.items():
        assert torch.equal(parameter, wanted[f"base_model.model.{name}"])
    spoiled: dict[str, Tensor] = {**wanted, sorted(wanted)[0]: torch.full_like(wanted[sorted(wanted)[0]], torch.nan)}
    torch.save(spoiled, file)
    with pytest.raises(RequestError, match="96 values of 96 that are not finite"):
        inspect_model(ModelConfig(**model), tiny.task("causal-lm"))
    for hostile in (pickle.dumps(Hostile(tmp_path / "written")), None):
        if hostile is None:
            torch.save({"x": Hostile(tmp_path / "written")}, file)
        else:
            file.write_bytes(hostile)
        with pytest.raises(RequestError, match="is a pickle of more than tensors, and none of it was run"):
            inspect_model(ModelConfig(**model), tiny.task("causal-lm"))
        assert not (tmp_path / "written").exists()


def test_code_beside_a_base_is_not_run(tmp_path: Path) -> None:
    """Where config.json names some, and transformers knows the model as well; nobody has asked for it."""
    model = save(tmp_path, _LLAMA(), lora())
    (tmp_path / "base" / "modeling_theirs.py").write_text(
        f"open({str(tmp_path / 'written')!r}, 'w')\n"
        "from transformers import LlamaForCausalLM\nclass Theirs(LlamaForCausalLM):\n    pass\n"
    )
    file = tmp_path / "base" / "config.json"
    theirs = {"auto_map": {"AutoModelForCausalLM": "modeling_theirs.Theirs"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | theirs))
    assert inspect_model(ModelConfig(**model), tiny.task("causal-lm")).blocks
    assert type(tiny.replica(model).model.get_base_model()).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "written").exists()


def test_a_folder_of_adapters_names_them(tmp_path: Path) -> None:
    model = save(tmp_path, _LLAMA(), lora())
    for name in ("out/checkpoint-9", "out/checkpoint-10", "out/last/reward"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "adapter").rename(tmp_path / name)
        save(tmp_path, _LLAMA(), lora())
    with pytest.raises(RequestError, match=r"give one of its folders: checkpoint-9, checkpoint-10, last/reward$"):
        inspect_model(ModelConfig(**model | {"adapter": str(tmp_path / "out")}), tiny.task("causal-lm"))


def test_modules_saved_one_within_another_are_refused(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path, "bert", lora={"modules_to_save": ["embeddings", "word_embeddings", "classifier"]})
    with pytest.raises(RequestError, match=r"embeddings\.word_embeddings"):
        inspect_model(ModelConfig(**model), tiny.task("sequence-classification"))
