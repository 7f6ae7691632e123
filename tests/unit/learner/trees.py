"""Rollouts with windows hanging off them, as inputs of the model; and each window
alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.tiny import VOCAB

TEACHER_WIDTH = 64
Inputs = tuple[Tensor | None, ...]
K = 3  # ids of a target


@dataclass(frozen=True)
class Window:
    """Student tokens sampled after the first `at` response tokens, and their soft
    targets.
    """

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

    def teacher_hidden(self) -> Tensor:
        rng = torch.Generator().manual_seed(sum(self.trunk))
        return torch.randn(len(self.response), TEACHER_WIDTH, generator=rng)


def in_one_forward(rows: list[Row]) -> Inputs:
    """All rollouts and windows, one behind the other."""
    ids, segments = list[int](), list[tuple[int, int, int]]()
    trained, behind, window = list[int](), list[int](), list[int]()
    num_trained = sum(len(row.response) for row in rows)
    for row in rows:
        first, trunk = len(trained), len(segments)
        start = len(ids) + len(row.prompt) - 1
        trained += range(start, start + len(row.response))
        ids += row.trunk
        segments.append((len(row.trunk), trunk, 0))
        for one in row.windows:
            count = len(one.tokens) - 1  # the last one predicts nothing
            window.append(first + one.at)
            window += range(
                num_trained + len(behind), num_trained + len(behind) + count
            )
            behind += range(len(ids), len(ids) + count)
            ids += one.tokens[:-1]
            if count:
                segments.append((count, trunk, len(row.prompt) + one.at))
    ids_QK, weights_QK = targets(rows)
    return (
        torch.tensor(ids),
        *torch.tensor(segments).unbind(1),
        torch.tensor(trained + behind),
        torch.tensor([y for row in rows for y in row.response]),
        torch.full((num_trained,), torch.inf),
        torch.ones(num_trained),
        torch.zeros(0).bool(),
        torch.zeros(0).bool(),
        torch.tensor(window).long(),
        ids_QK,
        weights_QK,
        torch.cat([row.teacher_hidden() for row in rows]),
    )


def one_by_one(rows: list[Row]) -> list[Inputs]:
    """Each rollout without its windows, and each window behind its whole prefix,
    alone.
    """
    inputs: list[Inputs] = []
    for row in rows:
        inputs.append(in_one_forward([Row(row.prompt, row.response)]))
        for window in row.windows:
            prefix = row.prompt + row.response[: window.at]
            ids = prefix + window.tokens[:-1]
            inputs.append(
                (
                    torch.tensor(ids),
                    torch.tensor([len(ids)]),
                    torch.tensor([0]),
                    torch.tensor([0]),
                    torch.arange(len(prefix) - 1, len(ids)),
                    torch.zeros(0).long(),
                    torch.zeros(0),
                    torch.zeros(0),
                    torch.zeros(0).bool(),
                    torch.zeros(0).bool(),
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
