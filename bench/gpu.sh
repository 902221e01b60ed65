#!/usr/bin/env bash
# bash bench/gpu.sh [FOLDER] [--minutes 7.8] [--only WORD] [--list] [--wheels SITE]: all that bench/gpu.py measures, on
# one CUDA GPU, in under 8 minutes. Nothing is downloaded: random weights of real architectures. FOLDER (default: $OUT,
# else results/gpu_<date>) gets gpu.md, gpu.jsonl, profiles.txt, gpu.log. Each cell is printed and written when it is
# done: killing it loses only what is left. Optional packages to compare with: bench/gpu_wheels.sh.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
case ${1:-} in -*|"") folder=${OUT:-results/gpu_$(date +%F)} ;; *) folder=$1; shift ;; esac
exec "$PYTHON" -u bench/gpu.py --out "$folder" "$@"
