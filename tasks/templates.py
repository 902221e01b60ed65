"""
The prompt templates of the published systems, to the byte: odd spacing, missing newlines and all.

    build_prompt("tinyzero_base", {"target": 98, "nums": [44, 19, 35]}) -> the text of one prompt
    encode_prompt(tokenizer, text) -> its token ids

An entry is either raw text ("text", tokenized as it is, special-token text included) or a chat ("system", "user", sent
through the model's own chat template). build_prompt fills slots {like_this} in one pass; str.format would stumble over
\\boxed{}. A text that ends in <think> prefills it: the tag belongs to the prompt, never to the response. The comment
above an entry names its origin.

Where a name is wanted, a recipe may also give such an entry of its own, {"system": ..., "user": "{question}"}; a raw
text with slots, "Review: {text}\nLabel:", whose slots are columns of the row; or a function of the row that returns a
raw text or a list of messages.
"""

import datetime
import functools
import json
import re
import string

from onebox.config import ConfigError
from onebox.text import excerpt, suggest
from tasks import TASKS, own
from tasks.rows import BadRow, filled, look_up, print0

CHAT_DATE = "2024-07-26"  # the date in Llama 3's own templates for callers without a clock

TEMPLATES = {
    # Jiayi-Pan/TinyZero @95df88f examples/data_preprocess/countdown.py make_prefix (base)
    "tinyzero_base": {"text": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the "
        "answer.\n"
        "User: Using the numbers {nums}, create an equation that equals {target}. You can use basic arithmetic "
        "operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. "
        "And return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.\n"
        "Assistant: Let me solve this step by step.\n<think>")},
    # Jiayi-Pan/TinyZero @95df88f examples/data_preprocess/countdown.py make_prefix (qwen-instruct)
    "tinyzero_instruct": {"text": (
        "<|im_start|>system\n"
        "You are a helpful assistant. You first thinks about the reasoning process in the mind and then provides "
        "the user with the answer.<|im_end|>\n<|im_start|>user\n"
        " Using the numbers {nums}, create an equation that equals {target}. You can use basic arithmetic "
        "operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. "
        "And return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 "
        "</answer>.<|im_end|>\n<|im_start|>assistant\n"
        "Let me solve this step by step.\n<think>")},
    # Unakar/Logic-RL @9d2c457 examples/data_preprocess/kk.py make_prefix (base)
    "logic_rl_base": {"text": (
        "The user asks a question, and the Assistant solves it.The assistant first thinks about the reasoning "
        "process in the mind and then provides the user with the final answer. The reasoning process and answer are "
        "enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning "
        "process here </think><answer> answer here </answer>. Now the user asks you to solve a logical reasoning "
        "problem. After thinking, when you finally reach a conclusion, clearly state the identity of each character "
        "within <answer> </answer> tags. List the identity of each person one by one, for example, <answer> (1) "
        "Zoey is a knight\n(2) Oliver is a knight\n"
        "(3)... </answer>.\n\nUser:{quiz}\nAssistant: <think>")},
    # Unakar/Logic-RL @9d2c457 examples/data_preprocess/kk.py make_prefix (qwen-instruct); also the prompt column of
    # data/kk/instruct/*
    "logic_rl_instruct": {"text": (
        "<|im_start|>system\n"
        "You are a helpful assistant. The assistant first thinks about the reasoning process in the mind and then "
        "provides the user with the answer. The reasoning process and answer are enclosed within <think> </think> "
        "and<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think><answer> answer "
        "here </answer>.  Now the user asks you to solve a logical reasoning problem. After thinking, when you "
        "finally reach a conclusion, clearly state the identity of each character within <answer> </answer> tags. "
        "i.e., <answer> (1) Zoey is a knight\n(2) ... </answer>.\n"
        "<|im_end|>\n<|im_start|>user\n{quiz}\n<|im_end|>\n"
        "<|im_start|>assistant\n<think>")},
    # hkust-nlp/simpleRL-reason @2702a87 (branch v0) train/data/math_level3to5_data_processed_with_qwen_prompt.json,
    # column input: training form, no newline after assistant
    "simplerl_qwen_boxed": {"text": (
        "<|im_start|>system\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n{problem}<|im_end|>\n"
        "<|im_start|>assistant")},
    # hkust-nlp/simpleRL-reason @2702a87 (branch v0) eval/utils.py, prompt type qwen25-math-cot: evaluation form,
    # newline after assistant
    "simplerl_qwen_boxed_eval": {"text": (
        "<|im_start|>system\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n{problem}<|im_end|>\n"
        "<|im_start|>assistant\n")},
    # huggingface/open-r1 @571661a src/open_r1/grpo.py SYSTEM_PROMPT (in use until 2025-02-18); sent through the
    # model's chat template
    "open_r1_think_answer": {"user": "{problem}", "system": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think><answer> answer here </answer>")},
    # sail-sg/understand-r1-zero @dfca49d train_zero_math.py apply_r1_template
    "dr_grpo_r1": {"text": (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The "
        "Assistant first thinks about the reasoning process in the mind and then provides the User with the answer. "
        "The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> "
        "tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n"
        "User: {problem}\nAssistant: <think>")},
    # sail-sg/understand-r1-zero @dfca49d train_zero_math.py apply_qwen_math_template
    "dr_grpo_qwen_math": {"text": (
        "<|im_start|>system\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n{problem}<|im_end|>\n"
        "<|im_start|>assistant\n")},
    # unslothai/notebooks @bdda2ef nb/Llama3.1_(8B)-GRPO.ipynb SYSTEM_PROMPT (same in the Qwen2.5-3B and Phi-4
    # notebooks); sent through the model's chat template
    "unsloth_gsm8k": {"user": "{question}", "system": (
        "\nRespond in the following format:\n<reasoning>\n...\n"
        "</reasoning>\n<answer>\n...\n</answer>\n")},
    # hkust-nlp/simpleRL-reason @cf1c785 (branch v1) examples/simplelr_math_eval/utils.py, qwen-boxed
    "simplerl_v1_qwen_boxed": {"text": (
        "<|im_start|>system\n"
        "You are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "{problem}\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n")},
    # hkust-nlp/simpleRL-reason @cf1c785 (branch v1) examples/simplelr_math_eval/utils.py, abel (weak models)
    "simplerl_v1_abel": {"text": "Question:\n{problem}\nAnswer:\nLet's think step by step.\n"},
    # sail-sg/understand-r1-zero @dfca49d train_zero_math.py apply_no_template
    "no_template": {"text": "{problem}"},
    # huggingface/open-r1 @1416fa0 recipes/Qwen2.5-1.5B-Instruct/grpo/config_demo.yaml system_prompt (in use from
    # 78c197d, 2025-02-18)
    "open_r1_demo": {"user": "{problem}", "system": (
        "You are a helpful AI Assistant that provides well-reasoned and detailed responses. You first think about "
        "the reasoning process as an internal monologue and then provide the user with the answer. Respond in the "
        "following format: <think>\n...\n</think>\n<answer>\n...\n"
        "</answer>")},
    # huggingface/open-r1 @ca8664d recipes/Qwen2.5-Math-7B/grpo/config_simple_rl.yaml system_prompt (78c197d until the
    # file was deleted at 33f84de)
    "open_r1_simple_rl": {"user": "{problem}", "system": (
        "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. You FIRST think "
        "about the reasoning process as an internal monologue and then provide the user with the answer. The "
        "reasoning process MUST BE enclosed within <think> and </think> tags.")},
    # unslothai/notebooks @bdda2ef nb/Gemma3_(1B)-GRPO.ipynb system prompt
    "unsloth_gemma3": {"user": "{question}", "system": (
        "You are given a problem.\n"
        "Think about the problem and provide your working out.\n"
        "Place it between <start_working_out> and <end_working_out>.\n"
        "Then, provide your solution between <SOLUTION></SOLUTION>")},
    # agentica-project/deepscaler @95ef74f scripts/data/deepscaler_dataset.py; user turn of the R1-Distill chat
    # template, no system turn
    "deepscaler": {"user": "{problem} Let's think step by step and output the final answer within \\boxed{}."},
    # the demo's own: a token per number, {numbers} are the nums joined by single spaces
    "tiny_countdown": {"text": "numbers {numbers} target {target} <think>"},
    # the benchmarks' own, for base models: what simplerl_v1_qwen_boxed asks for, without chat markers
    "boxed_text": {"text": "{problem}\nPlease reason step by step, and put your final answer within \\boxed{}.\n"},
    # nothing but the question, as the user's turn
    "chat": {"user": "{question}"},
    # the messages of a row's `prompt` as they are, system text and earlier turns included
    "conversation": {},
}

# Chats whose reward wants the response itself to hold <think> ... </think>. Chat templates of the R1-Distill kind end
# the generation prompt in "<think>\n"; left there, the response would never hold the opening tag and the format
# reward would stay 0 (open-r1 overrides the model's chat template for the same reason).
STRIP_THINK_PREFILL = ("open_r1_think_answer", "open_r1_demo", "open_r1_simple_rl")


def is_entry(setting):
    """Tell whether a dict is a template of its own and not {source: template}."""
    return isinstance(setting, dict) and bool(setting.keys() & {"text", "user"}) and \
        setting.keys() <= {"text", "system", "user"} and all(isinstance(part, str) for part in setting.values())


def entry(template):
    """Return what a template setting stands for: {"text": ...}, {"system": ..., "user": ...}, or a function."""
    if is_entry(template):
        return template
    if own.is_own(template):
        return own.load(template)
    if template in TEMPLATES:
        return TEMPLATES[template]
    if ANY_SLOT.search(template):
        return {"text": template}
    hint = suggest(template, TEMPLATES) or f"known: {', '.join(TEMPLATES)}"
    raise ConfigError(f"no prompt template is called {excerpt(template)!r}; {hint}; one of your own holds slots such "
                      "as {question}")


def called(template):
    """Return what a message calls a template."""
    return repr(template) if template in list(TEMPLATES) or own.is_own(template) else repr(excerpt(template, 60))


def warn_of_plain_markers(template, tokenizer):
    """Warn where a raw template writes another model's chat markers, such as <|im_start|>, as plain text."""
    found = entry(template)
    text = "" if callable(found) else found.get("text", "")
    if "\\n" in text and "\n" not in text:
        print0(f"warning: template {called(template)} holds a backslash and an n, no line break: in a shell write "
               "$'a\\nb'")
    plain = [marker for marker in dict.fromkeys(re.findall(r"<\|\w+\|>", text))
             if tokenizer is not None and tokenizer.tokenize(marker) != [marker]]
    if plain:
        print0(f"warning: template {called(template)} writes {', '.join(plain)}, no token of this model's tokenizer: "
               "the model reads plain text there; a template for its own chat format, such as chat, or one without "
               "markers would fit better")


def build_prompt(template, row, tokenizer=None, chat=None):
    """Return the text of one prompt: see render."""
    return render(template, row, tokenizer, chat)[0]


def render(template, row, tokenizer=None, chat=None):
    """
    Return (the text of one prompt, whether it is chat text): a template with its slots filled from a row.

    {problem} and {question} take either field, {nums} is a Python list as printed ([44, 19, 35]), {numbers} the same
    joined by spaces. A chat becomes the tokenizer's own chat text, up to where the assistant starts (`chat`: see
    check_chat); without a tokenizer, the system text and the question. A <think> with which the chat text ends
    (R1-Distill) is taken off where the reward wants it in the response: STRIP_THINK_PREFILL. ConfigError for what does
    not fit.
    """
    found, chat = entry(template), chat or {}
    system, examples = chat.get("system"), chat.get("few_shot") or ()
    if callable(found):
        found = of_function(template, found, row)
    if isinstance(found, dict) and "text" in found:
        if system is not None:
            raise ConfigError(f"system_prompt is for chats, and template {called(template)} is raw text: write the "
                              "text into the template")
        shots = [fill(template, found["text"], asked, "few_shot: ") for asked, _ in examples]
        shots = [shot + " " * (not shot[-1:].isspace()) + said for shot, (_, said) in zip(shots, examples, strict=True)]
        return "\n\n".join([*shots, fill(template, found["text"], row)]), False
    if isinstance(found, str):
        if system is not None or examples:
            raise ConfigError(f"system_prompt and few_shot are for templates, and {called(template)} is a function "
                              "that writes raw text: let it write them")
        return found, False
    if isinstance(found, list):
        messages = found
    elif found:
        messages = [{"role": part, "content": fill(template, found[part], row)} for part in ("system", "user")
                    if part in found]
    else:
        messages = row.get("conversation") or [{"role": "user", "content": row["question"]}]
    if system is not None:
        messages = [{"role": "system", "content": system}] * bool(system) + \
            [message for message in messages if message["role"] != "system"]
    for asked, said in reversed(examples):
        if not (isinstance(found, dict) and found) and "question" not in asked:
            raise ConfigError(f"few_shot: template {called(template)} has no slots for a row: give a question as text")
        user = fill(template, found["user"], asked, "few_shot: ") if isinstance(found, dict) and found else \
            asked["question"]
        at = bool(messages) and messages[0]["role"] == "system"
        messages = [*messages[:at], {"role": "user", "content": user}, {"role": "assistant", "content": said},
                    *messages[at:]]
    if tokenizer is None:
        return "\n\n".join(message["content"] for message in messages), True
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(f"prompt template {called(template)} is a chat, but the tokenizer has no chat template: use "
                          "an instruct model, or a raw template such as dr_grpo_r1")
    try:
        text = render_chat(tokenizer, messages, chat)
    except Exception as error:  # whatever the model's Jinja raises, e.g. "System role not supported"
        raise ConfigError(f"the tokenizer's chat template refuses prompt template {called(template)}: "
                          f"{error}") from error
    if (left_out := not_written(tokenizer, messages, text, chat)) is not None:
        raise ConfigError(f"the tokenizer's chat template leaves out the {left_out['role']} text of prompt template "
                          f"{called(template)}: use a template without one, such as chat, or another model")
    return (re.sub(r"<think>\s*\Z", "", text) if template in STRIP_THINK_PREFILL else text), True


def of_function(template, function, row):
    """Let an own function write a prompt: raw text, or a list of messages. ConfigError for anything else."""
    try:
        found = function(dict(row))
    except Exception as error:  # the user's Python
        raise ConfigError(f"template {template} fails on the row {excerpt(row, 200)}: {type(error).__name__}: {error}"
                          ) from error
    messages = isinstance(found, list) and found and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in found)
    if not (messages or isinstance(found, str) and found):
        raise ConfigError(f"template {template} returned {excerpt(found)}: it wants a text, or a list of messages "
                          '{"role": "user", "content": ...}')
    return found


def render_chat(tokenizer, messages, chat=None, add_generation_prompt=True):
    """
    Write a conversation through the model's own chat template.

    chat  {"kwargs", "date"}: the settings chat_template_kwargs and chat_date. The template's clock always shows 0:00 of
    that date, because the prompts of a run must not depend on the day on which it is started or resumed.
    """
    chat = chat or {}
    day = datetime.datetime.fromisoformat(chat.get("date") or CHAT_DATE)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt,
                                         **{**(chat.get("kwargs") or {}), "strftime_now": day.strftime})


def not_written(tokenizer, messages, text, chat=None):
    """
    Return the first message that the chat template leaves out, None if it writes all. A message is written if `text`
    holds it, white space aside, or changes with it. Answers of earlier turns may lose their thinking, so they are not
    checked.
    """
    written = "".join(text.split())
    for i, message in enumerate(messages):
        content = message["content"]
        if message.get("role") != "assistant" and "".join(content.split()) not in written:
            changed = [*messages[:i], {**message, "content": f"{content}x"}, *messages[i + 1:]]
            if render_chat(tokenizer, changed, chat) == text:
                return message
    return None


def check_chat(cfg, tokenizer=None, rendered=True):
    """
    Return the settings chat_template_kwargs, chat_date, system_prompt and few_shot as `chat` of render. ConfigError
    where nothing would read them.

    tokenizer None: only their form is checked. rendered: whether any prompt of this run goes through the chat template.
    """
    kwargs, date = cfg.chat_template_kwargs or {}, cfg.chat_date
    chat = {"kwargs": kwargs, "date": date, "system": getattr(cfg, "system_prompt", None),
            "few_shot": check_examples(getattr(cfg, "few_shot", ()))}  # sft.py has neither
    try:
        datetime.date.fromisoformat(date)
        same = json.loads(json.dumps(kwargs)) == kwargs
    except ValueError as error:
        raise ConfigError(f"chat_date = {date!r} must be a date such as {CHAT_DATE}") from error
    except TypeError:
        same = False
    if not same:
        raise ConfigError(f"chat_template_kwargs = {kwargs!r} must be plain values under names, as JSON has them")
    if tokenizer is None or not kwargs:
        return chat
    if not rendered:
        raise ConfigError(f"chat_template_kwargs = {kwargs} is read by nothing: no prompt goes through the model's "
                          "chat template")
    try:
        known = chat_variables(tokenizer)
    except Exception as error:  # no Jinja, or several templates and no default
        raise ConfigError(f"the model's chat template cannot be read: {error}") from error
    for name in kwargs:
        if name in OURS or name not in known:
            hint = suggest(name, known - OURS) or f"it reads {', '.join(sorted(known - OURS)) or 'none'}"
            raise ConfigError("chat_template_kwargs: the model's chat template reads no argument "
                              f"{name!r} of yours; {hint}")
    return chat


def check_examples(few_shot):
    """Return the setting few_shot as [(row, response)]; ConfigError for another form."""
    for example in few_shot:
        if not isinstance(example, (list, tuple)) or len(example) != 2 or not isinstance(example[0], (str, dict)) \
                or not isinstance(example[1], str):
            raise ConfigError('few_shot wants pairs of a question (or a row) and a response, (("2 + 2?", "4"), ...), '
                              f"got {excerpt(example)}")
    return [({"question": asked, "problem": asked} if isinstance(asked, str) else asked, said)
            for asked, said in few_shot]


# What this project hands to apply_chat_template, or what that keeps for itself: no arguments of a user.
OURS = {"messages", "conversation", "add_generation_prompt", "tokenize", "chat_template", "continue_final_message",
        "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
        "tokenizer_kwargs", "strftime_now", "raise_exception"}


def chat_variables(tokenizer):
    """Return the names that the model's chat template reads and does not set itself; none without a template."""
    import jinja2.meta
    # with its extensions, {% generation %} and others
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if not getattr(tokenizer, "chat_template", None):
        return set()
    text = tokenizer.get_chat_template()
    return set(jinja2.meta.find_undeclared_variables(_compile_jinja_template(text).environment.parse(text)))


def reads_clock(tokenizer):
    """Tell whether the model's chat template writes a date."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None))


def special_tokens(tokenizer):
    """
    Return the texts that this tokenizer reads as control tokens, as a tuple: those with brackets, <pad>, [EOS] or
    <|im_end|>, and those that were added to its vocabulary and are no plain word. A word of the vocabulary that serves
    as padding or as the unknown token ("!" in CLIP's) stays a word.
    """
    return control_tokens(tokenizer, tuple(filter(None, tokenizer.all_special_tokens)))


@functools.lru_cache(maxsize=8)  # asked for every prompt; `named` is part of the key since it can be set
def control_tokens(tokenizer, named):
    """Return special_tokens(); `named` are those that the tokenizer names as special."""
    added = [token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special]
    vocabulary = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)

    def controls(text):
        if re.fullmatch(r"\W+\w.*\W+", text.strip(), flags=re.DOTALL):
            return True
        plain = text.strip().isalnum() or len(text.strip()) < 2
        return text in added and not plain and (vocabulary is None or vocabulary.token_to_id(text) is None)

    return tuple(text for text in dict.fromkeys([*named, *added]) if controls(text))


def is_chat(template):
    """Tell whether any of these prompt templates, one or {source: template}, goes through the model's chat template."""
    several = isinstance(template, dict) and not is_entry(template)
    entries = [entry(one) for one in (template.values() if several else [template])]
    return any(callable(one) or "text" not in one for one in entries)  # of a function nobody knows before it is called


SLOTS = {slot: how for task in TASKS.values() for slot, how in task.SLOTS.items()}
SLOT = re.compile(rf"\{{({'|'.join(SLOTS)})\}}")
ANY_SLOT = re.compile(r"\{([A-Za-z_]\w*(?:\.\w+)*)\}")  # of a template that is not in TEMPLATES
GOLD = ("answer", "solution", "ground_truth", "gt_answer", "reward_model")  # columns that no prompt may show


def fill(template, text, row, where=""):
    """Replace the slots of `text` by a row's fields. What a row brings is never read as a slot again."""
    published = isinstance(template, str) and template in TEMPLATES

    def value(match):
        if not match[1]:  # a doubled brace
            return match[0][0]
        fields, written = SLOTS.get(match[1], ([match[1]], as_text))
        if {match[1].partition(".")[0], match[1].rpartition(".")[2]} & set(GOLD):
            raise ConfigError(f"prompt template {called(template)} shows the model the column {match[1]!r}, which "
                              "holds the answer; write {{ and }} where braces are meant")
        found = next((value for field in fields if (value := look_up(row, field)) is not None), None)
        if not published and not filled(found) and any(field.partition(".")[0] in row for field in fields):
            raise BadRow(f"empty {match[1]}")
        if found is None:
            fitting = [name for name, parts in TEMPLATES.items() if all(fits(text, row) for text in parts.values())]
            hint = f"templates for such rows: {', '.join(fitting) or 'none'}" if published else suggest(match[1], row)
            raise ConfigError(f"{where}prompt template {called(template)} wants {' or '.join(fields)}; the row has "
                              f"{', '.join(row)}; {hint}".rstrip("; "))
        return written(found)

    return (SLOT if published else pattern_of(text)).sub(value, text)


@functools.lru_cache(maxsize=256)  # asked for every row
def pattern_of(text):
    """
    Return the pattern of a text's slots; in a format string, as Python's str.format reads it, also that of the doubled
    braces {{ and }}, which become single ones. A text with other braces, such as JSON or \\boxed{}, is none.
    """
    try:
        fields = [(field, spec or conversion) for _, field, spec, conversion in string.Formatter().parse(text)
                  if field is not None]
    except ValueError:
        return ANY_SLOT
    plain = all(ANY_SLOT.fullmatch("{" + field + "}") and not more for field, more in fields)
    return re.compile(ANY_SLOT.pattern + r"|\{\{|\}\}") if plain else ANY_SLOT


def slots_of(parts):
    """List the slots of a template's texts."""
    return [match[1] for text in parts.values() for match in pattern_of(text).finditer(text) if match[1]]


def refuse_gold(template, columns):
    """Raise ConfigError for a template that shows the column from which `columns` takes the answer."""
    found, gold = entry(template), str((columns or {}).get("answer"))
    slots = set() if callable(found) else set(slots_of(found)) - set(columns or {})
    if named := {slot for slot in slots if f"{gold}.".startswith(f"{slot}.") or slot.startswith(f"{gold}.")}:
        raise ConfigError(f"prompt template {called(template)} shows the model the column {named.pop()!r}, which holds "
                          "the answer")


def shown(template, row):
    """Return the texts of a row that its prompt may show: of a function's, all that there are in the row."""
    found = entry(template)
    if callable(found):
        return texts_in(list(row.values()))
    if not found:
        return [row["question"], *(turn["content"] for turn in row.get("conversation", ()))]
    slots = slots_of(found)
    fields = [field for slot in slots for field in SLOTS.get(slot, ([slot],))[0]]
    return texts_in([row["question"], *(look_up(row, field) for field in fields)])


def texts_in(value):
    """List all texts inside a value."""
    if isinstance(value, dict):
        value = list(value.values())
    return [text for one in value for text in texts_in(one)] if isinstance(value, list) else [str(value)]


def as_text(value):
    """Write a value into a prompt: an object or a list as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list)) else str(value)


def fits(text, row):
    """Tell whether a row fills all slots of a text."""
    return all(any(row.get(field) is not None for field in SLOTS[slot][0]) for slot in SLOT.findall(text))


def encode_prompt(tokenizer, text, chat=False):
    """
    Return the token ids of a prompt, with one BOS at most. Nothing is added to chat text, which brings its own special
    tokens, nor to text that starts with one; other text gets what the tokenizer adds by default, less a closing EOS.
    """
    special = chat or text.startswith(special_tokens(tokenizer))
    ids = list(tokenizer.encode(text, add_special_tokens=not special))
    eos = tokenizer.eos_token_id
    if not special and len(ids) > 1 and ids[-1] == eos and not text.endswith(tokenizer.eos_token or "\0"):
        ids.pop()  # some tokenizers end every text with EOS; a prompt must stay open
    return ids
