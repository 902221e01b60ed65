"""
Where the seconds of a weight sync go, and what the straight way of onebox/engine_weights.py saves against vLLM's
reload: both in one process, in turn, medians.

    OMP_NUM_THREADS=1 python bench/sync.py [--fsdp] [--repeats 15] [--out results/X]      # X/sync.md
    python bench/sync.py --model Qwen2.5-1.5B       # on a GPU: also sleep, both wake-ups and GB/s; no download

On a CPU the model has the tensors of Qwen2.5-1.5B, 28 blocks, but of 64 columns: what is left is Python's time per
tensor, which a GPU pays too. There vLLM would also pack every matrix, which no GPU does, and which rules the straight
way out: it is kept from it, so that both ways do what they do on a GPU.
"""

import functools
import os
import platform
import statistics
import sys
import tempfile
import time

import torch
from common import command, parser_of
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config

import rollout
from onebox import engine_weights
from onebox.distributed import init_distributed, whole
from policy import load_policy
from tools.plan import config_of


def unpacked(layer, remove_weight):
    layer.cpu_linear = torch.nn.functional.linear


class Sync:
    """A policy, an engine beside it, and a clock that waits for the GPU."""

    def __init__(self, args):
        _, _, self.device = init_distributed()
        self.on_gpu = self.device.type == "cuda"
        if not self.on_gpu:
            from vllm.model_executor.layers import utils

            utils.dispatch_cpu_unquantized_gemm = unpacked
            engine_weights.load.__defaults__ = (("cpu",),)  # else a CPU never takes the straight way
        config = config_of(args.model) if args.model else Qwen2Config(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=28, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=True, max_position_embeddings=512)
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as path:
            with torch.device(self.device):
                AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
            config, self.dtype = AutoConfig.from_pretrained(path), getattr(torch, args.dtype)
            self.hf = load_policy(path, self.device, args.dtype, always_fsdp=args.fsdp).hf
            self.llm = rollout.make_engine(path, config=config, dtype=args.dtype, prompt_len=64, response_len=64,
                                           max_num_seqs=8, kv_cache_gb=args.kv_cache_gb, tensor_parallel=1, seed=0,
                                           rank=0, device=self.device)
        rollout.sync_weights(self.hf, self.llm, self.dtype, 0)
        self.places = self.llm.collective_rpc(lambda worker: worker.places)[0]
        self.tensors = len(self.hf.state_dict())
        self.bytes = sum(p.numel() for p in self.hf.parameters()) * self.dtype.itemsize
        self.seconds, self.pieces = {}, {}

    def timed(self, what, function):
        before = self.now()
        result = function()
        self.seconds.setdefault(what, []).append(self.now() - before)
        return result

    def now(self):
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()  # of its one thread: what else the machine does must not count

    def go_this_way(self, worker, straight):
        worker.places = self.places if straight else {}

    def once(self):
        """Sync one time each way, asleep before it on a GPU, and walk the stream alone."""
        walked = self.timed("state_dict() alone", self.hf.state_dict)
        self.timed("gather and cast alone", lambda: [whole(w.to(self.dtype)) for w in walked.values()])
        for way in ("vLLM's reload", "straight"):
            self.llm.collective_rpc(self.go_this_way, args=(way == "straight",))
            if self.on_gpu:
                self.timed("sleep", lambda: rollout.sleep(self.llm, self.device))
                self.timed("empty the trainer's cache", torch.cuda.empty_cache)
                self.timed("wake the weights' memory", lambda: self.llm.wake_up(tags=["weights"]))
            self.timed(f"sync, {way}", lambda: rollout.sync_weights(self.hf, self.llm, self.dtype, 0))
            if self.on_gpu:
                self.timed("wake the cache's memory", lambda: self.llm.wake_up(tags=["kv_cache"]))

    def time_pieces(self):
        """Time the functions of vLLM's reload too; one inside another counts in both."""
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod
        from vllm.model_executor.model_loader.reload import inplace, layerwise

        for owner, names in {
                inplace: ["initialize_layerwise_reload", "finalize_layerwise_reload"],
                layerwise: ["get_numel_loaded", "_layerwise_process", "materialize_layer",
                            "_copy_and_restore_kernel_tensors", "get_layer_size", "_wrap_parameters_weight_loader"],
                UnquantizedLinearMethod: ["process_weights_after_loading"]}.items():
            for name in names:
                setattr(owner, name, self.summed(name, getattr(owner, name)))

    def summed(self, name, function):
        @functools.wraps(function)
        def timed(*args, **kwargs):
            before = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.pieces[name] = self.pieces.get(name, 0) + time.process_time() - before
        return timed


def main():
    parser = parser_of(__doc__, "a folder for sync.md")
    parser.add_argument("--model", default="", help="a model of tools/plan.py, of random weights")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--fsdp", action="store_true", help="shards to be gathered, as with several processes")
    parser.add_argument("--kv_cache_gb", type=float, default=0, help="its memory is woken up too")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    sync = Sync(args)
    sync.once()  # warms up
    sync.seconds.clear()
    for _ in range(args.repeats):
        sync.once()
    spent = {what: list(seconds) for what, seconds in sync.seconds.items()}
    sync.time_pieces()
    for _ in range(args.repeats):
        sync.once()
    spent |= {f"of the reload: {name}": [s / args.repeats] for name, s in sync.pieces.items()}
    where = torch.cuda.get_device_name() if sync.on_gpu else f"{platform.machine()} CPU, CPU time of one thread"
    lines = [f"`{command()}`, {time.strftime('%Y-%m-%d')}, {where}, torch {torch.__version__}: {sync.tensors} tensors, "
             f"{sync.bytes / 1e6:,.1f} MB in {args.dtype}, {len(sync.places)} of them with a place in the engine's "
             f"memory. Medians of {args.repeats}, in turn; pieces are means, timed apart.", "",
             "| what | ms | us a tensor | GB/s |", "|---|---|---|---|"]
    for what, seconds in spent.items():
        middle = statistics.median(seconds)
        rate = f"{sync.bytes / middle / 1e9:.3g}" if what.startswith("sync") and sync.on_gpu else ""
        lines.append(f"| {what} | {middle * 1e3:.1f} | {middle / sync.tensors * 1e6:.0f} | {rate} |")
    print("\n".join(lines))
    if args.out:
        os.makedirs(args.out, exist_ok=True)
        with open(os.path.join(args.out, "sync.md"), "a") as f:
            f.write("\n".join(lines) + "\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
