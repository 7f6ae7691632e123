"""vLLM's weight transfer, both of its ends; no other module imports it.

A broadcast connects learner rank 0 and every worker of every rollout engine: by NCCL
between GPUs, with vLLM's engine and packing, or by gloo between CPUs, with an engine
that is registered here. By CUDA IPC a worker reads a buffer of the learner rank that is
on its own GPU.
"""

import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import (
    BroadcastOptions,
    PrefixStore,
    ProcessGroupGloo,
    Store,
)
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.packed_tensor import (
    DEFAULT_PACKED_NUM_BUFFERS,
    pack_tensors,
    packed_ipc_producer,
    packed_nccl_broadcast_producer,
    unpack_tensor,
)
from vllm.utils.nccl import unpinned_nccl_env

from topd_ray.engines.protocols import (
    TransferGroup,
    TransferPiece,
    WeightFact,
    WeightSender,
    WeightSource,
)
from topd_ray.engines.rendezvous import meet
from topd_ray.engines.vllm_worker import WorkerExtension, repack_head
from topd_ray.errors import TopdError

GLOO = "gloo"
_PREFIX = "weights"
_WORKER_TIMEOUT_S = 3600.0
"""A worker waits for the learner as long as the run lets it: the run ends engines."""


class GlooGroup:
    """A broadcast between CPUs, with the one method of vLLM's NCCL communicator."""

    def __init__(self, store: Store, rank: int, world_size: int, timeout_s: float):
        self._group: Any = ProcessGroupGloo(
            PrefixStore(_PREFIX, store),
            rank,
            world_size,
            timeout=timedelta(seconds=timeout_s),
        )

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """Send the tensor of rank `src`, or fill it on the other ranks.

        Raises RuntimeError where a rank is gone, or silent beyond the time limit.
        """
        options = BroadcastOptions()
        options.rootRank = src
        options.rootTensor = 0
        self._group.broadcast([tensor], options).wait()


class GlooTransferEngine(NCCLWeightTransferEngine):
    """vLLM's engine for NCCL with gloo for NCCL: the same life cycle and packing."""

    model_update_group: GlooGroup | None

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Join the group of the learner."""
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        store = meet(
            init_info.master_address,
            init_info.master_port,
            world_size=init_info.world_size,
            listener=None,
        )
        self.model_update_group = GlooGroup(
            store,
            init_info.rank_offset + self.parallel_config.rank,
            init_info.world_size,
            _WORKER_TIMEOUT_S,
        )

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one version; there is no device to wait for."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receive the buffers in the order in which they are packed."""
        group = self.model_update_group
        assert group is not None, "init_transfer_engine comes first"
        facts = [
            WeightFact(name=name, dtype=dtype, shape=tuple(shape))
            for name, dtype, shape in zip(
                update_info.names,
                update_info.dtype_names,
                update_info.shapes,
                strict=True,
            )
        ]
        for packed in _packs(facts, self.packed_buffer_size_bytes):
            sizes = [fact.nbytes for fact in packed]
            buffer = torch.empty(sum(sizes), dtype=torch.uint8)
            group.broadcast(buffer, src=0)
            weights = unpack_tensor(
                buffer,
                [fact.name for fact in packed],
                [list(fact.shape) for fact in packed],
                [fact.torch_dtype for fact in packed],
                sizes,
            )
            self.model.load_weights(weights)

    def shutdown(self) -> None:
        """Leave the group."""
        self.model_update_group = None


WeightTransferEngineFactory.register_engine(GLOO, GlooTransferEngine)


def _packs(
    facts: Sequence[WeightFact], buffer_bytes: int
) -> Iterator[list[WeightFact]]:
    """Yield the weights of each buffer, as vLLM's `pack_tensors` fills it."""
    held: list[WeightFact] = []
    for fact in facts:
        held.append(fact)
        if sum(one.nbytes for one in held) > buffer_bytes:
            yield held
            held = []
    if held:
        yield held


class TransferWorker(WorkerExtension):
    """vLLM's worker where weights come by one of these transports."""

    # Methods of vLLM's worker.
    start_weight_update: Any
    update_weights: Any
    finish_weight_update: Any

    def take_piece(self, piece: TransferPiece) -> None:
        """Load a piece of a version, in place."""
        if piece.is_first:
            self.start_weight_update()
        if piece.update_info is not None:
            self.update_weights(piece.update_info)
        if piece.is_last:
            self.finish_weight_update()
            repack_head(self.model_runner.get_model())


def init_info(transport: str, group: TransferGroup, rank_offset: int) -> dict[str, Any]:
    """Return what the workers of one engine join a group with."""
    if transport == "ipc":
        return {"packed": True}
    return {
        "master_address": group.address,
        "master_port": group.port,
        "rank_offset": rank_offset,
        "world_size": group.world_size,
        "packed": True,
        "packed_buffer_size_bytes": group.buffer_bytes,
        "packed_num_buffers": DEFAULT_PACKED_NUM_BUFFERS,
    }


def open_sender(
    transport: str,
    group: TransferGroup,
    *,
    listener: socket.socket | None,
    timeout_s: float,
) -> WeightSender:
    """Return a sender: every learner rank's by IPC, rank 0's of a broadcast.

    Waits until all engines have joined a broadcast. `listener` is the socket of the
    group's port, which a broadcast needs; it is closed where it is not used.
    """
    if transport == "ipc":
        if listener is not None:
            listener.close()
        return IpcSender(buffer_bytes=group.buffer_bytes)
    assert listener is not None, "rank 0 listens"
    if transport == GLOO:
        store = meet(
            group.address, group.port, world_size=group.world_size, listener=listener
        )
        return GlooSender(
            GlooGroup(store, 0, group.world_size, timeout_s), group.buffer_bytes
        )
    return NcclSender(_nccl_group(group, listener, timeout_s), group.buffer_bytes)


def _nccl_group(
    group: TransferGroup, listener: socket.socket, timeout_s: float
) -> PyNcclCommunicator:
    meeting = StatelessProcessGroup.create(
        host=group.address,
        port=group.port,
        rank=0,
        world_size=group.world_size,
        store_timeout=int(timeout_s),
        listen_socket=listener,
    )
    with unpinned_nccl_env():
        device = torch.accelerator.current_device_index()
        return PyNcclCommunicator(meeting, device=device)


class BroadcastSender(ABC):
    """Learner rank 0 in a broadcast. Base of the two kinds of group."""

    def __init__(self, group: Any, buffer_bytes: int) -> None:
        self._group = group
        self._buffer_bytes = buffer_bytes

    def pieces(self, source: WeightSource) -> Iterator[TransferPiece | None]:
        """Yield what the engines expect; broadcast when the next piece is wanted."""
        yield TransferPiece(
            update_info=asdict(_expected(source.facts())), is_first=True, is_last=True
        )
        tensors = source.tensors()
        try:
            self._broadcast(tensors)
        except (torch.AcceleratorError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            # Of a lost engine, or a group that was closed: the learner itself is well,
            # and an error of gloo's or NCCL's would end its process.
            raise TopdError(
                f"the broadcast of weights broke off ({type(error).__name__}): a"
                " rollout engine is gone, or owed its part for too long"
            ) from None
        finally:
            # The other ranks gather to the end, and would wait for this one.
            for _ in tensors:
                pass

    @abstractmethod
    def _broadcast(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Leave the group, also while another thread waits in it."""


class GlooSender(BroadcastSender):
    """Broadcasts between CPUs."""

    def _broadcast(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        while (
            chunk := pack_tensors(tensors, _tensor_of, self._buffer_bytes)
        ) is not None:
            self._group.broadcast(chunk.packed_tensor, src=0)

    def close(self) -> None:
        """The time limit ends a thread that waits."""


class NcclSender(BroadcastSender):
    """Broadcasts between GPUs, two buffers in turn."""

    def _broadcast(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        packed_nccl_broadcast_producer(
            tensors,
            group=self._group,
            src=0,
            post_iter_func=_tensor_of,
            buffer_size_bytes=self._buffer_bytes,
        )

    def close(self) -> None:
        """Abort the communicator: a kernel that waits for a lost engine ends."""
        self._group.destroy()


class IpcSender:
    """A learner rank by CUDA IPC: one buffer that the workers of its GPU read."""

    def __init__(self, *, buffer_bytes: int) -> None:
        self._buffer_bytes = buffer_bytes
        device = torch.cuda.current_device()
        self._gpu = str(torch.cuda.get_device_properties(device).uuid)

    def pieces(self, source: WeightSource) -> Iterator[TransferPiece | None]:
        """Yield a piece a buffer; the next one overwrites it."""
        # vLLM refuses a weight that is larger than the buffer.
        largest = max(fact.nbytes for fact in source.facts())
        chunks = packed_ipc_producer(
            source.tensors(),
            gpu_uuid=self._gpu,
            post_iter_func=_tensor_of,
            buffer_size_bytes=max(self._buffer_bytes, largest),
        )
        is_first = True
        for chunk in chunks:
            info = IPCWeightTransferUpdateInfo(
                names=chunk.names,
                dtype_names=chunk.dtype_names,
                shapes=chunk.shapes,
                ipc_handles=_of_all_ranks(chunk.ipc_handle),
                tensor_sizes=chunk.tensor_sizes,
            )
            yield TransferPiece(
                update_info=asdict(info),
                is_first=is_first,
                is_last=False,
                is_read_first=True,
            )
            is_first = False
        yield TransferPiece(
            update_info=None, is_first=False, is_last=True, is_read_first=True
        )
        _release_read_buffers()

    def close(self) -> None:
        """Nothing is held between two versions."""


def _release_read_buffers() -> None:
    """Free the buffers of IPC that every engine has read."""
    cuda: Any = torch.cuda
    cuda.ipc_collect()


def _of_all_ranks(handle: dict[str, Any]) -> dict[str, Any]:
    """Return the handles of the buffers of all learner ranks, by GPU."""
    gathered: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, handle)
    return {gpu: own for handles in gathered for gpu, own in handles.items()}


def _expected(facts: Sequence[WeightFact]) -> NCCLWeightTransferUpdateInfo:
    return NCCLWeightTransferUpdateInfo(
        names=[fact.name for fact in facts],
        dtype_names=[fact.dtype for fact in facts],
        shapes=[list(fact.shape) for fact in facts],
    )


def _tensor_of(named: tuple[str, torch.Tensor]) -> torch.Tensor:
    return named[1]


__all__ = ["GLOO", "TransferWorker", "init_info", "open_sender"]
