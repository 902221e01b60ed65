"""
train_ppo.py with a record of what it must not change: the weights at every sync, and what is fixed from before the
first update of a step (old log-probs, old values, returns, advantages) at every update.

    torchrun --nproc-per-node=1 tests/watched_ppo.py --model ...       # writes events.pt into the working directory

events: {"sync": version, "weights": digest of the policy}, {"step": "Policy" or "Critic", "fixed": [sums of a batch]}.
"""

import torch
import torch.distributed as dist

import rollout
import train_ppo
from onebox.rundir import entry

events, batches, models = [], [], {}
pack, load_policy, optimizer_step = train_ppo.pack, train_ppo.load_policy, train_ppo.optimizer_step
sync_weights = rollout.sync_weights


def digest(module):
    return [float(getattr(p, "to_local", lambda p=p: p)().detach().double().abs().sum()) for p in module.parameters()]


def watched_pack(*args):
    micro_batches = pack(*args)
    batches.extend(micro_batches)
    return micro_batches


def watched_load(*args, trainable=True, **kwargs):
    policy = load_policy(*args, trainable=trainable, **kwargs)
    if trainable:  # the other one is the reference
        models["policy"] = policy
    return policy


def watched_step(module, optimizer, lr, grad_clip, skip=False):
    is_policy, before = module is models["policy"], digest(models["policy"])
    norm = optimizer_step(module, optimizer, lr, grad_clip, skip)
    if skip:
        assert norm == 0
    else:
        fixed = [tuple(float(x.double().sum()) for x in (b.old_logprobs, b.old_values, b.returns, b.advantages))
                 for b in batches]
        events.append({"step": "Policy" if is_policy else "Critic", "fixed": fixed})
    assert (is_policy and not skip) or digest(models["policy"]) == before, "the policy moved without a step of its own"
    return norm


def watched_sync(hf, llm, dtype, version):
    events.append({"sync": version, "weights": digest(hf)})
    batches.clear()  # a new step begins
    return sync_weights(hf, llm, dtype, version)


train_ppo.pack, train_ppo.load_policy, train_ppo.optimizer_step = watched_pack, watched_load, watched_step
rollout.sync_weights = watched_sync


def main():
    train_ppo.main()
    if dist.get_rank() == 0:
        torch.save(events, "events.pt")


if __name__ == "__main__":
    entry(main)
