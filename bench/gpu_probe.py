"""
One line about the device that bench/gpu.py runs on: whether PyTorch adds a product of bf16 matrices to a sum in fp32 in
place (aten.addmm.dtype_out), as the head's gradient wants it, and whether the sum is right.

    python bench/gpu_probe.py
"""

import torch


def probe(device, tokens=512, hidden=1536, vocab=4096):
    """Compare total (V, H) += (c, V).T @ (c, H) in place with the product beside it and with fp64."""
    if device.type != "cuda":
        return "not run: only CUDA has it; the product is written beside the sum"
    generator = torch.Generator(device).manual_seed(0)
    total = torch.randn(vocab, hidden, device=device, generator=generator)
    a = torch.randn(tokens, vocab, device=device, generator=generator).bfloat16().T
    b = torch.randn(tokens, hidden, device=device, generator=generator).bfloat16()
    wanted = total.double() + a.double() @ b.double()
    beside = total + torch.mm(a, b, out_dtype=torch.float32)
    try:
        torch.ops.aten.addmm.dtype_out(total, a, b, torch.float32, out=total)
        torch.cuda.synchronize(device)
    except (AttributeError, RuntimeError) as error:  # the operator is not there, or does not take these
        line = (str(error).strip().splitlines() or [""])[0][:120]
        return f"PyTorch does not take it ({type(error).__name__}: {line}); the product is written beside the sum"
    errors = [float((found.double() - wanted).abs().max() / wanted.abs().max()) for found in (total, beside)]
    right = "right" if errors[0] < max(2 * errors[1], 1e-5) else "WRONG"
    return (f"PyTorch takes it, and the sum is {right}: largest difference to fp64 {errors[0]:.1e} of the largest "
            f"value, with the product beside it {errors[1]:.1e}")


if __name__ == "__main__":
    print(probe(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
