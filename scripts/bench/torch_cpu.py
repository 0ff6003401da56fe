"""The peer of scripts/bench.ts: eager PyTorch training the same Llama on the CPU in float32.

Started as `python3 torch_cpu.py THREADS`. Reads one JSON request per line and answers each with one JSON line:
  {"gemm": n}                          -> {"gflops": of an n x n x n product}
  {"shape": {...}, "seconds", "steps"} -> {"parameters", "step_seconds": median, "loss"}: one warm-up step, then at least `steps` steps and `seconds`
A step is forward, backward, clipping by the global norm and AdamW, on `batch` sequences of `length` tokens.
"""
import json
import math
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.gain


def rotate(x, cosine, sine):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width, inner = shape["hidden_size"], shape["intermediate_size"]
        self.heads, self.groups, self.size = shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]
        self.attention_norm, self.mlp_norm = (RmsNorm(width, shape["rms_norm_eps"]) for _ in range(2))
        self.qkv = nn.Linear(width, (self.heads + 2 * self.groups) * self.size, bias=False)
        self.output = nn.Linear(self.heads * self.size, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x, cosine, sine, mask):
        batch, length, _ = x.shape
        widths = [count * self.size for count in (self.heads, self.groups, self.groups)]
        q, k, v = (
            part.view(batch, length, -1, self.size).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).split(widths, -1)
        )
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        attended = (q @ k.transpose(-1, -2) / math.sqrt(self.size) + mask).softmax(-1) @ v
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, shape, length):
        super().__init__()
        width, vocabulary, size = shape["hidden_size"], shape["vocab_size"], shape["head_dim"]
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape["num_hidden_layers"]))
        self.norm = RmsNorm(width, shape["rms_norm_eps"])
        self.head = nn.Linear(width, vocabulary, bias=False)
        angles = torch.outer(torch.arange(length).float(), shape["rope_theta"] ** (-torch.arange(0, size, 2).float() / size))
        self.cosine, self.sine = angles.cos(), angles.sin()
        self.mask = torch.full((length, length), float("-inf")).triu(1)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cosine, self.sine, self.mask)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def train(request):
    torch.manual_seed(0)
    shape = request["shape"]
    model = Llama(shape, request["length"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.randint(0, shape["vocab_size"], (request["batch"], request["length"] + 1))

    def step():
        start = time.perf_counter()
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start, loss.item()

    step()
    times = []
    while len(times) < request["steps"] or sum(times) < request["seconds"]:
        seconds, loss = step()
        times.append(seconds)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "step_seconds": statistics.median(times), "loss": loss}


def gemm(size):
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return {"gflops": 2 * size**3 / statistics.median(times) / 1e9}


torch.set_num_threads(int(sys.argv[1]))
print(json.dumps({"torch": torch.__version__}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps(gemm(request["gemm"]) if "gemm" in request else train(request)), flush=True)
