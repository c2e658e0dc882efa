"""The worker of the naive way: for each request a thread with generate() and a
TextIteratorStreamer, as many tutorials have it. Runs in the environment of transformers.

    python -m bench.naive FOLDER DEVICE
"""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import worker
from bench.answers import Answer


def run_with(folder: Path, device: str) -> worker.Run:
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)

    def read(prompt: str, new_tokens: int, answer: Answer, began: float) -> None:
        inputs = tokenizer(prompt, return_tensors="pt").to(device)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        whole: list[Any] = []

        def generate() -> None:
            try:
                whole.append(model.generate(**inputs, streamer=streamer, max_new_tokens=new_tokens))
            finally:
                streamer.end()

        thread = threading.Thread(target=generate)
        thread.start()
        for text in streamer:
            if text:
                answer.times_s.append(time.perf_counter() - began)
        thread.join()
        answer.prompt_tokens = inputs["input_ids"].shape[1]
        answer.completion_tokens = whole[0].shape[1] - answer.prompt_tokens if whole else 0

    def answer_all(prompts: Sequence[str], new_tokens: int) -> list[Answer]:
        answers = [Answer() for _ in prompts]
        began = time.perf_counter()
        readers = [
            threading.Thread(target=read, args=(prompt, new_tokens, answer, began))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return answers

    return answer_all


def main() -> None:
    worker.serve(lambda: run_with(Path(sys.argv[1]), sys.argv[2]))


if __name__ == "__main__":
    main()
