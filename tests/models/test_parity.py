"""Every architecture against transformers: logits in, directories out, adapters through peft."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from entrodrop_tune.models import (
    AdapterConfig,
    ModelConfig,
    hidden_states,
    load_model,
    load_tokenizer,
    output_weight,
    save_adapter,
    save_hf,
    save_merged,
)
from tests.models.families import FAMILIES, family_dir


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def family(request, tmp_path_factory):
    """A random model of one family with every parameter away from its initial value, as a directory."""
    return family_dir(request.param, tmp_path_factory.mktemp("family") / request.param)


def _tokens(length: int = 100) -> torch.Tensor:
    return torch.randint(0, 300, (2, length), generator=torch.Generator().manual_seed(1))


def _hf_logits(path, tokens: torch.Tensor, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(tokens, **kwargs).logits


def _logits(decoder, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return decoder.eval()(tokens)


def test_logits_equal_transformers(family):
    tokens = _tokens()
    decoder = load_model(ModelConfig(path=str(family)))
    expected = _hf_logits(family, tokens)
    torch.testing.assert_close(_logits(decoder, tokens), expected, atol=1e-4, rtol=0)
    with torch.no_grad():
        projected = hidden_states(decoder, tokens) @ output_weight(decoder).T
    torch.testing.assert_close(projected, expected, atol=1e-4, rtol=0)


def test_gradients_equal_transformers(family):
    tokens = _tokens(24)
    theirs = AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32)
    theirs(tokens).logits.logsumexp(-1).mean().backward()
    ours = load_model(ModelConfig(path=str(family)))
    ours(tokens).logsumexp(-1).mean().backward()
    for name in ("q_proj", "k_proj", "v_proj"):
        expected = theirs.get_submodule(f"model.layers.0.self_attn.{name}").weight.grad
        torch.testing.assert_close(ours.get_submodule(f"layers.0.attn.{name}").weight.grad, expected)
    torch.testing.assert_close(output_weight(ours).grad, theirs.get_output_embeddings().weight.grad)


def test_packed_documents_do_not_see_each_other(family):
    tokens = _tokens(40)[:1]
    documents = torch.tensor([[0] * 15 + [1] * 25])
    mask = (documents[:, :, None] == documents[:, None, :]) & torch.ones(40, 40).tril().bool()
    positions = torch.cat((torch.arange(15), torch.arange(25)))[None]
    decoder = load_model(ModelConfig(path=str(family))).eval()
    with torch.no_grad():
        packed = decoder(tokens, mask=mask, input_pos=positions)
    for part in (slice(0, 15), slice(15, 40)):
        torch.testing.assert_close(packed[:, part], _hf_logits(family, tokens[:, part]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_saved_directory_is_the_same_model(family, tmp_path, max_shard_size):
    tokens = _tokens()
    decoder = load_model(ModelConfig(path=str(family)))
    save_hf(decoder.state_dict(), family, tmp_path, max_shard_size)
    shards = len(list(tmp_path.glob("*.safetensors")))
    assert shards == 1 if max_shard_size == "5GB" else shards > 1
    assert torch.equal(_hf_logits(tmp_path, tokens), _hf_logits(family, tokens))
    assert torch.equal(_logits(load_model(ModelConfig(path=str(tmp_path))), tokens), _logits(decoder, tokens))
    conversation = [{"role": "user", "content": "48/2?"}]
    assert load_tokenizer(tmp_path).apply_chat_template(conversation) == load_tokenizer(family).apply_chat_template(
        conversation
    )
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def _with_random_adapter(path, kind: str, **options):
    adapter = AdapterConfig(type=kind, rank=4, alpha=12, **options)
    torch.manual_seed(3)
    decoder = load_model(ModelConfig(path=str(path)), adapter)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder, adapter


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_loads_the_adapter(family, tmp_path, kind):
    from peft import PeftModel

    tokens = _tokens(50)
    decoder, adapter = _with_random_adapter(family, kind)
    ours = _logits(decoder, tokens)
    save_adapter(decoder.state_dict(), adapter, family, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32)
    before = base(tokens).logits
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path)(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (ours - before).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merged_model_equals_applied_adapter(family, tmp_path, kind):
    tokens = _tokens(50)
    decoder, adapter = _with_random_adapter(family, kind)
    save_merged(decoder.state_dict(), adapter, family, tmp_path)
    torch.testing.assert_close(_hf_logits(tmp_path, tokens), _logits(decoder, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fresh_adapter_changes_nothing_and_only_it_is_trainable(family, kind):
    tokens = _tokens(30)
    adapter = AdapterConfig(type=kind, target_modules=("q_proj", "down_proj"))
    decoder = load_model(ModelConfig(path=str(family)), adapter)
    torch.testing.assert_close(_logits(decoder, tokens), _hf_logits(family, tokens), atol=1e-4, rtol=0)
    trainable = {name for name, p in decoder.named_parameters() if p.requires_grad}
    suffixes = {name.split(".", 3)[3] for name in trainable}
    parts = {"lora_a.weight", "lora_b.weight"} | ({"magnitude"} if kind == "dora" else set())
    assert suffixes == {f"{m}.{p}" for m in ("q_proj",) for p in parts} | {f"{m}.{p}" for m in ("w2",) for p in parts}


def test_configs_written_by_transformers_4_read_the_same(tmp_path):
    path = family_dir("llama3.1", tmp_path / "model")
    expected = _hf_logits(path, _tokens())
    config = json.loads((path / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling, "torch_dtype": config.pop("dtype")}
    (path / "config.json").write_text(json.dumps(config))
    decoder = load_model(ModelConfig(path=str(path)))
    torch.testing.assert_close(_logits(decoder, _tokens()), expected, atol=1e-4, rtol=0)
    save_hf(decoder.state_dict(), path, tmp_path / "saved")
    assert torch.equal(_hf_logits(tmp_path / "saved", _tokens()), expected)
    assert "torch_dtype" not in json.loads((tmp_path / "saved" / "config.json").read_text())
