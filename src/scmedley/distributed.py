"""Several processes that fit one model together: ``torchrun --nproc-per-node=K``.

Every process holds the whole network and computes its part of each minibatch. Gradients are summed over the
processes, so all of them make the same steps, which are those of one process with the whole minibatch.

- A mean over cells is the average of the means of the processes, weighted by their numbers of cells
  (:func:`share`). Terms that are no such mean are computed from the cells of all (:func:`gathered`), or have the
  denominator of all (:func:`mean_of_known`).
- Random numbers of cells are drawn for the whole minibatch in every process, which takes its own rows
  (:mod:`scmedley.nn.draws`). Random states are therefore the same everywhere.
- What is learnt in closed form is computed from the same cells everywhere, and copied from process 0
  (:func:`synchronise`).

With one process, all of this does nothing.

Shapes: N cells of the whole minibatch, n cells of this process, K processes, M chosen cells.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.rendezvous import rendezvous

from scmedley.device import resolve_device
from scmedley.errors import ScmedleyError

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
TIMEOUT = timedelta(minutes=30)  # of a collective operation: the longest that a process waits for another
POLL_SECONDS = 0.2
FAILED = "failed"  # key of the number of the process that failed first
REPEAT = "Repeat the command to resume from the last checkpoint."


class World(NamedTuple):
    """Number of processes, and the number of this one."""

    size: int = 1
    rank: int = 0


_world = World()
_store: Any = None  # key-value store of all processes; None with one process
_sizes: tuple[int, ...] = ()  # cells of each process in the minibatch at hand; empty: it is not shared


def world() -> World:
    """Return the number of processes, and the number of this one."""
    return _world


def on_this_machine() -> int:
    """Return the number of processes that share the memory of this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _world.size > 1 else 1


def is_first() -> bool:
    """Return whether this is process 0, which writes and prints."""
    return _world.rank == 0


def is_asked() -> bool:
    """Return whether torchrun started several processes."""
    return all(name in os.environ for name in ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def started(device: str = "auto") -> Iterator[World]:
    """Connect the processes that torchrun started; do nothing if there is only one.

    Parameters
    ----------
    device
        Device of the fit. On CUDA each process has the GPU of its number on its machine.

    Raises
    ------
    ScmedleyError
        A machine has more processes than GPUs, the device is of another kind, or another process has ended.
    """
    global _world, _store
    if _world.size > 1 or not is_asked():
        yield _world
        return
    kind = resolve_device(device).type
    if kind not in ("cpu", "cuda"):
        raise ScmedleyError(
            f"Several processes compute on CPUs or on CUDA GPUs, not on {kind!r}. Use --device cpu."
        )
    if kind == "cuda":
        _choose_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    # Fails if a process cannot be reached, with the address in the message.
    _store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=TIMEOUT)
    _world = World(size, rank)
    try:
        yield _world
    finally:
        _world = World()
        with suppress(RuntimeError):  # another process has ended
            dist.destroy_process_group()


def _choose_gpu(number: int) -> None:
    if number >= torch.cuda.device_count():
        raise ScmedleyError(
            f"This machine has {torch.cuda.device_count()} GPUs, and torchrun started more processes on it. Use "
            f"--nproc-per-node={torch.cuda.device_count()}."
        )
    torch.cuda.set_device(number)  # the device that "cuda" then means


def is_first_to_fail() -> bool:
    """Return whether no other process has failed before: only the first one says why."""
    if _store is None:
        return True
    with suppress(RuntimeError):  # the store has ended with process 0
        mine = os.environ["RANK"]
        return bool(_store.compare_set(FAILED, "", mine).decode() == mine)
    return True


def announce(what: str, value: str = "done") -> None:
    """Send a value to the processes that :func:`wait_for` it."""
    if _world.size > 1:
        _store.set(what, value)


def wait_for(what: str) -> str:
    """Return what process 0 announces, after minutes or hours: the limit of :data:`TIMEOUT` is not for this."""
    with _others():
        while not _store.check([what]):
            if _store.check([FAILED]):
                raise RuntimeError("another process has failed")
            time.sleep(POLL_SECONDS)
        return bytes(_store.get(what)).decode()


@contextmanager
def minibatch(n_cells: int) -> Iterator[None]:
    """Compute with a minibatch of ``n_cells`` cells, of which each process has its part."""
    global _sizes
    size = _world.size
    if size > 1:
        _sizes = tuple(n_cells // size + (k < n_cells % size) for k in range(size))
    try:
        yield
    finally:
        _sizes = ()


def is_shared() -> bool:
    """Return whether the processes share the minibatch at hand."""
    return bool(_sizes)


def share() -> float:
    """Return n / N, the cells of this process as a share of the minibatch."""
    return _sizes[_world.rank] / sum(_sizes) if _sizes else 1.0


def n_cells(x_n: Tensor) -> int:
    """Return N, the cells of the minibatch, of which ``x_n`` has those of this process."""
    return sum(_sizes) or len(x_n)


def rows() -> slice:
    """Return which rows of the minibatch this process has."""
    first = sum(_sizes[: _world.rank])
    return slice(first, first + _sizes[_world.rank]) if _sizes else slice(None)


def cells_K(device: torch.device) -> Tensor:
    """Return the number of cells of each process, K x 1, float32, made on the device."""
    number_K1 = torch.arange(_world.size, device=device)[:, None]
    n = sum(_sizes)
    return (n // _world.size + (number_K1 < n % _world.size)).float()


def gathered(x_n: Tensor) -> Tensor:
    """Return the rows of all processes, in their order; gradients flow back to the process of a row."""
    if not _sizes:
        return x_n
    placed_N: Tensor = _Placed.apply(x_n, rows().start, sum(_sizes))  # type: ignore[no-untyped-call]
    return placed_N


def stacked(x: Tensor) -> Tensor:
    """Return the tensors of all processes, K x ...; gradients flow back."""
    placed_K: Tensor = _Placed.apply(x[None], _world.rank, _world.size)  # type: ignore[no-untyped-call]
    return placed_K


def total(x: Tensor) -> Tensor:
    """Return the sum over the processes of the minibatch, without gradient; ``x`` itself with one process."""
    return _all_reduced(x.detach().clone()) if _sizes else x


def mean_of_known(sum_n: Tensor, n_known: Tensor) -> Tensor:
    """Return the sum over cells, divided by the number of cells for which it is known; 0 if there are none.

    With several processes it is this one's part of the mean over the whole minibatch: the average of the parts,
    weighted by the numbers of cells, is that mean.
    """
    mean = sum_n / total(n_known).clamp_min(1)
    return mean / share() if _sizes else mean


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of the parameters over the processes, in one operation."""
    if not _sizes:
        return
    with_grad = [p for p in parameters if p.grad is not None]
    flat = _all_reduced(torch.cat([p.grad.reshape(-1) for p in with_grad if p.grad is not None]))
    for p, part in zip(with_grad, torch.split(flat, [p.numel() for p in with_grad]), strict=True):
        p.grad = part.view_as(p)


def rows_of_all(x_n: Tensor, place_n: Tensor, chosen_M: Tensor) -> Tensor:
    """Return the rows with the places ``chosen_M`` among those of all processes; ``place_n``: places of own rows."""
    if _world.size == 1:
        return x_n[chosen_M]
    slot_N = chosen_M.new_full((int(sum_in_place(torch.tensor(len(x_n)))),), -1)
    slot_N[chosen_M] = torch.arange(len(chosen_M), device=chosen_M.device)
    slot_n = slot_N[place_n]
    found_M = x_n.new_zeros(len(chosen_M), *x_n.shape[1:])
    found_M[slot_n[slot_n >= 0]] = x_n[slot_n >= 0]
    return _all_reduced(found_M)


def sum_in_place(x: Tensor) -> Tensor:
    """Sum a tensor over all processes, whether or not they share a minibatch, and return it."""
    return _all_reduced(x) if _world.size > 1 else x


def synchronise(tensors: Iterable[Tensor]) -> None:
    """Copy tensors from process 0, as rounding could differ between processors."""
    if _world.size == 1:
        return
    with torch.no_grad(), _others():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def barrier() -> None:
    """Wait for all processes."""
    if _world.size > 1:
        _all_reduced(torch.zeros(1))


class _Placed(torch.autograd.Function):
    """Rows of this process, placed among the rows of all."""

    @staticmethod
    def forward(ctx: Any, x_n: Tensor, first: int, n_rows: int) -> Tensor:
        ctx.rows = slice(first, first + len(x_n))
        placed_N = x_n.new_zeros(n_rows, *x_n.shape[1:])
        placed_N[ctx.rows] = x_n
        return _all_reduced(placed_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _all_reduced(gradients[0].clone(memory_format=torch.contiguous_format))[ctx.rows], None, None


def _all_reduced(x: Tensor) -> Tensor:
    with _others():
        dist.all_reduce(x)
    return x


@contextmanager
def _others() -> Iterator[None]:
    """Raise one clear error if another process has ended."""
    try:
        yield
    except RuntimeError as error:
        which = f"process {1 - _world.rank}" if _world.size == 2 else "another process"
        raise ScmedleyError(
            f"{which} of {_world.size} has ended or cannot be reached, so process {_world.rank} ends too. {REPEAT}"
        ) from error
