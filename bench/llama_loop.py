"""The worker of llama.cpp: all streams in one context, one batch a step, through the low-level
API. Runs in the environment of llama-cpp-python.

    python -m bench.llama_loop FILE STREAMS CONTEXT

Every step decodes one token of each stream that speaks, and fills the batch up with tokens of
prompts, in their order. Greedy. The answers stay ids: no text is made of them.
"""

import ctypes
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import worker
from bench.answers import Answer
from bench.prompts import token_id

STEP_TOKENS = 512
"""The size of a batch; llama.cpp's default of a physical batch."""


class Stream:
    """One sequence: what is still to be fed, and its answer."""

    def __init__(self, number: int, prompt: list[int], answer: Answer) -> None:
        self.number = number
        self.waiting = prompt
        self.length = 0
        self.answer = answer
        answer.prompt_tokens = len(prompt)

    def take(self, room: int) -> list[int]:
        taken, self.waiting = self.waiting[:room], self.waiting[room:]
        return taken


class Loop:
    """A model and a context with room for so many streams of so many tokens."""

    def __init__(self, file: Path, streams: int, context: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        llama_cpp.llama_backend_init()
        threads = len(os.sched_getaffinity(0))
        self.model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp did not load {file}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = streams * context
        params.n_seq_max = streams
        params.n_batch = params.n_ubatch = STEP_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp did not make a context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(STEP_TOKENS, 0, 1)
        self.sampler = llama_cpp.llama_sampler_init_greedy()

    def run(self, prompts: Sequence[list[int]], new_tokens: int) -> list[Answer]:
        answers = [Answer() for _ in prompts]
        streams = [
            Stream(number, prompt, answer)
            for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        ]
        began = time.perf_counter()
        while streams:
            for stream, row in self.step(streams):
                token = self.api.llama_sampler_sample(self.sampler, self.context, row)
                stream.waiting = [token]
                stream.answer.times_s.append(time.perf_counter() - began)
                stream.answer.completion_tokens += 1
            for stream in streams:
                if stream.answer.completion_tokens == new_tokens:
                    self.api.llama_memory_seq_rm(self.memory, stream.number, -1, -1)
            streams = [each for each in streams if each.answer.completion_tokens < new_tokens]
        return answers

    def step(self, streams: Sequence[Stream]) -> list[tuple[Stream, int]]:
        """Feed one batch; return the streams with a new token, and the row of its logits."""
        self.batch.n_tokens = 0
        asking = []
        speaking_first = sorted(streams, key=lambda stream: stream.answer.completion_tokens == 0)
        for stream in speaking_first:
            for token in stream.take(STEP_TOKENS - self.batch.n_tokens):
                self.append(stream, token)
            if not stream.waiting:
                row = self.batch.n_tokens - 1
                self.batch.logits[row] = True
                asking.append((stream, row))
        code = self.api.llama_decode(self.context, self.batch)
        if code != 0:
            raise RuntimeError(f"llama_decode failed with {code}")
        return asking

    def append(self, stream: Stream, token: int) -> None:
        batch, row = self.batch, self.batch.n_tokens
        batch.token[row] = token
        batch.pos[row] = stream.length
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = stream.number
        batch.logits[row] = False
        batch.n_tokens = row + 1
        stream.length += 1


def silence(api: Any) -> Any:
    """Stop llama.cpp's words on stderr; what is returned must live as long as that holds."""

    @api.llama_log_callback
    def ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        pass

    api.llama_log_set(ignore, ctypes.c_void_p())
    return ignore


def main() -> None:
    file, streams, context = sys.argv[1:4]

    def load() -> worker.Run:
        import llama_cpp

        ignore = silence(llama_cpp)
        loop = Loop(Path(file), int(streams), int(context))

        def run(prompts: Sequence[str], new_tokens: int) -> list[Answer]:
            assert ignore is not None
            ids = [[token_id(word) for word in prompt.split()] for prompt in prompts]
            return loop.run(ids, new_tokens)

        return run

    worker.serve(load)


if __name__ == "__main__":
    main()
