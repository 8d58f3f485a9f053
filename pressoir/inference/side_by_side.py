"""What one causal LM writes after some prompts, and how well it foresees a text: one side of a comparison."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pressoir.inference.text_generation import Perplexity, TextGenerator

PROMPTS, PROMPT_WORDS, NEW_TOKENS = 3, 8, 40
WINDOW, MAX_WINDOWS = 128, 64


@dataclass(frozen=True)
class Side:
    """One model."""

    texts: tuple[str, ...]
    """One continuation a prompt, greedy."""
    perplexity: Perplexity


def prompts_of(text: str) -> tuple[str, ...]:
    """The first words of some lines, evenly spread over `text`."""
    lines = [line.split() for line in text.splitlines() if len(line.split()) >= PROMPT_WORDS] or [
        text.split()
    ]
    chosen = [lines[len(lines) * index // PROMPTS] for index in range(PROMPTS)]
    return tuple(dict.fromkeys(" ".join(words[:PROMPT_WORDS]) for words in chosen))


def side(folder: Path, prompts: Sequence[str], text: str, threads: int) -> Side:
    """Open the model in `folder`, let it continue `prompts`, score it on `text`, and let it go.

    Raises:
        SourceError: the folder has no causal LM. DataError: the text is shorter than a window.
    """
    generator = TextGenerator.open(folder, threads)
    window = min(WINDOW, generator.decoder.context)
    try:
        return Side(
            tuple("".join(generator.generate(prompt, max_new_tokens=NEW_TOKENS)) for prompt in prompts),
            generator.perplexity(text, window, MAX_WINDOWS),
        )
    finally:
        del generator
        gc.collect()  # a second model may follow
