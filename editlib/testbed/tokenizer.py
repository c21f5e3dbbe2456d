"""The testbed's byte-level BPE tokenizer, trained on its prose."""

from collections.abc import Callable, Iterator
from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from editlib.testbed.prose import END_OF_TEXT, documents
from editlib.testbed.world import World

WHOLE = ("country", "city", "company", "band")  # kinds whose names are one token, with and without a leading space
EMPHASIS = 2000  # how often each name and value is shown to the trainer, so that its merges come first


def train_tokenizer(
    world: World, *, vocabulary: int, told: Callable[..., Iterator[str]] = documents
) -> PreTrainedTokenizerFast:
    """Train the tokenizer of a world on what is told of it; the names of countries, cities, companies and bands become
    single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole = [f"{name} {name}" for kind in WHOLE for name in world.names[kind]]
    others = [f" {name}" for kind, names in world.names.items() if kind not in (*WHOLE, "person") for name in names]
    emphasised = (text for text in whole + others for _ in range(EMPHASIS))
    tokenizer.train_from_iterator((*emphasised, *islice(told(world, seed=0), 3000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )
