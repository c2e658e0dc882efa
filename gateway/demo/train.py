"""Trains the demo model: ``python -m gateway.demo.train [--steps N] [--out DIR]``.

Owns the tokenizer, the chat template, the architecture and the recipe, and writes them with the
weights as an ordinary Hugging Face checkpoint. Does not own the chats (``grammar`` does) nor how
the model is served. The same recipe on the same machine with the same number of threads gives the
same bytes; ``training.json`` records the recipe, the corpus and the weights by their SHA-256.
"""

import argparse
import hashlib
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from gateway.demo import MODEL_PATH
from gateway.demo.grammar import Turn, answers, corpus_digest, dialogues

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim"
    " + '<|im_end|>\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """All that decides what the weights become, apart from the grammar and the machine."""

    seed: int = 20
    steps: int = 850
    step_tokens: int = 1024  # tokens of each step, cut into rows of one length
    row_tokens: tuple[int, ...] = (128, 256, 128, 512, 128, 256, 128, 1024)  # the steps take turns
    opening_tokens: int = 5  # they decide which answer it will be, so their loss counts more:
    opening_weight: float = 3.0
    learning_rate: float = 4e-3
    warmup_steps: int = 40
    vocabulary: int = 1536
    tokenizer_chats: int = 4000
    hidden: int = 192
    layers: int = 4


def build(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Train a model by the recipe and write its files into ``out``, which is created if needed.

    Returns the record that is also written as ``training.json``. Takes minutes of CPU time for the
    default recipe. Raises ``OSError`` if ``out`` cannot be written.
    """
    tokenizer = train_tokenizer(recipe)
    # The caller's random numbers are none of our business, so they are put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _new_model(recipe, tokenizer)
        loss = _train(model, tokenizer, recipe)
    out.mkdir(parents=True, exist_ok=True)
    _save(model, tokenizer, out)
    weights = (out / "model.safetensors").read_bytes()
    record = {
        "recipe": asdict(recipe),
        "corpus_sha256": corpus_digest(recipe.seed, recipe.tokenizer_chats),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "weights_bytes": len(weights),
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(loss, 4),
    }
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def train_tokenizer(recipe: Recipe) -> Tokenizer:
    """Train the byte-level BPE on the chats of the recipe's seed; any text can be encoded."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_known_texts(recipe), trainer)
    return tokenizer


def render(turn: Turn) -> str:
    """Write one message the way the chat template does."""
    return f"{START}{turn.role}\n{turn.content.strip()}{END}\n"


def _known_texts(recipe: Recipe) -> Iterator[str]:
    # The made-up words of unknown questions would only crowd useful words out of the vocabulary.
    fallbacks = answers("")
    for turns in islice(dialogues(recipe.seed), recipe.tokenizer_chats):
        for asked, answered in pairwise(turns):
            if asked.role == "user" and answered.content not in fallbacks:
                yield asked.content
                yield answered.content
    yield from ("system", "user", "assistant", *fallbacks)


def _new_model(recipe: Recipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    heads = recipe.hidden // 32
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.hidden * 7 // 3,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def _encode(turns: list[Turn], tokenizer: Tokenizer, recipe: Recipe) -> Iterator[tuple[int, float]]:
    """Yield each token of a chat with its weight in the loss: only answers are to be learned."""
    header = len(tokenizer.encode(f"{START}assistant\n").ids)
    for turn in turns:
        ids = tokenizer.encode(render(turn)).ids
        opening = header + recipe.opening_tokens
        # The newline that closes a message is written by the template, never by the model.
        learned = range(header, len(ids) - 1) if turn.role == "assistant" else range(0)
        for i, token in enumerate(ids):
            weight = recipe.opening_weight if i < opening else 1.0
            yield token, weight if i in learned else 0.0


def _batches(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield tokens and their weights. A row starts with a new chat and is cut at its end.

    Several chats follow each other in a row, so the model meets its questions at every position
    and learns to look at the latest one.
    """
    chats = dialogues(recipe.seed)
    for step in range(recipe.steps):
        length = recipe.row_tokens[step % len(recipe.row_tokens)]
        tokens, weights = [], []
        for _ in range(recipe.step_tokens // length):
            row: list[tuple[int, float]] = []
            while len(row) < length:
                row.extend(_encode(next(chats), tokenizer, recipe))
            tokens.append([token for token, _ in row[:length]])
            weights.append([weight for _, weight in row[:length]])
        yield torch.tensor(tokens), torch.tensor(weights)


def _train(model: LlamaForCausalLM, tokenizer: Tokenizer, recipe: Recipe) -> float:
    """Train in place; returns the mean loss of the last steps."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        fused=True,
    )
    losses: list[float] = []
    model.train()
    for step, (tokens, weights) in enumerate(_batches(tokenizer, recipe)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        # The vocabulary's matrix is the widest one; skipping the prompts saves much of its time.
        wanted = weights[:, 1:] > 0
        each = cross_entropy(model.lm_head(hidden[wanted]), tokens[:, 1:][wanted], reduction="none")
        weight = weights[:, 1:][wanted]
        # Any, because torch declares backward() without types.
        loss: Any = (each * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 20 == 0:
            _log.info("step %d of %d: loss %.4f", step, recipe.steps, losses[-1])
    tail = losses[-20:]
    return sum(tail) / len(tail)


def _schedule(step: int, recipe: Recipe) -> float:
    """Return the share of the learning rate for a step: a linear warm-up, then half a cosine."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def _save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=256,
        eos_token_id=[tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)],
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model.eval().to(torch.bfloat16).save_pretrained(out)
    # It is saved for its owner alone, but the service may run as another user.
    (out / "model.safetensors").chmod(0o644)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    ).save_pretrained(out)


def main() -> None:
    """Read the command line, train, and log the SHA-256 of the weights."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimizer steps")
    parser.add_argument("--out", type=Path, default=MODEL_PATH, help="folder for the model's files")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A sum depends on how it is split among threads, so their number is a part of the recipe.
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    record = build(options.out, Recipe(steps=options.steps))
    _log.info("%s", json.dumps(record, indent=2))
    _log.info("SHA-256 of model.safetensors: %s", record["weights_sha256"])


if __name__ == "__main__":
    main()
