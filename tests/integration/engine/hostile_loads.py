"""Loads each file of the command line as the gateway does; prints what came of it as JSON.

A process of its own, so that a test can tell when a file kills it.
"""

import json
import sys
from pathlib import Path

from gateway.core.errors import ModelLoadFailed
from gateway.engine.decoding.runner import Feed
from gateway.engine.llama_cpp.loader import load_gguf
from gateway.engine.loading.loader import LoadConfig


def main(files: list[str]) -> None:
    config = LoadConfig(device="cpu")
    outcomes = {}
    for file in files:
        try:
            loaded = load_gguf("hostile", Path(file), config, context_length=256, sequences=2)
            place = loaded.runner.open()
            loaded.runner.run([Feed(place, [1, 2, 3])])
            outcomes[file] = "loaded"
        except ModelLoadFailed as error:
            outcomes[file] = error.message
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1:])
