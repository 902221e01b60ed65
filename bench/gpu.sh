#!/usr/bin/env bash
# bash bench/gpu.sh [FOLDER] [--minutes 7.5] [--only WORD] [--list]: everything that bench/gpu.py measures, on one CUDA GPU,
# under 8 minutes. Nothing is downloaded: random weights of real architectures. FOLDER gets gpu.jsonl, gpu.md, profiles.txt
# and gpu.log (default: $OUT, else results/gpu_<date>). Each cell is printed and written when it is done: killing it loses
# only what is left. Optional packages to compare with: bench/gpu_wheels.sh.
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
case ${1:-} in -*|"") folder=${OUT:-results/gpu_$(date +%F)} ;; *) folder=$1; shift ;; esac
exec "$PYTHON" -u bench/gpu.py --out "$folder" "$@"
