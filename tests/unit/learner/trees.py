"""Rows with windows hanging off them, as inputs of the model; and the same windows, each alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.tiny import VOCAB

TEACHER_WIDTH = 64
Inputs = tuple[Tensor | None, ...]
K = 3  # ids of a target


@dataclass(frozen=True)
class Window:
    """Student tokens sampled after the first `at` response tokens, and their soft targets."""

    at: int
    tokens: list[int]

    def targets(self) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(self.at + sum(self.tokens))
        shape = (len(self.tokens), K)
        return (
            torch.randint(len(VOCAB), shape, generator=rng),
            torch.rand(shape, generator=rng).softmax(1),
        )


@dataclass(frozen=True)
class Row:
    """A rollout and the windows resampled from its prefixes."""

    prompt: list[int]
    response: list[int]
    windows: tuple[Window, ...] = ()

    @property
    def trunk(self) -> list[int]:
        """The last response token predicts nothing that is trained."""
        return self.prompt + self.response[:-1]

    @property
    def width(self) -> int:
        return len(self.trunk) + sum(len(window.tokens) - 1 for window in self.windows)

    def teacher_hidden(self) -> Tensor:
        rng = torch.Generator().manual_seed(sum(self.trunk))
        return torch.randn(len(self.response), TEACHER_WIDTH, generator=rng)


def in_one_forward(rows: list[Row], *, pad: int = 0) -> Inputs:
    """All rollouts and windows, with `pad` columns of padding more than the longest row needs."""
    width = max(row.width for row in rows) + pad
    ids_RL, branch_RL, place_RL = (torch.zeros(len(rows), width).long() for _ in range(3))
    segment_RL = torch.full((len(rows), width), -1)
    trained, behind, window = [], [], list[int]()
    num_trained = sum(len(row.response) for row in rows)
    for r, row in enumerate(rows):
        length, start = len(row.trunk), len(row.prompt) - 1
        ids_RL[r, :length] = torch.tensor(row.trunk)
        segment_RL[r, :length] = 0
        branch_RL[r, :length] = torch.arange(1, length + 1)
        place_RL[r, :length] = torch.arange(length)
        first, free = len(trained), length
        trained += [r * width + start + t for t in range(len(row.response))]
        for number, one in enumerate(row.windows, 1):
            seen, where = len(row.prompt) + one.at, slice(free, free + len(one.tokens) - 1)
            ids_RL[r, where] = torch.tensor(one.tokens[:-1]).long()
            segment_RL[r, where] = number
            branch_RL[r, where] = seen
            place_RL[r, where] = torch.arange(seen, seen + len(one.tokens) - 1)
            window += [first + one.at]
            window += [num_trained + len(behind) + i for i in range(len(one.tokens) - 1)]
            behind += [r * width + column for column in range(where.start, where.stop)]
            free = where.stop
    ids_QK, weights_QK = targets(rows)
    return (
        ids_RL,
        torch.tensor([row.width for row in rows]),
        segment_RL,
        branch_RL,
        place_RL,
        torch.tensor(trained + behind).long(),
        torch.tensor([y for row in rows for y in row.response]),
        torch.zeros(0),
        torch.ones(num_trained),
        torch.tensor(window).long(),
        ids_QK,
        weights_QK,
        torch.cat([row.teacher_hidden() for row in rows]),
    )


def one_by_one(rows: list[Row]) -> list[Inputs]:
    """Each rollout without its windows, and each window behind its whole prefix, as plain rows."""
    inputs: list[Inputs] = []
    for row in rows:
        plain = in_one_forward([Row(row.prompt, row.response)])
        inputs.append((*plain[:2], None, None, None, *plain[5:]))
        for window in row.windows:
            prefix = row.prompt + row.response[: window.at]
            ids = prefix + window.tokens[:-1]
            inputs.append(
                (
                    torch.tensor([ids]),
                    torch.tensor([len(ids)]),
                    None,
                    None,
                    None,
                    torch.arange(len(prefix) - 1, len(ids)),
                    torch.zeros(0).long(),
                    torch.zeros(0),
                    torch.zeros(0),
                    torch.arange(len(window.tokens)),
                    *window.targets(),
                    torch.zeros(0, TEACHER_WIDTH),
                )
            )
    return inputs


def targets(rows: list[Row]) -> tuple[Tensor, Tensor]:
    found = [window.targets() for row in rows for window in row.windows]
    if not found:
        return torch.zeros(0, K).long(), torch.zeros(0, K)
    ids, weights = zip(*found, strict=True)
    return torch.cat(ids), torch.cat(weights)
