"""
Plant each bug once, in a copy of the project, and see its test fail: python tests/plant_bugs.py [word in the name]

A test that cannot fail proves nothing. Prints CAUGHT or MISSED for each; exit code 1 if any is missed. Not run by pytest.
"""

import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUGS = [  # name, file, text, what it becomes, the tests that must fail
    ("no division by the temperature", "policy.py", "return logits if temperature == 1.0 else logits.div_(temperature)",
     "return logits", "tests/test_policy.py -k packed_logprobs"),
    ("logits scored one token too late", "policy.py", "np.arange(start + len(r.prompt_ids) - 1, start + n)",
     "np.minimum(np.arange(start + len(r.prompt_ids), start + n + 1), start + n - 1)", "tests/test_policy.py -k packed_logprobs"),
    ("attention sees what follows", "policy.py", "is_causal=True", "is_causal=False", "tests/test_policy.py -k packed_logprobs"),
    ("packed sequences leak", "policy.py", "length_groups(lens, device),", "length_groups([sum(lens)], device),",
     "tests/test_policy.py -k 'neighbours or single_sequences'"),
    ("mask from ids != eos", "policy.py", "rows.append(np.arange(start + len(r.prompt_ids) - 1, start + n))",
     "rows.append(np.arange(start + len(r.prompt_ids) - 1, start + n)[np.asarray(r.response_ids) != 1])",
     "tests/test_policy.py -k eos_is_trained"),
    ("entropy gradient forgotten", "policy.py", "- grad_entropy[:, None] * (logp + entropy[:, None])", "",
     "tests/test_policy.py -k fused_logprobs_equal"),
    ("chunks forgotten after the first", "policy.py", "for i in range(0, num_tokens, size)]", "for i in range(0, min(num_tokens, size), size)]",
     "tests/test_policy.py -k fused_logprobs_equal"),
    ("an empty rank skips its pass", "policy.py", "return [to_micro_batch(rollouts, bins[m * world + rank], device, learns) for m in range(count)]",
     "return [to_micro_batch(rollouts, b, device) for m in range(count) if (b := bins[m * world + rank])]",
     "tests/test_policy.py -k 'without_work'"),
    ("step on a gradient that is not finite", "policy.py", "if math.isfinite(norm):", "if True:", "tests/test_policy.py -k not_finite"),
    ("noise as advantage", "train_grpo.py", "return advantages.masked_fill(agrees[:, None], 0.0).float()", "return advantages.float()",
     "tests/test_train_grpo.py -k agrees"),
    ("population std", "train_grpo.py", "rewards.std(dim=1, keepdim=True)", "rewards.std(dim=1, keepdim=True, unbiased=False)",
     "tests/test_train_grpo.py -k 'unbiased or winner'"),
    ("mean of sequence sums", "train_grpo.py", "return (1 / (num_responses * lens)).float()", "return torch.full_like(lens, 1 / num_responses).float()",
     "tests/test_train_grpo.py -k aggregations"),
    ("clip takes the larger", "train_grpo.py", "return -torch.minimum(", "return -torch.maximum(", "tests/test_train_grpo.py -k clip"),
    ("KL maximised", "train_grpo.py", "return x.square() / 2", "return -x.square() / 2", "tests/test_train_grpo.py -k 'kl or k2'"),
    ("k3 with the ratio upside down", "train_grpo.py", "x = ref_logprobs - logprobs", "x = logprobs - ref_logprobs", "tests/test_train_grpo.py -k k3"),
    ("KL subtracted from the loss", "train_grpo.py", "loss = loss + cfg.kl_coef * kl_penalty", "loss = loss - cfg.kl_coef * kl_penalty",
     "tests/test_train_grpo.py -k 'kl or k2 or k3'"),
    ("k1 added to the reward", "train_grpo.py", "advantages = advantages - cfg.kl_coef", "advantages = advantages + cfg.kl_coef",
     "tests/test_train_grpo.py -k 'kl or k1'"),
    ("mismatch weights forgotten", "train_grpo.py", "    loss = loss * mismatch_weights(old_logprobs, batch.rollout_logprobs, cfg.mismatch_cap)\n", "",
     "tests/test_train_grpo.py -k surrogate_times"),
    ("weights move without a signal", "train_grpo.py", "                if learnt:\n", "                if True:\n",
     "tests/test_end_to_end.py -k nothing_to_learn"),
    ("importance weight not capped", "train_grpo.py", ".detach().exp().clamp(max=cap)", ".detach().exp()", "tests/test_train_grpo.py -k mismatch"),
    ("importance weight with gradient", "train_grpo.py", "(old_logprobs - rollout_logprobs).detach()", "(old_logprobs - rollout_logprobs)",
     "tests/test_train_grpo.py -k mismatch"),
    ("truncated responses never masked", "train_grpo.py", 'on_truncated == "mask" and r.truncated', "False", "tests/test_train_grpo.py -k truncated"),
    ("warm-up wastes a step", "train_grpo.py", "return lr * step / (warmup_steps + 1)", "return lr * (step - 1) / (warmup_steps + 1)",
     "tests/test_train_grpo.py -k learning_rate"),
    ("FSDP's mean over ranks not undone", "train_grpo.py", "(loss * world).backward()", "loss.backward()", "tests/test_end_to_end.py -k two_ranks"),
    ("all samples of a group share a seed", "eval.py", 'common.stable_seed(seed, "eval", uid, k)', 'common.stable_seed(seed, "eval", uid)',
     "tests/test_end_to_end.py -k promises"),
    ("resume: replays a batch", "train_grpo.py", 'saved.get("prompts_seen", 0), saved', 'max(0, saved.get("prompts_seen", 0) - cfg.prompts_per_step), saved',
     "tests/test_faults.py -k 'again_and_again and grpo'"),
    ("the cold start's last step has lr 0", "sft.py", "done = (step - cfg.warmup_steps - 1)", "done = (step - cfg.warmup_steps)",
     "tests/test_sft.py -k lr_0"),
    ("a reward of NaN reaches the update", "rewards.py", "if not abs(value) <= MAX_REWARD:\n            raise ValueError(f\"{name} is",
     "if False:\n            raise ValueError(f\"{name} is", "tests/test_rewards.py -k where_an_own_reward"),
    ("open-r1: the gold is a solution without a box", "data.py", '("####" in solution)])[-1].strip()', '("####" in solution)])[-1].strip() or 1',
     "tests/test_data.py -k only_a_solution_that_holds_one"),
    ("sft: <think> opened twice", "sft.py", "if tag and response.lstrip().startswith(tag):", "if False:", "tests/test_sft.py -k trained_once"),
    ("recipe: a function trains with the default", "config.py", "for name, value in sorted(read_recipe(path, script).items()",
     "for name, value in sorted({k: v for k, v in read_recipe(path, script).items() if not callable(v)}.items()",
     "tests/test_config.py -k names_the_file"),
    ("resume: sampler off by one", "sft.py", 'saved.get("examples_seen", 0)', 'max(0, saved.get("examples_seen", 0) - 1)',
     "tests/test_faults.py -k 'again_and_again and sft'"),
    ("resume: draw counter not saved", "train_ppo.py", '{"prompts_seen": prompts_seen, ', "{", "tests/test_faults.py -k 'again_and_again and ppo'"),
    ("resume: generators not derived from the step", "train_grpo.py", "        common.seed_generators(cfg.seed, step, rank)\n", "",
     "tests/test_faults.py -k 'again_and_again and grpo'"),
    ("resume: KL controller not saved", "train_ppo.py", '"fingerprints": fingerprints, "kl_coef": kl_coef}', '"fingerprints": fingerprints}',
     "tests/test_faults.py -k 'again_and_again and ppo'"),
    ("resume: rows after the checkpoint kept", "train_grpo.py", '    run.forget_after(saved["step"] or -1)', "    # nothing", "tests/test_faults.py -k 'again_and_again and grpo'"),
    ("checkpoint: optimizer state not restored", "checkpoint.py", "dcp.load(state, checkpoint_id", 'dcp.load({"model": state["model"]}, checkpoint_id',
     "tests/test_checkpoint.py -k checkpoint_brings"),
    ("checkpoint: manifest not checked", "checkpoint.py", "problem = agree(damage_or_error(folder, steps[-1]))", 'problem = ""', "tests/test_checkpoint.py -k put_aside"),
    ("checkpoint: hashes not compared", "checkpoint.py", '[1] != sha256:', "[1] is None:", "tests/test_faults.py -k flipped"),
    ("checkpoint: written in place", "checkpoint.py", 'f"tmp_step_{step:06d}")\n', 'f"step_{step:06d}")\n', "tests/test_faults.py -k again_and_again"),
    ("checkpoint: NaN weights loaded", "checkpoint.py", "agree(attempt(read) or not_finite(state))", "agree(attempt(read))", "tests/test_checkpoint.py -k not_finite"),
    ("checkpoint: the best one pruned", "checkpoint.py", "if step != best:", "if True:", "tests/test_checkpoint.py -k best_one"),
    ("checkpoint: damage means from scratch", "checkpoint.py", "    if held := gather(", "    if held := 0 and gather(", "tests/test_checkpoint.py tests/test_faults.py -k 'none_left or never_starts'"),
    ("checkpoint: a failed save forgotten", "checkpoint.py", "self.retry_at = step + self.failures", "pass", "tests/test_checkpoint.py -k three_failures"),
    ("run: signal ignored", "checkpoint.py", "self.seen.append(number)", "pass", "tests/test_faults.py -k signal"),
    ("run: no lock", "rundir.py", "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "tests/test_checkpoint.py -k belongs_to_one"),
    ("run: changed data accepted", "checkpoint.py", "if changed and not allow_data_change:", "if False:", "tests/test_faults.py -k changed_examples"),
    ("named_parameters in the weight sync", "rollout.py", "in model.state_dict().items():", "in model.named_parameters():",
     "tests/test_rollout.py -k 'agree and tied'"),
    ("prefix cache kept over a sync", "rollout.py", "if not engine.reset_prefix_cache():", "if False:", "tests/test_rollout.py -k 'agree and tied'"),
    ("raw log-probs from the engine", "rollout.py", 'logprobs_mode="processed_logprobs"', 'logprobs_mode="raw_logprobs"',
     "tests/test_rollout.py -k 'agree and tied'"),
    ("canary off", "metrics.py", "if not mean <= bound:", "if False:", "tests/test_end_to_end.py -k canary"),
    ('ppo: lambda 0.95 where 1 was meant', 'train_ppo.py', 'delta + gamma * lam * later',
     'delta + gamma * lam * 0.95 * later', 'tests/test_train_ppo.py -k gae'),
    ('ppo: reward on the token before the last', 'train_ppo.py', 'task[-1] = reward',
     'task[max(0, num_tokens - 2)] = reward', 'tests/test_train_ppo.py -k reward_stands'),
    ('ppo: truncation always bootstraps', 'train_ppo.py', 'if rollouts[i].truncated and cfg.truncation_bootstrap == "value":',
     'if rollouts[i].truncated:', 'tests/test_train_ppo.py -k what_follows'),
    ('ppo: KL added to the reward', 'train_ppo.py', 'task + repetition - kl}',
     'task + repetition + kl}', 'tests/test_train_ppo.py -k policy_equal'),
    ("ppo: returns from the policy's lambda", 'train_ppo.py', 'gammas, cfg.critic_lam, last_value) + values[i]',
     'gammas, lam, last_value) + values[i]', 'tests/test_train_ppo.py -k critics_own'),
    ('ppo: whitening per response', 'train_ppo.py', '(a - tokens.mean()) / (tokens.std() + 1e-8)',
     '(a - a.mean()) / (a.std() + 1e-8)', 'tests/test_train_ppo.py -k whitening'),
    ('ppo: value clip takes the smaller', 'train_ppo.py', 'error = torch.maximum(error',
     'error = torch.minimum(error', "tests/test_train_ppo.py -k 'value_clip or value_loss'"),
    ('ppo: dual clip on good tokens', 'train_ppo.py', 'torch.where(advantages < 0,',
     'torch.where(advantages > 0,', 'tests/test_train_ppo.py -k quadrants'),
    ('ppo: KL controller upside down', 'train_ppo.py', 'kl_coef * (1 + error',
     'kl_coef * (1 - error', 'tests/test_train_ppo.py -k adaptive_kl'),
    ('ppo: explained variance of other responses', 'train_ppo.py', '[x[i] for i in values]',
     'list(x.values())', 'tests/test_train_ppo.py -k explained'),
    ('ppo: value of the state after the token', 'policy.py', 'return self.head(hidden[batch.rows].float())[:, 0]',
     'return self.head(hidden[(batch.rows + 1).clamp(max=len(hidden) - 1)].float())[:, 0]', 'tests/test_train_ppo.py -k state_before'),
    ('ppo: value head starts at random', 'policy.py', 'torch.nn.init.zeros_(self.head.weight)',
     'pass', 'tests/test_train_ppo.py -k new_critic'),
    ('ppo: value head in bf16', 'policy.py', 'hidden[batch.rows].float())[:, 0].clone()',
     'hidden[batch.rows].float())[:, 0].bfloat16().float()', 'tests/test_train_ppo.py -k new_critic'),
    ('ppo: advantages put back on other responses', 'policy.py', 'parts = [arrays[i] for i in batch.response_index.unique_consecutive().tolist()]',
     'parts = [arrays[i] for i in sorted(batch.response_index.unique_consecutive().tolist())]', 'tests/test_train_ppo.py -k find_their_tokens'),
    ('ppo: the policy steps during the warm-up', 'train_ppo.py', 'train_policy = step > late',
     'train_policy = True', 'tests/test_train_ppo.py -k warm_up_leaves'),
    ('ppo: old values refreshed in every epoch', 'train_ppo.py', '                        stats.add_values(batch',
     '                        batch.old_values = values.detach()\n                        stats.add_values(batch', 'tests/test_train_ppo.py -k constant_over'),
    ("ppo: critic's mean over ranks not undone", 'train_ppo.py', '                        (loss * world).backward()\n                        stats.add_values',
     '                        loss.backward()\n                        stats.add_values', 'tests/test_train_ppo.py -k two_ranks'),
    ('ppo: a copied function drifts', 'train_ppo.py', 'return -torch.minimum(ratio * advantages, clipped * advantages)',
     'return -torch.minimum(ratio * advantages, clipped * advantages) + 0.0', 'tests/test_drift.py'),
    ("speed: the head on every token", "speed.py", "2 * shape.vocab * shape.hidden * float(scored)",
     "2 * shape.vocab * shape.hidden * float(np.sum(lens))", "tests/test_speed.py -k 'by_hand or torch_counts'"),
    ("speed: attention counted as a square", "speed.py", "(lens * (lens + 1) / 2).sum()", "(lens * lens).sum()",
     "tests/test_speed.py -k by_hand"),
    ("speed: decoding steps one sequence at a time", "speed.py", "max(r.max(), math.ceil(r.sum() / num_seqs))", "r.sum()",
     "tests/test_speed.py -k decoding"),
    ("speed: a dry step leaves its gradients", "speed.py", "trained.zero_grad(set_to_none=True)", "pass",
     "tests/test_speed.py -k dry_step_changes"),
    ("speed: evaluation counted in the roofline", "speed.py", 'row["seconds_step"] - row["seconds_eval"]', 'row["seconds_step"]',
     "tests/test_speed.py -k all_limits"),
    ("speed: other forgets the values", "metrics.py", 'if name != "step")', 'if name in PHASES)', "tests/test_speed.py -k other"),
    ("plan: Adam forgotten", "plan.py", '"policy: gradient, Adam": 12 *', '"policy: gradient, Adam": 4 *',
     "tests/test_plan.py -k 'weights_gradients or 7b'"),
    ("plan: a suggestion that does not fit", "plan.py", "        if fits(changes):\n            for", "        if changes:\n            for",
     "tests/test_plan.py -k what_does_not_fit"),
    ("safety: groups that agree leave the denominator", "train_grpo.py", "num_tokens = int(response_lens[chosen].sum())",
     "num_tokens = int(response_lens[chosen[learning[chosen]]].sum())", "tests/test_safety.py -k agree_need"),
    ("safety: out of memory again and again", "rundir.py", "max_tokens_per_gpu=used // 2)", "max_tokens_per_gpu=used)",
     "tests/test_safety.py -k 'token_budget or out_of_memory'"),
    ("safety: golds that fail are not counted", "check.py", "failures.append(str(error)", "str.strip(str(error)",
     "tests/test_safety.py -k own_golds"),
    ("safety: waits for wandb", "rundir.py", "self.join(wait_s)", "self.join()", "tests/test_safety.py -k slow_wandb"),
    ("safety: a crash report without its step", "train_grpo.py",
     "        rundir.LAST.update(step=step, rollouts=())  # for a crash report\n", "", "tests/test_safety.py -k three_such"),
    ("safety: bytes that are no character end the run", "samples.py", "        except Exception:", "        except KeyError:",
     "tests/test_safety.py -k no_character"),
    ("eval: biased pass@k", "scoring.py", "return 1.0 - math.comb(n - c, k) / math.comb(n, k)",
     "return 1.0 - ((n - c) / n) ** k", "tests/test_eval.py -k pass_at_k"),
    ("eval: a tie goes to what was said last", "scoring.py", "max(classes, key=len)", "max(reversed(classes), key=len)",
     "tests/test_eval.py -k majority"),
    ("eval: no answer votes", "scoring.py", "        if answer is None:\n            continue\n", "",
     "tests/test_eval.py -k 'majority or summary'"),
    ("eval: interval over samples", "scoring.py", "low, high = interval(shares)",
     'low, high = interval([row["correct"] for row in counted])', "tests/test_eval.py -k over_problems"),
    ("eval: certainty from problems that agree", "scoring.py", "if (values == values[0]).all():", "if False:",
     "tests/test_eval.py -k certainty"),
    ("eval: spreadsheet formulas written out", "scoring.py", 'if text[:1] in ("=", "+", "-", "@")', "if False",
     "tests/test_eval.py -k hostile"),
    ("eval: completions of other settings taken over", "journal.py", 'if before is not None and before["settings"] != now:',
     "if False:", "tests/test_eval.py -k other_settings_are_refused_and"),
    ("eval: responses that the clock cut off are kept", "journal.py", 'if cut_off or row["finish_reason"] != "deadline":',
     "if True:", "tests/test_eval.py -k clock"),
    ("eval: appended to half a line", "journal.py", "if old := parts_of(folder, name):", "if False:",
     "tests/test_eval.py -m slow -k killed"),
    ("eval: seeds by what is missing", "eval.py", "for k in samples]", "for k in range(len(samples))]",
     "tests/test_eval.py -m slow -k killed"),
    ("eval: a sweep keeps the start model's weights", "eval.py",
     "sampler.wake_and_sync(policy.hf, engine, getattr(torch, dtype), step, device)",
     "engine.update_weight_version(str(step))", "tests/test_end_to_end.py -k sweep"),
    ("eval: an evaluation moves the draws", "train_grpo.py", "        run.held_out(step, per_problem)\n",
     "        run.held_out(step, per_problem)\n        prompts.append(prompts.pop(0))\n",
     "tests/test_end_to_end.py -k evaluating_changes"),
    ("recipe typo accepted", "config.py", "if name not in hints:", "if False:", "tests/test_config.py"),
]


def main(word=""):
    missed = 0
    for name, file, text, instead, tests in BUGS:
        if word not in name:
            continue
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(ROOT, os.path.join(copy, "p"), ignore=shutil.ignore_patterns(".git", ".venv", "out", "__pycache__"))
            path = os.path.join(copy, "p", file)
            with open(path) as f:
                source = f.read()
            if source.count(text) < 1:
                print(f"STALE   {name}: {file} no longer holds {text!r}", flush=True)
                missed += 1
                continue
            with open(path, "w") as f:
                f.write(source.replace(text, instead))
            done = subprocess.run(f"{sys.executable} -m pytest -q -x -p no:cacheprovider {tests}", shell=True, cwd=os.path.join(copy, "p"),
                                  env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            caught = done.returncode == 1
            missed += not caught
            print(f"{'CAUGHT' if caught else 'MISSED'}  {name}  ({tests}; exit {done.returncode})", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
