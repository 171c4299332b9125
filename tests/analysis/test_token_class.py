import pytest

from entrodrop_tune.analysis.token_class import classify, looks_like_code
from entrodrop_tune.analysis.token_text import TokenText
from tests.tiny import CORPUS, tiny_tokenizer


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (
            ["She", " sold", " 48", "/", "2", "."],
            ["function word", "word", "number", "operator", "number", "punctuation"],
        ),
        (["1", "2", ",", "5", "00"], ["number"] * 5),  # a token inside a number is part of it
        (["don", "'t", "\n", " "], ["word", "word", "space", "space"]),
        ([" my", "_", "var", " x2"], ["identifier"] * 4),
        (["\\", "frac", "{", "}"], ["operator", "operator", "punctuation", "punctuation"]),
    ],
)
def test_prose(pieces, expected):
    assert classify(pieces) == expected


def test_code():
    pieces = ["def", " add", "(", "a", "):", "\n", "    return", " a", " +", " 1", "\n", "x", " =", " 2"]
    assert classify(pieces) == [
        "keyword", "identifier", "punctuation", "identifier", "punctuation", "space", "keyword", "identifier",
        "operator", "number", "space", "identifier", "operator", "number",
    ]  # fmt: skip


def test_the_same_word_is_a_keyword_in_code_alone():
    assert classify(["for", " it"]) == ["function word", "function word"]
    assert classify(["import", " os", "\n", "for", " it", " in", " os", ":", "\n"])[3] == "keyword"


def test_prose_about_code_is_no_code():
    assert not looks_like_code("For each of her friends, return the books. While she waits, class begins.")
    assert looks_like_code("Sure:\n```\nx\n```")


def test_special_tokens_are_their_own_class():
    assert classify(["a", "<|im_end|>"], [False, True]) == ["function word", "special"]


def test_pieces_join_to_the_decoded_text():
    tokenizer = tiny_tokenizer()
    text = TokenText(tokenizer)
    for line in CORPUS:
        ids = tokenizer.encode(line)
        assert "".join(text(ids)) == tokenizer.decode(ids)


def test_a_leading_space_survives_where_a_token_decoded_alone_would_lose_it():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"▁a": 0, "▁the": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert tokenizer.decode([1]) == "the" and TokenText(tokenizer)([1, 1]) == [" the", " the"]
