"""What transformers itself says, to compare an engine with."""

from pathlib import Path

from gateway.core.messages import GenerateRequest
from gateway.engine.decoding.loaded import LoadedModel


def generated_by_transformers(folder: Path, loaded: LoadedModel, request: GenerateRequest) -> str:
    """Return what a model of its own says by transformers' own generate."""
    import torch
    from transformers import AutoModelForCausalLM

    prompt = loaded.encoder.encode(request)
    device = loaded.model.device
    model = AutoModelForCausalLM.from_pretrained(folder).to(device)
    output = model.generate(
        torch.tensor([prompt], device=device),
        max_new_tokens=request.options.max_tokens,
        do_sample=False,
    )
    ids = output[0][len(prompt) :].tolist()
    return loaded.encoder.decode([token for token in ids if token not in loaded.eos_ids])
