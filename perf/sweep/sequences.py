"""Recurrent layers, attention and transformer layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from perf.sweep.subject import Call, Recipe, first, function, layer

LENGTH, WIDTH = 3, 4


def recurrent(kind: Callable[..., nn.Module], **options: Any) -> Recipe:
    """Recipe of a recurrent layer: its outputs at all times."""
    return layer(lambda: kind(WIDTH, 3, batch_first=True, **options), LENGTH, WIDTH, call=first)


def _packed(module: nn.Module, z: Tensor) -> Tensor:
    packed = pack_padded_sequence(z, torch.tensor([3, 2, 2, 1]), batch_first=True)
    outputs, _ = pad_packed_sequence(module(packed)[0], batch_first=True)
    return outputs


def _last_state(module: nn.Module, z: Tensor) -> Any:
    return module(z)[1][0].transpose(0, 1)


def _unrolled(module: nn.Module, z: Tensor) -> Tensor:
    state: Any = None
    for x in z.unbind(1):
        state = module(x, state)
    found: Tensor = state[0] if isinstance(state, tuple) else state
    return found


RECURRENT: dict[str, Recipe] = {
    "RNN tanh": recurrent(nn.RNN),
    "RNN relu": recurrent(nn.RNN, nonlinearity="relu"),
    "RNN bidirectional": recurrent(nn.RNN, bidirectional=True),
    "LSTM": recurrent(nn.LSTM),
    "LSTM without bias": recurrent(nn.LSTM, bias=False),
    "LSTM two layers, dropout": recurrent(nn.LSTM, num_layers=2, dropout=0.3),
    "LSTM bidirectional": recurrent(nn.LSTM, bidirectional=True),
    "LSTM proj_size": recurrent(nn.LSTM, proj_size=2),
    "LSTM packed": layer(lambda: nn.LSTM(WIDTH, 3, batch_first=True), 3, WIDTH, call=_packed),
    "LSTM last state": layer(
        lambda: nn.LSTM(WIDTH, 3, batch_first=True), 3, WIDTH, call=_last_state
    ),
    "GRU": recurrent(nn.GRU),
    "GRU two layers, eval": layer(
        lambda: nn.GRU(WIDTH, 3, 2, batch_first=True, dropout=0.3),
        3,
        WIDTH,
        call=first,
        training=False,
    ),
    "GRU packed": layer(lambda: nn.GRU(WIDTH, 3, batch_first=True), 3, WIDTH, call=_packed),
    "RNNCell": layer(lambda: nn.RNNCell(WIDTH, 3), LENGTH, WIDTH, call=_unrolled),
    "LSTMCell": layer(lambda: nn.LSTMCell(WIDTH, 3), LENGTH, WIDTH, call=_unrolled),
    "GRUCell": layer(lambda: nn.GRUCell(WIDTH, 3), LENGTH, WIDTH, call=_unrolled),
}

CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[False, False, True]] * 2 + [[False] * LENGTH] * 2)


def attention(call: Call, **options: Any) -> Recipe:
    """Recipe of nn.MultiheadAttention with two heads."""
    return layer(
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options),
        LENGTH,
        WIDTH,
        call=call,
    )


def onto_itself(**options: Any) -> Call:
    """A call of an attention layer with the same queries, keys and values."""
    return lambda m, z: m(z, z, z, **options)[0]


ATTENTION: dict[str, Recipe] = {
    "MultiheadAttention": attention(onto_itself()),
    "MultiheadAttention fused": attention(onto_itself(need_weights=False)),
    "MultiheadAttention attn_mask": attention(onto_itself(attn_mask=CAUSAL)),
    "MultiheadAttention fused, causal": attention(
        onto_itself(attn_mask=CAUSAL, is_causal=True, need_weights=False)
    ),
    "MultiheadAttention real mask": attention(
        onto_itself(attn_mask=torch.eye(LENGTH).double(), need_weights=False)
    ),
    "MultiheadAttention key_padding_mask": attention(onto_itself(key_padding_mask=PADDED)),
    "MultiheadAttention both masks": attention(
        onto_itself(key_padding_mask=PADDED, attn_mask=CAUSAL, need_weights=False)
    ),
    "MultiheadAttention dropout": attention(onto_itself(), dropout=0.3),
    "MultiheadAttention fused, dropout": attention(onto_itself(need_weights=False), dropout=0.3),
    "MultiheadAttention add_bias_kv": attention(onto_itself(), add_bias_kv=True),
    "MultiheadAttention add_zero_attn": attention(onto_itself(), add_zero_attn=True),
    "MultiheadAttention kdim, vdim": attention(
        lambda m, z: m(z, z[..., :2].sin(), z[..., :3].cos())[0], kdim=2, vdim=3
    ),
}

encoder_layer, decoder_layer = nn.TransformerEncoderLayer, nn.TransformerDecoderLayer


def transformer(
    make: Callable[..., nn.Module], call: Call, *, training: bool = True, **options: Any
) -> Recipe:
    """Recipe of a transformer layer of width 4, two heads and 5 hidden units."""
    sizes: dict[str, Any] = {"nhead": 2, "dim_feedforward": 5, "dropout": 0.1, "batch_first": True}
    return layer(
        lambda: make(WIDTH, **(sizes | options)), LENGTH, WIDTH, call=call, training=training
    )


def _stack(width: int, **options: Any) -> nn.Module:
    return nn.TransformerEncoder(encoder_layer(width, **options), 2)


def _alone(module: nn.Module, z: Tensor) -> Any:
    return module(z)


def _padded(module: nn.Module, z: Tensor) -> Any:
    return module(z, src_key_padding_mask=PADDED)


def _to_memory(module: nn.Module, z: Tensor) -> Any:
    return module(z, z.flip(1).sin(), tgt_mask=CAUSAL)


TRANSFORMERS: dict[str, Recipe] = {
    "TransformerEncoderLayer": transformer(encoder_layer, _alone),
    "TransformerEncoderLayer eval": transformer(encoder_layer, _alone, training=False),
    "TransformerEncoderLayer gelu": transformer(encoder_layer, _alone, activation="gelu"),
    "TransformerEncoderLayer norm_first": transformer(encoder_layer, _alone, norm_first=True),
    "TransformerEncoderLayer padded": transformer(encoder_layer, _padded),
    "TransformerEncoder eval, padded": transformer(_stack, _padded, training=False),
    "TransformerEncoder": transformer(_stack, _alone),
    "TransformerDecoderLayer": transformer(decoder_layer, _to_memory),
    "Transformer": transformer(
        nn.Transformer, _to_memory, num_encoder_layers=1, num_decoder_layers=1
    ),
}

sdpa = F.scaled_dot_product_attention


def dotted(**options: Any) -> Recipe:
    """Recipe of scaled_dot_product_attention with queries, keys and values of one tensor."""
    return function(lambda z: sdpa(z[:, 0], z[:, 1], z[:, 2], **options), 3, 2, LENGTH, 2)


DOT_PRODUCTS: dict[str, Recipe] = {
    "scaled_dot_product_attention": dotted(),
    "scaled_dot_product_attention causal": dotted(is_causal=True),
    "scaled_dot_product_attention mask": dotted(attn_mask=~CAUSAL),
    "scaled_dot_product_attention real mask": dotted(attn_mask=torch.eye(LENGTH).double()),
    "scaled_dot_product_attention scale": dotted(scale=0.3),
    "scaled_dot_product_attention dropout": dotted(dropout_p=0.3),
    "scaled_dot_product_attention grouped": function(
        lambda z: sdpa(z, z[:, :2].sin(), z[:, 2:].cos(), enable_gqa=True), 4, LENGTH, 2
    ),
    "scaled_dot_product_attention learnt mask": function(
        lambda z: sdpa(z[:, :1], z[:, 1:2], z[:, 2:3], attn_mask=z[:, 3:]), 4, LENGTH, LENGTH
    ),
    "scaled_dot_product_attention masked row": dotted(
        attn_mask=torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    ),
}

CASES = RECURRENT | ATTENTION | TRANSFORMERS | DOT_PRODUCTS
