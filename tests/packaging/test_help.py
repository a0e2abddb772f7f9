"""What `--help` says: each command and option by itself, without the lines around it."""

import re

import pytest
from reference.commands import Command, everything, sentence

pytestmark = pytest.mark.unit

# A text that begins so, or has such a word, means something only beside another line.
_LEANING = re.compile(
    r"(also|as|at|between|by|for|from|have|in|its|of|same|the same|their|these|to|what|where|which"
    r"|whom|with)\b|.*\b(it|them|whom|ours|us|we)\b"
)
_LEAST_WORDS = 2


@pytest.mark.parametrize("command", everything(), ids=lambda command: str(command.name))
def test_every_help_text_reads_alone(command: Command) -> None:
    texts = {" ".join(option.names): option.help for option in command.options}
    texts |= {operand.metavar: operand.help for operand in command.operands if operand.help}
    if len(command.words) > 1:
        texts["summary"] = command.summary
    for name, text in texts.items():
        assert len(text.split()) >= _LEAST_WORDS, (name, text)
        assert not _LEANING.match(text), (name, text)


@pytest.mark.parametrize("command", everything(), ids=lambda command: str(command.name))
def test_every_command_has_a_description_in_sentences(command: Command) -> None:
    assert command.description == sentence(command.description)
