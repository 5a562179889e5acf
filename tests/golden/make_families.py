"""Makes tests/golden/families: tiny random models of every supported family
and the outputs of Hugging Face transformers for them.

    python3 tests/golden/make_families.py tests/golden/families

Made with transformers 5.17.0 and torch 2.11.0 in float32 on a CPU.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

PROMPT = 24
STEPS = 16

common = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
    tie_word_embeddings=False,
)


def rope(kind, **rest):
    return dict(rope_type=kind, rope_theta=10000.0, **rest)


FAMILIES = {
    "llama_default": (LlamaForCausalLM, LlamaConfig, dict(), torch.float32),
    "llama_multi_head": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(num_key_value_heads=4, tie_word_embeddings=True),
        torch.bfloat16,
    ),
    "llama_multi_query": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(num_key_value_heads=1, head_dim=12),
        torch.float16,
    ),
    "llama_biases": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(attention_bias=True, mlp_bias=True, head_dim=16),
        torch.bfloat16,
    ),
    "llama_linear": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(rope_parameters=rope("linear", factor=2.5)),
        torch.bfloat16,
    ),
    "llama_dynamic": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(max_position_embeddings=16, rope_parameters=rope("dynamic", factor=2.0)),
        torch.bfloat16,
    ),
    "llama_llama3": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(
            rope_parameters=rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            )
        ),
        torch.bfloat16,
    ),
    "llama_yarn": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(
            rope_parameters=rope(
                "yarn", factor=4.0, original_max_position_embeddings=16
            )
        ),
        torch.bfloat16,
    ),
    "llama_yarn_mscale": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(
            rope_parameters=rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                mscale=0.8,
                mscale_all_dim=0.5,
                beta_fast=8.0,
                beta_slow=2.0,
            )
        ),
        torch.bfloat16,
    ),
    "mistral": (
        MistralForCausalLM,
        MistralConfig,
        dict(head_dim=12, sliding_window=None),
        torch.bfloat16,
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config,
        dict(tie_word_embeddings=True),
        torch.bfloat16,
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config,
        dict(head_dim=16),
        torch.bfloat16,
    ),
}


def randomize(model):
    """Biases and norms start as zeros and ones; give them something to do."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.3)
        elif "norm" in name:
            parameter.data.normal_(1, 0.2)


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    for seed, (name, (cls, config_cls, changes, dtype)) in enumerate(FAMILIES.items()):
        torch.manual_seed(seed)
        config = config_cls(**{**common, **changes})
        config._attn_implementation = "eager"
        model = cls(config)
        randomize(model)
        # Stored rounded, computed in float32 from the rounded values.
        model = model.to(dtype)
        folder = out / name
        shard = "40KB" if name == "llama_biases" else "5GB"
        model.save_pretrained(folder, max_shard_size=shard)
        model = cls.from_pretrained(folder, dtype=torch.float32).eval()
        ids = torch.randint(0, 64, (1, PROMPT))
        with torch.no_grad():
            step = model(ids, use_cache=True)
            logits = [row.tolist() for row in step.logits[0]]
            greedy, gaps = [], []
            for _ in range(STEPS):
                top = step.logits[0, -1].topk(2)
                greedy.append(int(top.indices[0]))
                gaps.append(float(top.values[0] - top.values[1]))
                step = model(
                    torch.tensor([[greedy[-1]]]),
                    past_key_values=step.past_key_values,
                    use_cache=True,
                )
        (folder / "generation_config.json").unlink(missing_ok=True)
        golden = dict(
            transformers=transformers.__version__,
            torch=torch.__version__,
            ids=ids[0].tolist(),
            logits=[[float(f"{x:.7g}") for x in row] for row in logits],
            greedy_ids=greedy,
            greedy_gaps=gaps,
        )
        (folder / "golden.json").write_text(json.dumps(golden))
        print(name, greedy, min(gaps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
