"""Make the world's tokenizer: one id a word, shared by teacher and students."""

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from topd_ray.toy.user_messages import FORM_WORDS
from topd_ray.toy.wording import CONNECTIVES, LINKS, VERBS

PAD = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"
UNKNOWN = "<|unknown|>"

_SYMBOLS = [*"0123456789", "10", *"+-*()", *".,?", "\\boxed{", "}"]
_FIXED_WORDS = (
    "system user assistant what is modulo we start from take which have the answer"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{START} {{{{ message['role'] }}}} {{{{ message['content'] }}}} {END} "
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{START} assistant{{% endif %}}"
)


def vocabulary() -> dict[str, int]:
    """Return every token and its id: special tokens, symbols, then words."""
    words = [*_FIXED_WORDS.split(), *FORM_WORDS.split(), *CONNECTIVES, *VERBS, *LINKS]
    tokens = dict.fromkeys([PAD, START, END, UNKNOWN, *_SYMBOLS, *words])
    return {token: index for index, token in enumerate(tokens)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a fast tokenizer that splits at white space and never merges."""
    words = Tokenizer(WordLevel(vocabulary(), unk_token=UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    words.add_special_tokens(
        [AddedToken(token, special=True) for token in (PAD, START, END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",  # a batch of prompts is continued at its right end
    )
