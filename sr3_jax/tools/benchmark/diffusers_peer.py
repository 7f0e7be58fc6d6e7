"""diffusers.UNet2DModel in PyTorch, in a process of its own, to compare with.

`python diffusers_peer.py JSON` builds the network that JSON describes and prints one line of JSON
about it. For each line of stdin, `forward`, `train` or `sample`, it runs that once and prints the
seconds. The file imports nothing of sr3_jax, so any interpreter with torch and diffusers runs it.
"""

import json
import os
import subprocess
import sys
import time

INSTALL = (
    "pip install torch --index-url https://download.pytorch.org/whl/cpu; pip install diffusers"
)


class PeerError(RuntimeError):
    """The peer could not be started, or died."""


class Peer:
    """The other process; `facts` has `parameters`, `forward_flops`, `threads` and `versions`."""

    def __init__(self, python: str, description: dict):
        """Starts the process and waits until it has built its network."""
        try:
            self._process = subprocess.Popen(
                [python, os.path.abspath(__file__), json.dumps(description)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise PeerError(
                f"--peer_python={python} cannot be run ({error.strerror}); give an interpreter "
                "that has torch and diffusers"
            ) from error
        self.facts = json.loads(self._read())
        if "error" in self.facts:
            raise PeerError(
                f"{python} cannot run the peer: {self.facts['error']}. Install it there with\n"
                f"  {INSTALL}\nor name an interpreter that has both with --peer_python=PATH"
            )

    def seconds(self, what: str) -> float:
        """Runs `forward`, `train` or `sample` once."""
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(
                f"the PyTorch process ended with status {self._process.wait()}; its own message "
                "is above"
            )
        return line


def _build(d: dict):
    from diffusers import UNet2DModel

    levels = range(len(d["multipliers"]))
    attention = [level in d["attention_levels"] for level in levels]
    down = ["AttnDownBlock2D" if a else "DownBlock2D" for a in attention]
    up = ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)]
    return UNet2DModel(
        sample_size=d["image_size"],
        in_channels=6,
        out_channels=3,
        layers_per_block=d["num_blocks"],
        block_out_channels=tuple(d["channels"] * m for m in d["multipliers"]),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=None,
        norm_num_groups=d["norm_groups"],
        add_attention=True,
    )


def _serve(d: dict) -> None:
    import diffusers
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = d["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise ImportError("this torch has no CUDA, and the JAX side runs on a GPU")
    model = _build(d).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    shape = (d["batch_size"], 6, d["image_size"], d["image_size"])
    image = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    eps = torch.randn_like(image[:, :3])
    step = torch.full(shape[:1], 10, device=device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=d["dtype"] == "bfloat16")

    def forward():
        with torch.inference_mode(), autocast:
            model(image, step)

    def train():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = (model(image, step).sample.float() - eps).abs().mean()
        loss.backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image, step)
    if device == "cuda":  # after the operations of plain calls are counted
        model = torch.compile(model)

    def sample():
        for _ in range(d["sample_steps"]):
            forward()

    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "forward_flops": counter.get_total_flops(),
        "threads": torch.get_num_threads(),
        "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}",
    }
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        run = {"forward": forward, "train": train, "sample": sample}[line.strip()]
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    try:
        _serve(json.loads(sys.argv[1]))
    except ImportError as error:
        print(json.dumps({"error": str(error)}), flush=True)
