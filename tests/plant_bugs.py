"""
Plant each bug once, in a copy of the project, and see its test fail: python tests/plant_bugs.py [word in file or text]

A test that cannot fail proves nothing. The texts are formulas and guarantees, short, so that they survive a rename
around them. Prints CAUGHT, MISSED or STALE for each; exit code 1 unless all are caught. Not run by pytest.
"""

import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUGS = [  # file, text, what it becomes, the tests that must fail
    # log-probs and packing
    ("onebox/fused_logprobs.py", "logits.div_(temperature)", "logits", "test_policy.py -k packed_logprobs"),
    ("policy.py", "positions >= np.repeat(prompt_lens - 1, lens)",
     "(positions >= np.repeat(prompt_lens - 1, lens)) & (positions > 0)", "test_policy.py -k one_token_prompt"),
    ("policy.py", "(lens + 1).cumsum() - 1)", "(lens + 1).cumsum() - 2)", "test_policy.py -k lists_or_arrays"),
    ("onebox/packed_attention.py", "is_causal=True", "is_causal=False", "test_policy.py -k packed_logprobs"),
    ("onebox/packed_attention.py", "length_buckets(packed.lens,", "length_buckets([sum(packed.lens)],",
     "test_policy.py -k neighbours"),
    ("policy.py", "tokens / seen_tokens", "1.0", "test_policy.py -k share_of_the_responses"),
    ("onebox/metrics.py", "value.double() if torch.is_tensor(value) else value", "torch.tensor(float(value))",
     "test_policy.py -k waits_for_the_device"),
    ("onebox/metrics.py", "+ stands_for * value", "+ value", "test_metrics.py -k stand_for"),
    ("policy.py", "set_requires_all_reduce(batch.ends_update)", "set_requires_all_reduce(True)",
     "test_policy.py -k copies_of_the_weights"),
    ("policy.py", "(grad or not part) and first + world == count * world", "first == 0",
     "test_policy.py -k copies_of_the_weights"),
    # masters in fp32 beside bf16 weights
    ("onebox/masters.py", "p.grad_dtype, p.on_host = torch.float32, on_host", "p.on_host = on_host",
     "test_policy.py -k one_process_in_bf16"),
    ("onebox/masters.py", "optimizer.zero_grad(set_to_none=True)", "pass", "test_policy.py -k same_arithmetic"),
    ("onebox/masters.py", "        rounded.copy_(staged.view", "        (staged.view",
     "test_policy.py -k same_arithmetic"),
    ("policy.py", 'like = getattr(p, "master", p)', "like = p", "test_policy.py -k same_arithmetic"),
    ("onebox/checkpoint.py", """        with masters(pair[0].parameters(), written=False):
            state[name],""", """        if True:
            state[name],""", "test_checkpoint.py -k masters_and_shards"),
    ("onebox/fused_logprobs.py", "ctx.head.grad, grad_weight = grad_weight, None", "ctx.head.grad = grad_weight",
     "test_policy.py -k one_process_in_bf16"),
    ("onebox/masters.py", "            p.data = on_host\n", "            pass\n",
     "test_policy.py -k waits_on_the_host"),
    ("onebox/fused_logprobs.py", "- grad_entropy[:, None] * (logp + entropy[:, None])", "",
     "test_policy.py -k fused_logprobs_equal"),
    ("policy.py", "batches.append(batch)", "batches += [batch] * len(batch.targets[:1])",
     "test_policy.py -k without_work"),
    ("policy.py", "if math.isfinite(norm):", "if True:", "test_policy.py -k not_finite"),
    ("policy.py", "if not skip:", "if True:", "test_policy.py -k skipped"),
    ("policy.py", "hidden[batch.logit_index].float()",
     "hidden[(batch.logit_index + 1).clamp(max=len(hidden) - 1)].float()",
     "test_train_ppo.py -k state_before"),
    # the guard
    ("tools/guard.py", "max(0.0, before + min(5.0, z) - SLACK)", "max(0.0, before + z)", "test_guard.py -k no_alarm"),
    ("tools/guard.py", "fell == 2 or fell == 1 and bool(bad) or worse", "bool(bad)", "test_guard.py -k no_alarm"),
    ("tools/guard.py", "(luck(state[\"seen\"]) + 1.5) * deviation", "2 * deviation",
     "test_guard.py -k four_prompts"),
    ("tools/guard.py", "rolled >= ROLL_BACKS", "False", "test_guard.py -k three_roll_backs"),
    ("tools/guard.py", "began[\"lr\"] / LR_CUT ** 3.5", "0", "test_guard.py -k bounds"),
    ("tools/guard.py", "copy.deepcopy(state), row[", "state, row[", "test_guard.py -k json"),
    ("onebox/steering.py", "engine.version = None", "pass", "test_guard.py -k at_an_evaluation"),
    ("onebox/steering.py", "        progress.steered = progress.step\n", "", "test_guard.py -k survives_kills"),
    ("onebox/rundir.py", "kept = steered  #", "kept = step  #", "test_guard.py -k survives_kills"),
    ("onebox/rundir.py", "and not verdict:", "and True:", "test_guard.py -k verdict_ends"),
    ("train_grpo.py", "(0 if progress.verdict else cfg.num_steps)", "cfg.num_steps",
     "test_guard.py -k verdict_survives"),
    # GRPO
    ("train_grpo.py", ".masked_fill(agrees[:, None], 0.0)", "", "test_train_grpo.py -k zero_variance"),
    ("train_grpo.py", "rewards.std(dim=1, keepdim=True)", "rewards.std(dim=1, keepdim=True, unbiased=False)",
     "test_train_grpo.py -k 'unbiased or winner'"),
    ("train_grpo.py", "1 / (num_responses * lens)", "1 / (num_responses + 0 * lens)",
     "test_train_grpo.py -k aggregations"),
    ("train_grpo.py", "-torch.minimum(ratio", "-torch.maximum(ratio", "test_train_grpo.py -k clip"),
    ("train_grpo.py", "torch.where(advantages < 0,", "torch.where(advantages > 0,", "test_train_grpo.py -k quadrants"),
    ("train_grpo.py", "x = ref_logprobs - logprobs", "x = logprobs - ref_logprobs", "test_train_grpo.py -k k3"),
    ("train_grpo.py", "loss + cfg.kl_coef * kl_penalty", "loss - cfg.kl_coef * kl_penalty",
     "test_train_grpo.py -k 'kl or k2'"),
    ("train_grpo.py", "advantages - cfg.kl_coef", "advantages + cfg.kl_coef", "test_train_grpo.py -k 'kl or k1'"),
    ("train_grpo.py", ".exp().clamp(max=cap)", ".exp()", "test_train_grpo.py -k mismatch"),
    ("policy.py", "lr * max(step, 0) / (warmup", "lr * max(step - 1, 0) / (warmup",
     "test_train_grpo.py -k learning_rate"),
    ("train_grpo.py", "(loss * world).backward()", "loss.backward()", "test_end_to_end.py -k two_ranks"),
    # PPO
    ("train_ppo.py", "gamma * lam * later", "gamma * lam * 0.95 * later", "test_train_ppo.py -k gae"),
    ("train_ppo.py", "task[-1] = reward", "task[max(0, num_tokens - 2)] = reward",
     "test_train_ppo.py -k reward_stands"),
    ("train_ppo.py", "return torch.maximum((values", "return torch.minimum((values",
     "test_train_ppo.py -k 'value_clip or value_loss'"),
    ("train_ppo.py", "batch.needs_grad &= train_policy and ", "batch.needs_grad &= ",
     "test_train_ppo.py -k no_gradient"),
    ("train_ppo.py", "(a - tokens.mean()) / (tokens.std() + 1e-8)", "(a - a.mean()) / (a.std() + 1e-8)",
     "test_train_ppo.py -k whitening"),
    # parts beside a reward
    ("tasks/parts.py", "rank if good else min(0.0, rank)", "rank", "test_rewards.py -k kimi"),
    ("tasks/parts.py", "itertools.groupby(rollouts, lambda r: r.prompt)", "[(0, rollouts)]",
     "test_rewards.py -k group_parts"),
    ("tasks/parts.py", "-pass_rate * length", "-length", "test_rewards.py -k pass_rate"),
    ("onebox/metrics.py", "advantages[i].mean() for i in values", "advantages[i].sum() for i in values",
     "test_metrics.py -k correlation"),
    # guarantees
    ("onebox/metrics.py", "if not mean <= ", "if False and mean <= ", "test_metrics.py -k canary"),
    ("rollout.py", "if self.version != version:", "if self.version is None:", "test_rollout.py -k weights_that"),
    ("rollout.py", ".state_dict().items():", ".named_parameters():", "test_rollout.py -k 'agree and tied'"),
    ("tools/statistics.py", "1.0 - math.comb(n - c, k) / math.comb(n, k)", "1.0 - ((n - c) / n) ** k",
     "test_eval.py -k pass_at_k"),
    ("onebox/checkpoint.py", "[1] != sha256:", "[1] is None:", "test_faults.py -k flipped"),
    ("onebox/rundir.py", "seed_generators(self.cfg.seed", "(self.cfg.seed",
     "test_faults.py -k 'again_and_again and grpo'"),
    ("onebox/metrics.py", 'float(f"{x:.9g}")', "round(float(x), 4)", "test_metrics.py -k every_digit"),
    ("tools/replay.py", "chosen = indices[in_loss[indices]]", "chosen = in_loss.nonzero().flatten()",
     "test_replay.py -k each_update"),
    ("tools/replay.py", "losses, clipped = script.token_loss", "losses, clipped = __import__('train_grpo').token_loss",
     "test_replay.py -k 'computed_again and ppo'"),
    ("tools/replay.py", "batch.needs_grad = needs[i]", "batch.loss_weights = batch.loss_weights * 2",
     "test_replay.py -k whole_gradient"),
    ("tools/replay.py", "own.get(\"kl_coef\") or state.get(\"kl_coef\") or cfg.kl_coef", "cfg.kl_coef",
     "test_replay.py -k computed_again"),
    ("tools/saved_step.py", "if step and s < step", "if step and s <= step", "test_replay.py -k computed_again"),
    ("tools/saved_step.py", 'and "critic" in held', 'and "critic" not in held', "test_replay.py -k computed_again"),
    ("tools/saved_step.py", "-1e30 < x < 1e30", "True", "test_replay.py -k one_line"),
    ("onebox/flops.py", "(lens * (lens + 1) / 2).sum()", "(lens * lens).sum()", "test_flops.py -k by_hand"),
    # a user's own rewards, prompts and rows
    ("data.py", "asked += [p.row] * (p.reward in own_sources)", "pass", "test_own_data.py -k every_column"),
    ("data.py", "own_sources.get(p.reward, p.reward)", "p.reward", "test_own_data.py -k fingerprint"),
    ("tasks/scoring.py", "copy.deepcopy(asked.get(\"row\") or {})", "asked.get(\"row\") or {}",
     "test_own.py -k 'own_copy or copies'"),
    ("tasks/scoring.py", "() if ids is None else tuple(map(int, ids))", "ids or ()",
     "test_own.py -k 'copies or edited'"),
    ("tasks/scoring.py", "self.answered[key].get(question) or", "next(iter(self.answered[key].values()), None) or",
     "test_own.py -k several_questions"),
    ("tasks/own.py", "if identity(name) != source:", "if False:", "test_own.py -k edited"),
    ("tasks/own.py", "more = [node for node in tree if", "more = [node for node in tree if False and",
     "test_own.py -k may_decide"),
    ("tasks/own.py", 'text.split("\\n")', "text.splitlines()", "test_own.py -k line_that_makes"),
    ("tasks/own.py", "or wanted in plain(node)", "", "test_own.py -k line_that_makes"),
    ("tasks/workers.py", "os.killpg(worker.process.pid, signal.SIGKILL)", "worker.process.kill()",
     "test_own.py -k outlive"),
    ("tasks/workers.py", "os.dup2(2, 1)", "os.dup2(answers.fileno(), 1)", "test_own.py -k outlive"),
    ("tasks/workers.py", "2 * START_S * bool(seconds) + sum(seconds)", "0", "test_own.py -k waited_for"),
    ("tasks/sources.py", "gone = {name for ours in columns for name in COLUMNS[ours]}", "gone = set()",
     "test_own_data.py -k other_golds"),
    ("tasks/templates.py", "if {match[1].partition(\".\")[0], match[1].rpartition(\".\")[2]} & set(GOLD):",
     "if False:", "test_own_data.py -k cannot_be_used"),
    ("tasks/own_check.py", "if one.what == \"a perfect response\" and", "if False and",
     "test_own.py -k refused_at_start"),
]


def exit_code(file, source, tests):
    """Run tests in a copy of the project in which `file` holds `source`; 1: one of them failed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "out", "__pycache__"))
        with open(os.path.join(copy, file), "w") as f:
            f.write(source)
        command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider tests/{tests}"
        return subprocess.run(command, shell=True, cwd=copy, env=os.environ | {"OMP_NUM_THREADS": "1"},
                              capture_output=True).returncode


def main(word=""):
    missed = 0
    for file, text, instead, tests in BUGS:
        if word not in file + text:
            continue
        with open(os.path.join(ROOT, file)) as f:
            source = f.read()
        if text not in source:
            result, code = "STALE ", None
        else:
            code = exit_code(file, source.replace(text, instead), tests)
            result = "CAUGHT" if code == 1 else "MISSED"
        missed += result != "CAUGHT"
        print(f"{result}  {file}: {text.strip()}  ({tests}; exit {code})", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
