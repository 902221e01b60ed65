"""
Watch a run: notice that it goes wrong, name what it is, and say what would mend it.

Pure functions of the rows of metrics.jsonl and of the settings; the state is plain JSON and lies in the checkpoint. A
run is compared with its own past. onebox/steering.py carries out what is decided, tools/alarms.py puts it into words.

A signal has a baseline, median and MAD of its last 20 values, and cumulative sums of the deviations up and down (CUSUM;
Page, Biometrika 41, 1954). Unusual is not yet bad: in a good run entropy falls and length grows. An alarm needs harm.
"""

import copy
import math
import statistics

from tools.report.read import number

WINDOW = 20     # values of a baseline
SLACK = 1.0     # standard deviations a step that a cumulative sum forgives: half of the shift that is to be noticed
LIMIT = 6.0     # of a cumulative sum: a shift of 3 standard deviations reaches it in 3 steps
QUIET = 3       # steps after an action without another one; 10 after one that was only observed
AGAIN = 20      # steps after which what no setting mends is said again
ROLL_BACKS = 3  # of a run; then it is stopped
LR_CUT = 5      # lr is divided by it, four times at most
# signal: (whether its logarithm is watched, the least standard deviation: in logs, or as a share of the median)
SIGNALS = {"reward": (False, 0.05), "truncated": (False, 0.05), "format_error": (False, 0.05), "entropy": (False, 0.08),
           "response_len": (False, 0.08), "zero_variance_groups": (False, 0.05), "grad_norm": (True, 0.3),
           "approx_kl": (True, 0.5), "mismatch_mean": (True, 0.5)}
FLOORS = {"approx_kl": 1e-5, "mismatch_mean": 1e-5}  # below them it is rounding
SHARES = ("truncated", "format_error", "zero_variance_groups")  # of responses or groups
WITNESSES = ("truncated+", "format_error+", "entropy+", "entropy-", "response_len+", "response_len-", "grad_norm+",
             "zero_variance_groups+", "approx_kl+", "mismatch_mean+")  # what confirms that a fall of the reward is real
OF_SAMPLES = {"past": {}, "rewards": [], "spreads": [], "rights": [], "seen": 0, "best_reward": None}


def new_state():
    return copy.deepcopy(OF_SAMPLES) | {"sums": {}, "since": {}, "evals": [], "problems": 1, "silent": 0, "told": {},
                                        "quiet_until": 0, "roll_backs": 0, "goods": [], "began": None}


def best_success(state):
    return max((success for _, success in state["evals"]), default=0.0)


def spread_of(name, values, prompts):
    """Return (median, standard deviation) of a baseline; the latter at least what chance makes of so many prompts."""
    middle, (in_logs, least) = statistics.median(values), SIGNALS[name]
    spread = 1.4826 * statistics.median(abs(v - middle) for v in values)
    spread = max(spread, least if in_logs else least * abs(middle), 1e-9)
    if name in SHARES:  # binomial, of half a success more than were seen, so that 0 of 16 is no certainty
        share = (min(1.0, max(0.0, middle)) * prompts + 0.5) / (prompts + 1)
        spread = max(spread, math.sqrt(share * (1 - share) / prompts))
    return middle, spread


def reward_noise(state, prompts):
    """Return the standard deviation of a step's reward, from differences of steps; at least std / sqrt(prompts)."""
    differences = [abs(b - a) for a, b in zip(state["rewards"], state["rewards"][1:], strict=False)]
    typical = statistics.fmean(sorted(state["spreads"])[len(state["spreads"]) // 2:]) / math.sqrt(prompts)
    return max(typical, 1.4826 / math.sqrt(2) * statistics.median(differences) if differences else 0.0, 1e-9)


def add_row(state, row, settings):
    """Add the values of a row to the baselines and to the cumulative sums; of step 0 only what is held out."""
    prompts, samples = max(1, settings["prompts_per_step"]), settings["eval_samples"]
    if (success := number(row.get("eval_correct"))) is not None:
        state["evals"] = [*state["evals"], [row["step"], success]][-100:]
        asked = (number(row.get("eval_rollouts")) or 0) / samples if samples else 0  # the data may hold fewer
        state["problems"] = max(1, asked or settings["eval_prompts"])
    if row["step"] == 0:  # its other columns describe held-out responses
        return
    for name, (in_logs, _) in SIGNALS.items():
        value, past = number(row.get(name)), state["past"].get(name, [])
        if value is None or in_logs and value <= 0 and name not in FLOORS:
            continue
        value = math.log(max(value, FLOORS.get(name, 0.0))) if in_logs else value
        if len(past) >= 3:
            middle, spread = spread_of(name, past, prompts)
            spread = max(spread, reward_noise(state, prompts)) if name == "reward" else spread
            for key, z in ((f"{name}+", (value - middle) / spread), (f"{name}-", (middle - value) / spread)):
                before = state["sums"].get(key, 0.0)
                state["sums"][key] = min(2 * LIMIT, max(0.0, before + min(5.0, z) - SLACK))
                if before == 0 < state["sums"][key]:
                    state["since"][key] = row["step"]
            value = min(max(value, middle - 2 * spread), middle + 2 * spread)  # an outlier moves no baseline far
        state["past"][name] = [*past, value][-WINDOW:]
    agree, right = number(row.get("zero_variance_groups")) or 0.0, min(1.0, max(0.0, number(row.get("correct")) or 0.0))
    wrong = agree >= 0.9 and right < 0.5 and not settings["dynamic_sampling"]  # it replaces such groups
    state["silent"] = state["silent"] + 1 if wrong else 0
    if (reward := number(row.get("reward"))) is not None:
        spread = number(row.get("reward_std"))  # logs of older runs lack it
        state["spreads"] = [*state["spreads"], math.sqrt(right * (1 - right)) if spread is None else spread][-WINDOW:]
        state["rewards"], state["seen"] = [*state["rewards"], reward][-WINDOW:], state["seen"] + 1
        state["rights"] = [*state["rights"], right][-3:]
        if len(state["rewards"]) >= 4:
            before = state["rewards"][:-3][-10:]  # [level, of how many steps it is the median]
            state["best_reward"] = max([statistics.median(before), len(before)], state["best_reward"] or [-math.inf, 1])


def reward_fell(state, prompts):
    """
    Return how far the mean reward of 3 steps lies below its best level, the highest median of 10 steps: 0 not told from
    chance, 1 a fall that an unusual signal must confirm, 2 one that needs no witness.

    The lowest of n normal values lies sqrt(2 ln n) standard deviations down: so much chance has, and 1.5 more are
    asked. The deviation is that of a mean of 3 steps less a median of n, whose variance is pi / 2 / n of a step's.
    """
    if state["best_reward"] is None:
        return 0
    (best, steps), typical = state["best_reward"], max(state["spreads"])
    drop, deviation = best - statistics.fmean(state["rewards"][-3:]), math.sqrt(1 / 3 + math.pi / 2 / steps)
    if drop <= max((luck(state["seen"]) + 1.5) * deviation * reward_noise(state, prompts), 0.4 * typical):
        return 0
    return 2 if drop > 0.7 * typical else 1


def luck(count):
    return math.sqrt(2 * math.log(max(2, count)))


def standard_error(a, b, problems):
    """Of the difference of two shares of held-out problems; a problem counts once, however often it is sampled."""
    return math.sqrt((a * (1 - a) + b * (1 - b) + 0.5 / problems) / problems)


def held_out_fell(state, row):
    """Tell whether the held-out success of a row lies below the best one by more than chance, with as many tries."""
    if number(row.get("eval_correct")) is None or len(state["evals"]) < 2:
        return False
    now, best = state["evals"][-1][1], max(success for _, success in state["evals"][:-1])
    return best - now > max(0.05, (luck(len(state["evals"])) + 1.5) * standard_error(best, now, state["problems"]))


def no_rise(state, row, settings):
    """Tell whether a quarter of the run is over and held-out success, evaluated in this row, shows no rise."""
    warmup = settings.get("critic_warmup_steps", 0)
    early = row["step"] < warmup + (settings["num_steps"] - warmup) / 4
    if early or number(row.get("eval_correct")) is None:
        return False
    first, now = state["evals"][0][1], state["evals"][-1][1]
    return now < first + 1.3 * standard_error(first, now, state["problems"])


def diagnose(state, row, settings):
    """Return (what is wrong, the signals that show it, whether the weights are harmed), or None."""
    over, rewards = {key for key, total in state["sums"].items() if total >= LIMIT}, state["rewards"]
    bad, fell = [key for key in WITNESSES if key in over], reward_fell(state, max(1, settings["prompts_per_step"]))
    worse = held_out_fell(state, row)
    harmed, mismatch = fell == 2 or fell == 1 and bool(bad) or worse, number(row.get("mismatch_mean")) or 0.0
    tenfold = mismatch > 10 * math.exp(statistics.median(state["past"].get("mismatch_mean") or [0.0]))
    if mismatch > 0.05 or "mismatch_mean+" in over and tenfold and mismatch > 1e-3 and "entropy+" not in over:
        return "mismatch", ["mismatch_mean+"], harmed
    best = best_success(state)
    if worse and not fell and state["rights"] and statistics.fmean(state["rights"]) >= best:  # by the reward alone
        return "reward hack", ["reward+"], True
    if harmed:
        moves = max(settings["clip_low"], settings["clip_high"]) > 0.3 or "approx_kl+" in over  # far, if it may
        several = settings["updates_per_step"] * settings["epochs_per_step"] > 1
        saw = ("off-policy" if several and moves else "gibberish" if "entropy+" in over else
               "entropy gone" if {"entropy-", "zero_variance_groups+"} <= over else "divergence")
        return saw, bad or ["reward-"], True
    rises = len(rewards) < 10 or statistics.fmean(rewards[-5:]) > statistics.fmean(rewards[-10:-5])  # longer is better
    if "truncated+" in over and (number(row.get("truncated")) or 0.0) > 0.25 and not rises:
        return ("gibberish" if "entropy+" in over else "length cap"), bad, False
    if state["silent"] >= 5:
        return "starved", ["zero_variance_groups+"], False
    if not no_rise(state, row, settings):
        return None
    if settings["kl_in"] != "none" and settings["kl_coef"] > 0.2 or not 0.5 <= settings["temperature"] <= 1.4:
        return "held back", [], False
    alone = state["rights"] and statistics.fmean(state["rights"]) > best + 0.4  # right by the reward alone
    return ("reward hack", [], False) if alone else None


def remedy(saw, settings, began):
    """Return the first change of the plan that applies, {setting: value} within bounds; {} if no setting mends it."""
    several = settings["updates_per_step"] * settings["epochs_per_step"] > 1
    bonus = settings["entropy_coef"] > 0 or settings["entropy_target"] > 0
    no_target = {"entropy_target": 0.0} if settings["entropy_target"] else {}  # the controller would undo it
    rates = {name: settings[name] / LR_CUT for name in ("lr", "critic_lr") if settings.get(name)}
    changes = {
        "no bonus": bonus and {"entropy_coef": 0.0, **no_target},
        "cooler": settings["temperature"] > 1 and {"temperature": 1.0, **no_target},
        "warmer": settings["temperature"] < 0.9 and {"temperature": 1.0, **no_target},
        "clip": several and max(settings["clip_low"], settings["clip_high"]) > 0.3 and {
            "clip_low": 0.2, "clip_high": 0.2},
        "clip higher": several and settings["clip_high"] < 0.28 and {"clip_high": 0.28},
        "one update": settings["updates_per_step"] > 1 and {"updates_per_step": 1},
        "one epoch": settings["epochs_per_step"] > 1 and {"epochs_per_step": 1},
        "weights": settings["mismatch_cap"] == 0 and {"mismatch_cap": 2.0},
        "less KL": settings["kl_in"] != "none" and settings["kl_coef"] > 0.04 and {
            "kl_coef": min(settings["kl_coef"] / 10, 0.01), **({"kl_target": 0.} if settings.get("kl_target") else {})},
        "lower lr": settings["lr"] > began["lr"] / LR_CUT ** 3.5 and rates}
    plan = {"gibberish": ("no bonus", "cooler", "clip", "lower lr"), "held back": ("less KL", "cooler", "warmer"),
            "off-policy": ("one update", "one epoch", "clip", "lower lr"), "mismatch": ("weights",), "reward hack": (),
            "divergence": ("no bonus", "clip", "less KL", "lower lr"), "starved": ("warmer",), "length cap": (),
            "entropy gone": ("warmer", "clip higher", "lower lr")}[saw]
    return next((changes[name] for name in plan if changes[name]), {})


def look(state, row, settings):
    """
    Look at the row of a finished step. Return (the next state, an event or None); the arguments stay as they are.

    settings: those of this step, with what was changed so far. The event is a line of guard.jsonl. Its action is what
    guard = "act" does: "change" settings, "roll back" to the weights of to_step and change settings, "stop" with the
    weights of to_step, or "none" where no setting helps and nothing is lost yet.
    """
    given, state, step = state, copy.deepcopy(state), row["step"]
    state["began"] = state["began"] or {"lr": settings["lr"]}
    add_row(state, row, settings)
    found = diagnose(state, row, settings) if step >= max(1, state["quiet_until"]) else None
    saw, where, harmed = found or ("", [], False)
    if not harmed:
        keep_as_good(state, row)
    if not saw or step < state["told"].get(saw, -AGAIN) + AGAIN:
        return state, None
    change, rolled = remedy(saw, settings, state["began"]), state["roll_backs"]
    action = ("stop" if harmed and (not change or rolled >= ROLL_BACKS) else "roll back" if harmed else
              "change" if change else "none")
    before = {name: statistics.median(past) for name, past in given["past"].items()}
    numbers = {name: [math.exp(before[name]) if SIGNALS[name][0] else before[name], number(row.get(name))]
               for name in dict.fromkeys(key[:-1] for key in where) if name in before and name != "reward"}
    if state["best_reward"]:
        numbers["reward"] = [state["best_reward"][0], statistics.fmean(state["rewards"][-3:])]
    if number(row.get("eval_correct")) is not None:
        numbers["eval_correct"] = [best_success(state), state["evals"][-1][1]]
    event = {"step": step, "saw": saw, "since": min((state["since"].get(key, step) for key in where), default=step),
             "numbers": numbers, "action": action, "settings": {} if action == "stop" else change,
             "to_step": state["goods"][0][0] if harmed and state["goods"] else None}
    if action == "none":
        return state | {"told": state["told"] | {saw: step}}, event
    acting = settings["guard"] == "act"
    if acting and action == "roll back":  # the past of the weights that come back
        goods = state["goods"][:1]  # what came after it is not trusted
        state |= copy.deepcopy(goods[0][1] if goods else OF_SAMPLES) | {"roll_backs": rolled + 1, "goods": goods}
    if acting and "temperature" in change:  # samples of another one are not comparable
        state |= copy.deepcopy(OF_SAMPLES)
        state["goods"] = [[good, past | copy.deepcopy(OF_SAMPLES)] for good, past in state["goods"]]
    return state | {"sums": {}, "since": {}, "silent": 0, "quiet_until": step + 1 + (QUIET if acting else 10)}, event


def keep_as_good(state, row):
    """Remember the two newest steps not worse than the best, and their past: back to the first, which is confirmed."""
    if (success := number(row.get("eval_correct"))) is None:
        return
    if success >= (best := best_success(state)) - standard_error(best, success, state["problems"]):
        if state["best_reward"] and statistics.fmean(state["rewards"][-3:]) < state["best_reward"][0]:
            state["best_reward"] = None  # it fell for another reason, such as harder prompts
        past = {name: copy.deepcopy(state[name]) for name in (*OF_SAMPLES, "evals")}
        state["goods"] = [*state["goods"], [row["step"], past]][-2:]
