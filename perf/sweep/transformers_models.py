"""Small models of transformers, from their configurations: no weights are downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from perf.sweep.double import in_double
from perf.sweep.subject import CLASSES, Call, Recipe, images, package, tokens


def transformer(
    build: Callable[[Any], nn.Module], call: Call | None = None, **options: Any
) -> Recipe:
    """Recipe of a model on tokens; its outputs are the logits unless `call` says else."""
    return tokens(
        lambda: build(package("transformers")),
        31,
        5,
        in_double(call or _logits),
        batch=2,
        **options,
    )


def seeing(build: Callable[[Any], nn.Module], side: int, call: Call) -> Recipe:
    """Recipe of a model of transformers on images."""
    return images(lambda: build(package("transformers")), 3, side, side, call=in_double(call))


def _logits(module: nn.Module, x: Tensor) -> Any:
    return module(input_ids=x).logits


def _hidden(module: nn.Module, x: Tensor) -> Any:
    return module(input_ids=x).last_hidden_state


def _both_sides(module: nn.Module, x: Tensor) -> Any:
    return module(input_ids=x, decoder_input_ids=x.flip(1)).logits


def _masked(module: nn.Module, x: Tensor) -> Any:
    mask = x.new_ones(x.shape)
    mask[0, -2:] = 0
    return module(input_ids=x, attention_mask=mask).logits


def _pictured(module: nn.Module, x: Tensor) -> Any:
    return module(pixel_values=x).logits


_SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
_SEEN: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": CLASSES,
}
_UNGROUPED: dict[str, Any] = {
    f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")
}
_GROUPED = _SIZES | {"num_key_value_heads": 1}
_GPT: dict[str, Any] = {"vocab_size": 31, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
_T5: dict[str, Any] = {
    "vocab_size": 31,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 1,
    "num_heads": 2,
}
_BART: dict[str, Any] = {
    "vocab_size": 31,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 16,
}


def encoder(name: str, call: Call | None = None, training: bool = True, **options: Any) -> Recipe:
    """Recipe of a model with a masked-token head: NAMEForMaskedLM of NAMEConfig."""
    return transformer(
        lambda t: getattr(t, f"{name}ForMaskedLM")(getattr(t, f"{name}Config")(**_SIZES | options)),
        call,
        training=training,
    )


def decoder(
    name: str, sizes: dict[str, Any] | None = None, call: Call | None = None, **options: Any
) -> Recipe:
    """Recipe of a language model: NAMEForCausalLM of NAMEConfig."""
    return transformer(
        lambda t: getattr(t, f"{name}ForCausalLM")(
            getattr(t, f"{name}Config")(**(sizes or _GROUPED) | options)
        ),
        call,
    )


def _whisper() -> nn.Module:
    t = package("transformers")
    config = t.WhisperConfig(
        **{name: size for name, size in _BART.items() if name != "max_position_embeddings"},
        num_mel_bins=8,
        max_source_positions=8,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    found: nn.Module = t.WhisperModel(config)
    return found


def _heard(module: nn.Module, x: Tensor) -> Any:
    ids = torch.full((len(x), 4), 5)
    return module(input_features=x, decoder_input_ids=ids).last_hidden_state.mean(1)[:, :CLASSES]


def _pooled(module: nn.Module, x: Tensor) -> Any:
    return module(pixel_values=x).pooler_output[:, :CLASSES]


CASES: dict[str, Recipe] = {
    "BERT": encoder("Bert"),
    "BERT eval": encoder("Bert", training=False),
    "BERT masked": encoder("Bert", _masked),
    "BERT eager": encoder("Bert", attn_implementation="eager"),
    "RoBERTa": encoder("Roberta"),
    "ALBERT": encoder("Albert", embedding_size=4),
    "Electra": encoder("Electra", embedding_size=4),
    "MobileBERT": encoder(
        "MobileBert", embedding_size=8, true_hidden_size=8, intra_bottleneck_size=8
    ),
    "DeBERTa v2": encoder("DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "ModernBERT": encoder("ModernBert"),
    "RoFormer": encoder("RoFormer", embedding_size=8),
    "SqueezeBERT": encoder(
        "SqueezeBert",
        embedding_size=8,
        **_UNGROUPED,
    ),
    "DistilBERT": transformer(
        lambda t: t.DistilBertForMaskedLM(t.DistilBertConfig(**_SIZES | {"hidden_dim": 12}))
    ),
    "FNet": encoder("FNet"),
    "GPT-2": transformer(lambda t: t.GPT2LMHeadModel(t.GPT2Config(**_GPT))),
    "GPT-2 masked": transformer(lambda t: t.GPT2LMHeadModel(t.GPT2Config(**_GPT)), _masked),
    "GPT-Neo": transformer(
        lambda t: t.GPTNeoForCausalLM(t.GPTNeoConfig(**_SIZES, attention_types=[[["global"], 1]]))
    ),
    "GPT-NeoX": decoder("GPTNeoX", _SIZES),
    "GPT-J": transformer(lambda t: t.GPTJForCausalLM(t.GPTJConfig(**_GPT, rotary_dim=4))),
    "OPT": transformer(
        lambda t: t.OPTForCausalLM(t.OPTConfig(**_SIZES, ffn_dim=12, word_embed_proj_dim=8))
    ),
    "BLOOM": transformer(lambda t: t.BloomForCausalLM(t.BloomConfig(**_SIZES))),
    "Llama": decoder("Llama"),
    "Llama masked": decoder("Llama", call=_masked),
    "Mistral": decoder("Mistral"),
    "Qwen2": decoder("Qwen2"),
    "Qwen3": decoder("Qwen3", head_dim=4),
    "Gemma": decoder("Gemma", head_dim=4),
    "Phi": decoder("Phi"),
    "Falcon": decoder("Falcon", _SIZES),
    "Mixtral": decoder("Mixtral", num_local_experts=2, experts_implementation="eager"),
    "Mamba": transformer(
        lambda t: t.MambaForCausalLM(
            t.MambaConfig(vocab_size=31, hidden_size=8, state_size=4, num_hidden_layers=1)
        )
    ),
    "RWKV": transformer(
        lambda t: t.RwkvForCausalLM(
            t.RwkvConfig(**_SIZES | {"num_hidden_layers": 2}, context_length=16)
        ),
        _logits,
    ),
    "T5": transformer(lambda t: t.T5ForConditionalGeneration(t.T5Config(**_T5)), _both_sides),
    "T5 gated": transformer(
        lambda t: t.T5ForConditionalGeneration(t.T5Config(**_T5, feed_forward_proj="gated-gelu")),
        _both_sides,
    ),
    "BART": transformer(
        lambda t: t.BartForConditionalGeneration(t.BartConfig(**_BART)), _both_sides
    ),
    "Pegasus": transformer(
        lambda t: t.PegasusForConditionalGeneration(t.PegasusConfig(**_BART)), _both_sides
    ),
    "ViT": seeing(lambda t: t.ViTForImageClassification(t.ViTConfig(**_SEEN)), 16, _pictured),
    "DeiT": seeing(lambda t: t.DeiTForImageClassification(t.DeiTConfig(**_SEEN)), 16, _pictured),
    "BEiT": seeing(lambda t: t.BeitForImageClassification(t.BeitConfig(**_SEEN)), 16, _pictured),
    "ConvNeXt": seeing(
        lambda t: t.ConvNextForImageClassification(
            t.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[4, 4, 8, 8], num_labels=CLASSES)
        ),
        32,
        _pictured,
    ),
    "CLIP vision": seeing(lambda t: t.CLIPVisionModel(t.CLIPVisionConfig(**_SEEN)), 16, _pooled),
    "CLIP text": transformer(lambda t: t.CLIPTextModel(t.CLIPTextConfig(**_SIZES)), _hidden),
    "Whisper": images(_whisper, 8, 16, call=in_double(_heard)),
}
