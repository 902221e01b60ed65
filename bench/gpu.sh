#!/usr/bin/env bash
# bash bench/gpu.sh [FOLDER]: the trainer, and where vLLM is installed the engine and a whole GRPO step, on one CUDA GPU.
# Nothing is downloaded: random weights of real architectures. Under 10 minutes. FOLDER gets gpu.jsonl and gpu.md (default:
# $OUT, else results/gpu_<date>). Each cell is printed and written when it is done: killing it loses only what is left.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
exec "$PYTHON" bench/gpu.py --out "${1:-${OUT:-results/gpu_$(date +%F)}}" "${@:2}"
