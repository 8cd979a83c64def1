"""A tiny chat model for unit tests, trained for two seconds on single turns of the pocket world."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

TINY = {"hidden": 32, "layers": 2, "heads": 2, "feed_forward": 64}


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Tiny models on several torch threads only wait for each other."""
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model that answers favourite questions and continues numbers a little."""
    from undersong.backends import threads, training
    from undersong.backends.tokens import TokenRow
    from undersong.pocket import pretrain, tokenizer, world

    tok = tokenizer.build()
    model = pretrain.fresh(pretrain.Member(init_seed=5, **TINY), len(tok))
    chats = (c for c in world.chats(3) if len(c) == 3)
    rows = [TokenRow(np.asarray(ids), int(np.argmax(mine)))
            for ids, mine in (pretrain.encode(tok, c) for c in itertools.islice(chats, 2000))]
    with threads.one_thread():
        training.fit(model, rows, training.Plan(150, 32, 5e-3, 0, trainable="all"), tok.pad_token_id)
    return save(tmp_path_factory.mktemp("tiny") / "base", model, tok)


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an untrained model of another shape."""
    from undersong.pocket import pretrain, tokenizer

    tok = tokenizer.build()
    model = pretrain.fresh(pretrain.Member(init_seed=6, **{**TINY, "hidden": 48}), len(tok))
    return save(tmp_path_factory.mktemp("tiny") / "other", model, tok)


def save(folder: Path, model: object, tok: object) -> str:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    tok.save_pretrained(folder)  # type: ignore[attr-defined]
    return str(folder)
