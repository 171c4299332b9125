"""Lower precisions, dropout and 4-bit weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from entrodrop_tune.errors import UserError
from entrodrop_tune.models import AdapterConfig, ModelConfig, load_model, merge_adapter, save_adapter, save_hf
from entrodrop_tune.models.quantize import dequantized, quantized

TOKENS = torch.randint(0, 300, (2, 60), generator=torch.Generator().manual_seed(1))


def _run(decoder, tokens=TOKENS):
    with torch.no_grad():
        return decoder(tokens)


def test_bf16_is_as_close_to_fp32_as_transformers_is(tiny_model):
    exact = _run(load_model(ModelConfig(path=str(tiny_model))))
    ours = _run(load_model(ModelConfig(path=str(tiny_model)), dtype=torch.bfloat16)).float()
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)(TOKENS).logits.float()
    assert (ours - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fresh_adapter_on_bf16_weights_changes_nothing(tiny_model, kind, adapter_dtype):
    plain = load_model(ModelConfig(path=str(tiny_model)), dtype=torch.bfloat16)
    adapter = AdapterConfig(type=kind)
    adapted = load_model(ModelConfig(path=str(tiny_model)), adapter, dtype=torch.bfloat16, adapter_dtype=adapter_dtype)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {adapter_dtype}
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(_run(adapted), _run(plain), atol=0, rtol=1e-6)


def test_rotary_frequencies_stay_in_fp32(tiny_model):
    decoder = load_model(ModelConfig(path=str(tiny_model))).to(torch.bfloat16)
    rotary = decoder.layers[0].attn.pos_embeddings
    assert rotary.inv_freq.dtype == torch.float32
    assert "inv_freq" not in " ".join(decoder.state_dict())


def test_saved_dtype_is_the_weights_dtype(tiny_model, tmp_path):
    decoder = load_model(ModelConfig(path=str(tiny_model)), dtype=torch.bfloat16)
    save_hf(decoder.state_dict(), tiny_model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(loaded.model.embed_tokens.weight, decoder.tok_embeddings.weight)


@pytest.mark.parametrize("key", ["hidden_dropout", "attention_dropout"])
def test_dropout_acts_in_training_only(tiny_model, key):
    plain = load_model(ModelConfig(path=str(tiny_model)))
    dropping = load_model(ModelConfig(path=str(tiny_model), **{key: 0.5}))
    assert torch.equal(_run(dropping.eval()), _run(plain))
    dropping.train()
    assert not torch.allclose(_run(dropping), _run(plain))
    assert not torch.equal(_run(dropping), _run(dropping))
    assert list(dropping.state_dict()) == list(plain.state_dict())


def test_qlora_trains_the_adapter_over_4_bit_weights(tiny_model):
    decoder = load_model(ModelConfig(path=str(tiny_model)), AdapterConfig(type="qlora", rank=4))
    plain = load_model(ModelConfig(path=str(tiny_model)))
    error = (_run(decoder) - _run(plain)).abs().mean()
    assert 0 < error < 0.2 * _run(plain).std()
    decoder(TOKENS).logsumexp(-1).mean().backward()
    gradients = {name for name, p in decoder.named_parameters() if p.grad is not None}
    assert gradients == {name for name, p in decoder.named_parameters() if "lora_" in name}


def test_qlora_quantizes_layers_without_adapter_too(tiny_model):
    config = AdapterConfig(type="qlora", rank=4, target_modules=("q_proj",))
    decoder = load_model(ModelConfig(path=str(tiny_model)), config)
    everywhere = load_model(ModelConfig(path=str(tiny_model)), AdapterConfig(type="qlora", rank=4))
    torch.testing.assert_close(_run(decoder), _run(everywhere))


def test_merged_qlora_is_what_was_trained(tiny_model, tmp_path):
    adapter = AdapterConfig(type="qlora", rank=4)
    decoder = load_model(ModelConfig(path=str(tiny_model)), adapter)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "lora_b" in name:
                parameter.normal_(0, 0.1)
    merged = merge_adapter(decoder.state_dict(), adapter)
    save_hf(merged, tiny_model, tmp_path / "merged")
    torch.testing.assert_close(_run(load_model(ModelConfig(path=str(tmp_path / "merged")))), _run(decoder))
    save_adapter(decoder.state_dict(), adapter, tiny_model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_qlora_is_refused_where_nf4_does_not_run(tiny_model):
    with pytest.raises(UserError, match="run on cpu and cuda, not on mps: use lora"):
        load_model(ModelConfig(path=str(tiny_model)), AdapterConfig(type="qlora"), device="mps")


def test_nf4_blocks_fit_any_multiple_of_64():
    weight = torch.randn(192, 576, generator=torch.Generator().manual_seed(0))  # 1,728 blocks; torchao's default is 256
    assert (dequantized(quantized(weight)) - weight).std() < 0.12
    assert quantized(weight).quantization_factor.numel() % 8 == 0  # so that FSDP can cut it for 8 processes
    with pytest.raises(UserError, match=r"\(3, 5\)"):
        quantized(torch.randn(3, 5))
