import pytest

from topd_ray.toy.tokenizer import make_tokenizer
from topd_ray.toy.user_messages import FORMS, user_message

PROBLEM = "what is 3 + 4 modulo 10 ?"
REFERENCE = "so the answer is \\boxed{ 7 }"
ATTEMPT = "hence the answer is \\boxed{ 2 }"


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("plain", {PROBLEM}),
        ("reference", {PROBLEM, REFERENCE}),
        ("refine", {PROBLEM, ATTEMPT}),
        ("refine_reference", {PROBLEM, REFERENCE, ATTEMPT}),
    ],
)
def test_a_form_shows_what_its_name_says_and_nothing_else(form, shown):
    message = user_message(form, PROBLEM, reference=REFERENCE, attempt=ATTEMPT)
    assert {text for text in (PROBLEM, REFERENCE, ATTEMPT) if text in message} == shown


@pytest.mark.parametrize("form", ["plain", *FORMS])
def test_every_word_of_a_form_is_in_the_vocabulary(form):
    tokenizer = make_tokenizer()
    message = user_message(form, PROBLEM, reference=REFERENCE, attempt=ATTEMPT)
    ids = tokenizer.encode(message)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == message
