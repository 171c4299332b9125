"""Which tokens are learned, over the chat templates users meet."""

import pytest

from entrodrop_tune.data.conversation import RowError
from entrodrop_tune.data.tokenize import ConversationTokenizer
from entrodrop_tune.errors import UserError
from tests.tiny import CHATML, CORPUS, tiny_tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3 thinks: an empty block before the last answer only, so that a prefix of the conversation renders differently.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 3 begins with a special token, strips contents and ends turns without a newline.
LLAMA3 = (
    "{{ '<|endoftext|>' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
# Llama 2 marks only the user's turn.
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' <|im_end|>' }}{% endif %}{% endfor %}"
)
NO_END_TOKEN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
GENERATION_BLOCKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "smollm2": SMOLLM2,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "no-end-token": NO_END_TOKEN,
    "generation-blocks": GENERATION_BLOCKS,
}
ONE_TURN = [{"role": "user", "content": "How many clips?"}, {"role": "assistant", "content": "48/2 = 24 clips."}]
TWO_TURNS = [
    {"role": "system", "content": "Answer 24 clips."},
    {"role": "user", "content": "24 clips."},
    {"role": "assistant", "content": "24 clips."},
    {"role": "user", "content": "24 clips."},
    {"role": "assistant", "content": "  72 in May\n"},
]


def _tokenise(template, messages):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokens = ConversationTokenizer(tokenizer)(messages)
    return tokenizer, tokens


def _runs(tokenizer, tokens) -> list[str]:
    """The learned stretches as text."""
    runs, previous = [], False
    for token, learned in zip(tokens.ids.tolist(), tokens.is_target.tolist(), strict=True):
        if learned:
            runs = runs if previous else [*runs, []]
            runs[-1].append(token)
        previous = learned
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", TEMPLATES)
def test_answer_and_its_end_token_are_learned_and_nothing_else(name):
    tokenizer, tokens = _tokenise(TEMPLATES[name], ONE_TURN)
    (learned,) = _runs(tokenizer, tokens)
    answer = "<think>\n\n</think>\n\n48/2 = 24 clips." if name == "qwen3" else "48/2 = 24 clips."
    assert learned.replace(" <|im_end|>", "<|im_end|>").strip() in (
        f"{answer}<|im_end|>",
        f"{answer}\n<|im_end|>",  # no-end-token: the template's newline, then the token we add
    )
    assert tokens.ids[tokens.is_target][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("answer", ["a", "assistant", "user", "\\", "im_end"])
@pytest.mark.parametrize("name", ["chatml", "smollm2", "llama3", "llama2"])
def test_answers_that_occur_in_the_templates_own_words(name, answer):
    messages = [{"role": "user", "content": "user"}, {"role": "assistant", "content": answer}]
    tokenizer, tokens = _tokenise(TEMPLATES[name], messages)
    (learned,) = _runs(tokenizer, tokens)
    assert learned.replace(" ", "") == f"{answer}<|im_end|>"
    assert tokens.ids[tokens.is_target][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_assistant_turn_is_learned_though_the_user_says_the_same(name):
    tokenizer, tokens = _tokenise(TEMPLATES[name], TWO_TURNS)
    first, second = _runs(tokenizer, tokens)
    assert "24 clips." in first and "72" not in first
    assert "72 in May" in second and second.endswith("<|im_end|>")


@pytest.mark.parametrize("answer", ["Hello! I have 24 clips.", "You are", "assistant"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_an_assistant_that_speaks_first_learns_its_words_alone(name, answer):
    messages = [{"role": "assistant", "content": answer}, *ONE_TURN]
    tokenizer, tokens = _tokenise(TEMPLATES[name], messages)
    first, second = _runs(tokenizer, tokens)
    assert first.replace("<|im_end|>", "").strip() == answer
    assert "48/2 = 24 clips." in second and "How" not in second


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "no-end-token"])
def test_tokens_are_those_of_the_rendered_conversation(name):
    tokenizer, tokens = _tokenise(TEMPLATES[name], TWO_TURNS)
    rendered = tokenizer.apply_chat_template(TWO_TURNS, tokenize=False)
    assert tokens.ids.tolist() == tokenizer(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["chatml", "smollm2", "qwen3", "llama3"])
def test_prompt_tokens_are_those_the_model_sees_at_inference(name):
    tokenizer, tokens = _tokenise(TEMPLATES[name], ONE_TURN)
    prompt = tokenizer.apply_chat_template(ONE_TURN[:1], add_generation_prompt=True)["input_ids"]
    assert tokens.ids[: len(prompt)].tolist() == prompt
    assert not tokens.is_target[: len(prompt)].any() and tokens.is_target[len(prompt)]


def test_generation_blocks_and_located_words_agree():
    located = _tokenise(CHATML, TWO_TURNS)[1]
    blocks = _tokenise(GENERATION_BLOCKS, TWO_TURNS)[1]
    assert located.ids.tolist() == blocks.ids.tolist()
    assert located.is_target.tolist() == blocks.is_target.tolist()


def test_template_that_refuses_a_role_makes_a_bad_row():
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    with pytest.raises(RowError, match="System role not supported"):
        _tokenise(strict + CHATML, TWO_TURNS)


def test_template_that_rewrites_the_answer_makes_a_bad_row():
    shouting = CHATML.replace("message['content']", "message['content'] | upper")
    with pytest.raises(RowError, match="changes the words of message 2"):
        _tokenise(shouting, ONE_TURN)


def test_without_template_prompt_and_answer_are_joined():
    tokenizer, tokens = _tokenise(None, ONE_TURN)
    assert tokenizer.decode(tokens.ids) == "How many clips?48/2 = 24 clips.<|im_end|>"
    assert _runs(tokenizer, tokens) == ["48/2 = 24 clips.<|im_end|>"]


def test_without_template_conversations_are_refused():
    with pytest.raises(UserError, match="no chat template"):
        _tokenise(None, TWO_TURNS)


def test_plain_text_is_learned_whole_with_an_end():
    tokenizer, tokens = _tokenise(CHATML, "def add(a, b):")
    assert tokens.is_target.all()
    assert tokenizer.decode(tokens.ids) == "def add(a, b):<|im_end|>"


def test_plain_text_that_is_only_the_end_makes_an_empty_row():
    with pytest.raises(RowError, match="no token is left to learn"):
        _tokenise(CHATML, "<|im_end|>")


def _sentencepiece_tokenizer():
    """As Llama 2's and Gemma's: spaces become ▁, and one is put before the first word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    core.train_from_iterator([*CORPUS, "user\n assistant\n 48/2 = 24 clips. How many clips?"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("name", ["smollm2", "llama2"])
def test_sentencepiece_tokenizers_learn_the_same_words(name):
    tokenizer = _sentencepiece_tokenizer()
    tokenizer.chat_template = TEMPLATES[name].replace("<|im_end|>", "</s>") if name == "llama2" else TEMPLATES[name]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokens = ConversationTokenizer(tokenizer)(ONE_TURN)
    (learned,) = _runs(tokenizer, tokens)
    assert learned.replace(" ", "").startswith("48/2=24clips.")
    assert tokens.ids[tokens.is_target][-1] in tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>"])
    assert "How" not in learned and "user" not in learned
