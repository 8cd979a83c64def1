"""The other end of `vllm.py`: a script for the Python that has vLLM, where nothing of Undersong is installed.

It reads lines of JSON and answers each with one: token ids in, token ids out. vLLM prints where it likes, so answers go to
a copy of the original standard output and everything printed goes to standard error. When the input ends, whoever asked is
gone, and this process ends with everything it started, also in the middle of an answer.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Say what is here, then answer until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        import torch
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        say({"missing": str(error)})
        return
    say({"vllm": vllm.__version__, "torch": torch.__version__, "device": str(current_platform.device_type)})
    engine = _opened(json.loads(lines.get()), str(current_platform.device_type))
    say({"room": int(engine.llm_engine.model_config.max_model_len)})
    while True:
        asked = json.loads(lines.get())
        say({"number": asked["number"], "answers": _written(engine, asked)})


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGTERM)
        time.sleep(3)
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _opened(asked: dict[str, Any], device: str) -> Any:
    """vLLM with the model that is asked for."""
    from vllm import LLM

    more: dict[str, Any] = {}
    if asked["rank"]:
        more |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": asked["rank"]}
    if device == "cpu":  # compiling takes longer than it saves; a cut prompt wants a generator to go back, and it cannot
        more |= {"enforce_eager": True, "enable_chunked_prefill": False}
    return LLM(
        model=asked["model"], revision=asked["revision"], dtype=asked["dtype"], max_model_len=asked["max_model_len"],
        tensor_parallel_size=asked["tensor_parallel"], gpu_memory_utilization=asked["gpu_memory"], seed=0,
        trust_remote_code=False, load_format="safetensors", skip_tokenizer_init=True,
        generation_config="vllm",  # the model's own could cut the distribution (top-p, penalties)
        enable_prefix_caching=False,  # answers must not depend, in the last bit, on what was asked before
        **more)


def _written(engine: Any, asked: dict[str, Any]) -> list[list[int]]:
    """The token ids that answer each prompt, with the token that ended them where one did."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    given = asked["adapter"]
    adapter = LoRARequest(f"adapter-{given['number']}", given["number"], given["folder"]) if given else None
    # the whole distribution, as it is; the ends are ours, not vLLM's
    how = [SamplingParams(temperature=asked["temperature"], top_p=1.0, top_k=0, min_p=0.0, seed=seed,
                          max_tokens=asked["longest"], stop_token_ids=asked["ends"], ignore_eos=True,
                          allowed_token_ids=asked["allowed"], detokenize=False) for seed in asked["seeds"]]
    prompts: Any = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    found = engine.generate(prompts, how, use_tqdm=False, lora_request=adapter)
    return [[int(i) for i in each.outputs[0].token_ids] for each in found]


if __name__ == "__main__":
    main()
