import pytest

from axiond.routing.prompt import Said
from axiond.routing.tokens import Tokens, estimate, prompt_tokens

ENGLISH = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do. " * 4
SPANISH = "Según el contrato, el inquilino deberá pagar la renta dentro de los cinco primeros días de cada mes. " * 4
CODE = (
    """def mean(values: list[float]) -> float:
    if not values:
        raise ValueError('nothing')
    return sum(values) / len(values)
"""
    * 4
)
CHINESE = "人工智能正在改变我们的生活方式，许多公司都在使用大型语言模型来回答客户的问题。" * 6
RUSSIAN = "Договор аренды квартиры заключается между собственником и нанимателем на срок не менее одного года. " * 4
HINDI = "भारत की राजधानी नई दिल्ली है और यहाँ की जनसंख्या बहुत अधिक है। " * 4


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (ENGLISH, (93, 93, 93, 93, 93, 93)),
        (SPANISH, (145, 109, 97, 129, 98, 90)),
        (CODE, (140, 124, 128, 156, 120, 136)),
        (CHINESE, (372, 108, 186, 235, 108, 108)),
        (RUSSIAN, (285, 93, 97, 137, 121, 87)),
        (HINDI, (297, 129, 86, 269, 244, 87)),
    ],
    ids=["english", "spanish", "code", "chinese", "russian", "hindi"],
)
def test_bounds_hold_for_every_tokenizer(text: str, counts: tuple[int, ...]) -> None:
    """Counted with the tokenizers of SmolLM2, DeepSeek V3, Mistral (Tekken, SentencePiece), Qwen 2.5 and 3.5."""
    found = estimate(text)
    assert found.least <= min(counts)
    assert found.most >= max(counts)
    assert min(counts) * 0.8 <= found.estimate <= max(counts) * 1.2


def test_nothing_has_no_tokens() -> None:
    assert estimate("") == Tokens(0, 0, 0)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, CODE])
def test_a_long_text_is_sampled_within_the_bounds_of_the_whole(text: str) -> None:
    times = 2000
    once, many = estimate(text * 20), estimate(text * times)
    assert many.least <= once.least * times / 20
    assert many.most >= once.most * times / 20
    assert many.estimate == pytest.approx(once.estimate * times / 20, rel=0.1)


def test_templates_tools_and_numbers_count() -> None:
    bare = prompt_tokens(Said(turns=[("user", ENGLISH)]))
    chat = prompt_tokens(Said(turns=[("user", ENGLISH)], is_chat=True))
    assert (chat.estimate, chat.least, chat.most) == (bare.estimate + 8, bare.least + 3, bare.most + 48)
    assert prompt_tokens(Said(turns=[("user", ENGLISH)], rest=[CODE])).least > bare.least
    assert prompt_tokens(Said(token_ids=7)) == Tokens(7, 7, 7)


def test_what_was_not_read_is_like_what_was_unless_it_may_be_an_image() -> None:
    said = Said(turns=[("user", ENGLISH)], read_bytes=400, unread_bytes=4000)
    bare = prompt_tokens(Said(turns=[("user", ENGLISH)]))
    assert prompt_tokens(said).estimate == pytest.approx(bare.estimate * 11, rel=0.01)
    said.has_images = True
    assert prompt_tokens(said) == bare._replace(most=bare.most + 4000)
