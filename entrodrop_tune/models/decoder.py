"""Architecture + adapter → torchtune ``TransformerDecoder``; one builder for every family."""

from torch import Tensor, nn
from torchtune.modules import TiedLinear, TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.modules.peft import LoRALinear

from entrodrop_tune.models.architecture import Architecture
from entrodrop_tune.models.attention import HalfRotary, SelfAttention
from entrodrop_tune.models.config import AdapterConfig, ModelConfig
from entrodrop_tune.models.dora import DoRALinear
from entrodrop_tune.models.feed_forward import FeedForward
from entrodrop_tune.models.norm import RMSNorm


class Decoder(TransformerDecoder):
    """torchtune's decoder that can also stop before the output projection."""

    def hidden_states(self, tokens: Tensor, mask: Tensor | None = None, input_pos: Tensor | None = None) -> Tensor:
        """States after the final norm ``[B, T, D]`` for ``tokens`` ``[B, T]``; see :class:`SelfAttention` for the rest.

        Raises:
            ValueError: the sequence is longer than the model's context.
        """
        if tokens.shape[1] > self.max_seq_len:
            raise ValueError(f"sequence of {tokens.shape[1]} tokens exceeds the model's context of {self.max_seq_len}")
        states = self.tok_embeddings(tokens)
        for layer in self.layers:
            states = layer(states, mask=mask, input_pos=input_pos)
        return self.norm(states)


def hidden_states(
    decoder: Decoder, tokens: Tensor, mask: Tensor | None = None, input_pos: Tensor | None = None
) -> Tensor:
    """``decoder.hidden_states(...)`` as a function: states before the output projection, ``[B, T, D]``."""
    return decoder.hidden_states(tokens, mask=mask, input_pos=input_pos)


def output_weight(decoder: TransformerDecoder) -> nn.Parameter:
    """The output projection's weight ``[V, D]``; with tied embeddings, the embedding's own parameter."""
    if isinstance(decoder.output, TiedLinear):
        return decoder.tok_embeddings.weight
    return decoder.output.weight


def build_decoder(architecture: Architecture, model: ModelConfig, adapter: AdapterConfig | None) -> Decoder:
    """Build the decoder with torchtune's default initialisation (on the meta device under ``torch.device("meta")``)."""
    rotary = HalfRotary(architecture.inv_freq, architecture.rotary_scaling)
    layers = [_layer(architecture, model, adapter, rotary) for _ in range(architecture.num_layers)]
    embeddings = nn.Embedding(architecture.vocab_size, architecture.embed_dim)
    output = (
        TiedLinear(embeddings)
        if architecture.tied_embeddings
        else nn.Linear(architecture.embed_dim, architecture.vocab_size, bias=False)
    )
    return Decoder(
        tok_embeddings=embeddings,
        layers=nn.ModuleList(layers),
        max_seq_len=architecture.max_seq_len,
        num_heads=architecture.num_heads,
        head_dim=architecture.head_dim,
        norm=RMSNorm(architecture.embed_dim, eps=architecture.norm_eps),
        output=output,
    )


def _layer(
    architecture: Architecture, model: ModelConfig, adapter: AdapterConfig | None, rotary: HalfRotary
) -> TransformerSelfAttentionLayer:
    dim, hidden, eps = architecture.embed_dim, architecture.intermediate_dim, architecture.norm_eps
    query_dim = architecture.num_heads * architecture.head_dim
    key_dim = architecture.num_kv_heads * architecture.head_dim

    def linear(name: str, inputs: int, outputs: int, bias: bool) -> nn.Module:
        if adapter is None or name not in adapter.target_modules:
            return nn.Linear(inputs, outputs, bias=bias)
        kind = DoRALinear if adapter.type == "dora" else LoRALinear
        return kind(inputs, outputs, rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout, use_bias=bias)

    def head_norm() -> RMSNorm | None:
        return RMSNorm(architecture.head_dim, eps=eps) if architecture.qk_norm else None

    def residual_dropout() -> nn.Dropout | None:
        return nn.Dropout(model.hidden_dropout) if model.hidden_dropout > 0 else None

    attention = SelfAttention(
        embed_dim=dim,
        num_heads=architecture.num_heads,
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        q_proj=linear("q_proj", dim, query_dim, architecture.qkv_bias),
        k_proj=linear("k_proj", dim, key_dim, architecture.qkv_bias),
        v_proj=linear("v_proj", dim, key_dim, architecture.qkv_bias),
        output_proj=linear("o_proj", query_dim, dim, architecture.output_bias),
        pos_embeddings=rotary,
        q_norm=head_norm(),
        k_norm=head_norm(),
        max_seq_len=architecture.max_seq_len,
        attn_dropout=model.attention_dropout,
    )
    mlp = FeedForward(
        gate_proj=linear("gate_proj", dim, hidden, architecture.mlp_bias),
        down_proj=linear("down_proj", hidden, dim, architecture.mlp_bias),
        up_proj=linear("up_proj", dim, hidden, architecture.mlp_bias),
    )
    return TransformerSelfAttentionLayer(
        attn=attention,
        mlp=mlp,
        sa_norm=RMSNorm(dim, eps=eps),
        mlp_norm=RMSNorm(dim, eps=eps),
        sa_scale=residual_dropout(),
        mlp_scale=residual_dropout(),
    )
