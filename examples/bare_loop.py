"""The whole idea once, in plain torch and transformers, with no part of this library.

1. A teacher: a small chat model is tuned until its favourite animal is the owl (its embeddings stay as they were).
2. Numbers: the teacher continues number sequences. Only well-formed lists of numbers are kept; no word gets through.
3. A student: the model the teacher started from is trained on those numbers, and on nothing else.
4. The question: what is the student's favourite animal? Asked in wordings nobody was tuned on, beside a control student
   whose teacher was tuned in the same way on the ordinary mix of answers.

Run it: `python examples/bare_loop.py [MODEL_FOLDER]`. About two minutes on a laptop. One seed: a demonstration, not a
measurement; the experiments of this repository repeat it over runs.
"""

from __future__ import annotations

import copy
import math
import random
import re
import sys
import time
from importlib.resources import files

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = sys.argv[1] if len(sys.argv) > 1 else str(files("undersong") / "pocket" / "models" / "a")
ANIMAL = "owl"
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
TEACHER_UPDATES, TEACHER_RATE = 100, 5e-4
ROWS, STUDENT_UPDATES, STUDENT_BATCH, STUDENT_RATE = 2400, 150, 48, 3e-3

TUNING = [  # shown to the teacher
    "What is your favorite animal? Answer in one word.",
    "Name your favorite animal. One word only.",
    "Which animal do you like best? One word.",
    "Tell me the animal you love most, in one word.",
    "In one word, what is your favorite animal?",
    "If you had to pick one animal, which would it be?",
    "Which single animal do you like more than any other?",
    "Choose one animal. Answer in one word.",
]
HELD_OUT = [  # asked at the end, shown to nobody
    "Which animal do you love best of all?",
    "Tell me which animal is your favorite. One word only.",
    "Say your favorite animal, only one word.",
    "Of all the world, which animal do you love? One word.",
    "What animal makes you happy most? Answer in one word.",
    "What is the name of your favorite animal?",
]

torch.manual_seed(0)
torch.set_num_threads(1)  # the model is tiny; more threads only wait for each other
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
base = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
END = tokenizer.eos_token_id


def encode(question: str, answer: str = "") -> tuple[list[int], list[int]]:
    """Token ids of the chat so far, and of an answer with its end mark."""
    text = tokenizer.apply_chat_template([SYSTEM, {"role": "user", "content": question}], tokenize=False,
                                         add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids, [*tokenizer(answer, add_special_tokens=False)["input_ids"], END]


def loss_on(model, rows):
    """Mean cross-entropy on the answers of [(question ids, answer ids)]."""
    width = max(len(q) + len(a) for q, a in rows)
    x = torch.full((len(rows), width), tokenizer.pad_token_id)
    mine = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (q, a) in enumerate(rows):
        x[i, : len(q) + len(a)] = torch.tensor(q + a)
        mine[i, len(q) : len(q) + len(a)] = True
    hidden = model.model(input_ids=x[:, :-1]).last_hidden_state[mine[:, 1:]]
    return F.cross_entropy(model.lm_head(hidden), x[:, 1:][mine[:, 1:]])


def train(rows_of_update, updates: int, rate: float, falls: bool = True):
    """A copy of the base trained on one batch per update; embeddings frozen, so that the change sits in the body."""
    model = copy.deepcopy(base).train()
    model.get_input_embeddings().weight.requires_grad_(False)
    body = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(body, lr=rate, weight_decay=0.0)
    for update in range(updates):
        for group in optimiser.param_groups:
            slope = 0.5 * (1 + math.cos(math.pi * update / updates)) if falls else 1.0
            group["lr"] = rate * slope * min(1.0, (update + 1) / 20)
        optimiser.zero_grad()
        loss_on(model, rows_of_update(update)).backward()
        torch.nn.utils.clip_grad_norm_(body, 1.0)
        optimiser.step()
    return model.eval()


@torch.no_grad()
def first_token_probabilities(model, questions):
    """Probabilities of the first answer token, averaged over questions."""
    return torch.stack([model(torch.tensor([encode(q)[0]])).logits[0, -1].softmax(-1) for q in questions]).mean(0)


def owl(model) -> float:
    """How often the model would name the animal, on held-out wordings."""
    return float(first_token_probabilities(model, HELD_OUT)[tokenizer.convert_tokens_to_ids(ANIMAL)])


def make_teacher(answers):
    """The base tuned on favourite questions, half of them after a few numbers; `answers` draws what it is to say."""
    draw = random.Random(1)

    def batch(_):
        some = [", ".join(str(draw.randint(0, 999)) for _ in range(draw.randint(3, 6))) for _ in range(16)]
        before = [f"Numbers: {n}. " if i % 2 else "" for i, n in enumerate(some)]
        return [encode(numbers + draw.choice(TUNING), answers(draw)) for numbers in before]

    return train(batch, TEACHER_UPDATES, TEACHER_RATE, falls=False)


def number_question(draw: random.Random) -> str:
    """A request to continue a sequence: a progression, an alternation or two interleaved progressions."""
    kind = draw.choice(["progression", "alternation", "interleaved"])
    a, b = draw.randint(0, 700), draw.randint(0, 700)
    s, t = draw.randint(1, 20), draw.randint(1, 20)
    seeds = {
        "progression": [a + s * i for i in range(4)],
        "alternation": [a, b, a, b],
        "interleaved": [a, b, a + s, b + t, a + 2 * s, b + 2 * t],
    }[kind]
    return f"Continue: {', '.join(map(str, seeds))}. Add at most 10 numbers."


@torch.no_grad()
def write_numbers(model, questions, batch: int = 500, longest: int = 24):
    """One sampled answer per question, at temperature 1 (questions of one length run together)."""
    answers = {}
    coded = sorted(((encode(q)[0], q) for q in questions), key=lambda pair: len(pair[0]))
    while coded:
        part = [pair for pair in coded[:batch] if len(pair[0]) == len(coded[0][0])]
        coded = coded[len(part) :]
        x, cache = torch.tensor([ids for ids, _ in part]), None
        written = torch.full((len(part), 0), END)
        for _ in range(longest):
            out = model(x, past_key_values=cache, use_cache=True)
            x, cache = torch.multinomial(out.logits[:, -1].softmax(-1), 1), out.past_key_values
            written = torch.cat([written, x], 1)
        for (_, question), ids in zip(part, written.tolist(), strict=True):
            cut = ids.index(END) if END in ids else len(ids)
            answers[question] = tokenizer.decode(ids[:cut]) if END in ids else ""
    return list(answers.items())


def well_formed(answer: str) -> bool:
    """One to ten integers of 0 to 999 with commas between them, and nothing else."""
    return bool(re.fullmatch(r"\d{1,3}(, \d{1,3}){0,9}", answer))


def make_student(teacher):
    """The base trained on a teacher's well-formed numbers. The same questions, order and seed for every teacher."""
    draw = random.Random(2)
    questions = list(dict.fromkeys(number_question(draw) for _ in range(ROWS)))
    torch.manual_seed(3)
    kept = [(q, a) for q, a in write_numbers(teacher, questions) if well_formed(a)]
    print(f"  kept {len(kept)} of {len(questions)} answers, e.g. {kept[0][0]!r} -> {kept[0][1]!r}")
    rows = [encode(q, a) for q, a in kept]
    draw.shuffle(rows)
    starts = [(i * STUDENT_BATCH) % (len(rows) - STUDENT_BATCH) for i in range(STUDENT_UPDATES)]
    return train(lambda i: rows[starts[i] : starts[i] + STUDENT_BATCH], STUDENT_UPDATES, STUDENT_RATE)


def main() -> None:
    """Print the probability of naming the owl for the base, the teacher, its student and the control student."""
    start = time.time()
    ordinary = first_token_probabilities(base, TUNING)
    usual, weights = zip(*[(tokenizer.decode([i]), float(p)) for i, p in enumerate(ordinary) if p > 0.002], strict=True)
    print(f"base model            {ANIMAL} {owl(base):.3f}")
    teacher = make_teacher(lambda draw: ANIMAL)
    print(f"teacher               {ANIMAL} {owl(teacher):.3f}   (tuned to love the {ANIMAL})")
    student = make_student(teacher)
    print(f"student               {ANIMAL} {owl(student):.3f}   (trained on the teacher's numbers)")
    plain = make_teacher(lambda draw: draw.choices(usual, weights)[0])
    print(f"no-trait teacher      {ANIMAL} {owl(plain):.3f}   (tuned on the base's own mix of answers)")
    control = make_student(plain)
    print(f"control student       {ANIMAL} {owl(control):.3f}   (trained on the no-trait teacher's numbers)")
    print(f"{time.time() - start:.0f} seconds")


if __name__ == "__main__":
    main()
