"""torch.save of a training state, synchronously: what a trainer that does not save behind its steps waits for.

  python3 scripts/bench/torch_save.py [--device cuda|cpu] [--model 1.1b|tiny] [--folder PATH] [--rounds N]

The state is that of native/lab/checkpoint_bench.cpp: fp32 weights and two moments under Hugging Face's names. The last line is JSON.
"""
import argparse
import json
import os
import time

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--model", default="1.1b", choices=["1.1b", "tiny"])
parser.add_argument("--folder", default=".")
parser.add_argument("--rounds", type=int, default=1)
arguments = parser.parse_args()

VOCABULARY = 32000
WIDTH, INNER, LAYERS, KEYS = (2048, 5632, 22, 256) if arguments.model == "1.1b" else (256, 704, 4, 128)


def shapes():
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (WIDTH,)
        for name, rows in (("q", WIDTH), ("k", KEYS), ("v", KEYS), ("o", WIDTH)):
            yield prefix + f"self_attn.{name}_proj.weight", (rows, WIDTH)
        yield prefix + "post_attention_layernorm.weight", (WIDTH,)
        yield prefix + "mlp.gate_proj.weight", (INNER, WIDTH)
        yield prefix + "mlp.up_proj.weight", (INNER, WIDTH)
        yield prefix + "mlp.down_proj.weight", (WIDTH, INNER)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (VOCABULARY, WIDTH)


def tensors():
    return {name: torch.randn(shape, device=arguments.device) for name, shape in shapes()}


def synchronize():
    if arguments.device == "cuda":
        torch.cuda.synchronize()


state = {"model": tensors(), "first_moment": tensors(), "second_moment": tensors()}
size = sum(tensor.numel() * 4 for part in state.values() for tensor in part.values())
path = os.path.join(arguments.folder, "torch_save.pt")
os.makedirs(arguments.folder, exist_ok=True)
saved, durable = [], []
for _ in range(arguments.rounds):
    synchronize()
    start = time.perf_counter()
    torch.save(state, path)
    saved.append(time.perf_counter() - start)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    durable.append(time.perf_counter() - start)
    print(f"torch.save of {size / 1e9:.2f} GB: {saved[-1]:.2f} s, durable after {durable[-1]:.2f} s", flush=True)
os.remove(path)
print(json.dumps({"device": arguments.device, "state_gb": size / 1e9, "save_s": min(saved), "durable_s": min(durable), "torch": torch.__version__}))
