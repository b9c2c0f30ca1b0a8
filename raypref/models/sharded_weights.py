"""All weights of a network, sharded over the workers by FSDP2: each holds a part of every vector.

As `own_weights.py`, for networks whose float32 vectors are too large for one device. A parameter is
whole on a device only while its block computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from raypref.core.config import InputError
from raypref.models.compiled import repeated_blocks
from raypref.models.own_weights import parameters_in, vector_length


class ShardedWeights:
    """The parameters of one network, of which each rank of the default process group has a part.

    A rank's vector, [S], holds its rows of every parameter, one parameter after another: of D rows
    and R ranks, ceil(D / R) each, fewer or none on the last. The whole vector, [P], is that of
    `OwnWeights`. Every rank has to make the same forwards and backwards: each gathers parameters.

    Args:
        module: a diffusers denoiser, equal on all ranks. Its parameters become float32 or better,
            contiguous and sharded; what it computes stays in the precision it had.

    Raises:
        InputError: its parameters are of several precisions.
    """

    def __init__(self, module: nn.Module) -> None:
        named = dict(module.named_parameters())
        self.keys = tuple(named)
        dtypes = {parameter.dtype for parameter in named.values()}
        if len(dtypes) > 1:
            raise InputError(
                f"sharded=true: weights of the network are loaded as {', '.join(map(str, dtypes))};"
                " set base.dtype=float32"
            )
        (loaded,) = dtypes
        # Shapes and memory formats, by which the whole vector is laid out.
        self.like = [torch.empty_like(own.data, device="meta") for own in named.values()]
        device = next(module.parameters()).device
        del named  # or all would be kept whole
        self.mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        _shard(module, loaded, self.mesh)
        self.parameters = [_sharded(parameter) for parameter in module.parameters()]
        # What FSDP gathers from; `use` writes into it.
        with torch.no_grad():
            self.read = [parameter.to_local() for parameter in self.parameters]
        self.sizes = [own.numel() for own in self.read]
        self.base = [own.to(loaded, copy=True) for own in self.read]

    @torch.no_grad()
    def initial(self) -> Tensor:
        """This rank's part of the weights as they were loaded, [S], float32 or better."""
        return torch.cat([own.flatten() for own in self.base]).to(self.read[0].dtype)

    def split(self, vector_P: Tensor) -> list[Tensor]:
        """The parameters in a whole vector, as views."""
        return parameters_in(vector_P, self.like)

    @torch.no_grad()
    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """This rank's vector, [S], of whole parameters."""
        found = torch.empty(sum(self.sizes), dtype=self.read[0].dtype, device=self.read[0].device)
        for view, part in zip(self._own_parts(found), parts, strict=True):
            rows = -(-len(part) // self.mesh.size())
            view.copy_(part[rows * self.mesh.get_local_rank() :][:rows])
        return found

    @torch.no_grad()
    def use(self, vector_S: Tensor | None) -> None:
        """Let the network read a vector from its next forward on; None: what was loaded.

        Where the vector requires a gradient, the sum over the ranks of that of every backward is
        added to its `grad`.
        """
        pieces = self.base if vector_S is None else self._own_parts(vector_S.detach())
        torch._foreach_copy_(self.read, pieces)
        if vector_S is None or not vector_S.requires_grad or vector_S.grad is not None:
            return
        for parameter in self.parameters:
            parameter.grad = None  # of the last step, before there is another
        vector_S.grad = torch.zeros_like(vector_S)
        for parameter, view in zip(self.parameters, self._own_parts(vector_S.grad), strict=True):
            parameter.grad = self._tensor(view, parameter)  # FSDP adds to what there is

    @torch.no_grad()
    def norm(self, vector_S: Tensor) -> Tensor:
        """Frobenius norm of all ranks' difference from the weights that were loaded."""
        pairs = zip(self._own_parts(vector_S), self.base, strict=True)
        total = torch.stack([(view - own).square().sum() for view, own in pairs]).sum()
        torch.distributed.all_reduce(total, group=self.mesh.get_group())
        return total.sqrt()

    @torch.no_grad()
    def whole(self, vector_S: Tensor) -> Tensor:
        """The whole vector, [P], on rank 0's host; empty on other ranks. All have to ask for it.

        A device holds one parameter of it at a time.
        """
        first = self.mesh.get_rank() == 0
        length = vector_length(self.like) if first else 0
        vector_P = torch.zeros(length, dtype=vector_S.dtype)
        views = self.split(vector_P) if first else self.like
        for view, own, parameter in zip(
            views, self._own_parts(vector_S), self.parameters, strict=True
        ):
            gathered = self._tensor(own, parameter).full_tensor()
            if first:
                view.copy_(gathered)
        return vector_P

    def own(self, vector_P: Tensor) -> Tensor:
        """This rank's part, [S], of a whole vector."""
        return self.joined(self.split(vector_P))

    def _own_parts(self, vector_S: Tensor) -> list[Tensor]:
        """This rank's rows of each parameter, as views."""
        pieces = vector_S.split(self.sizes)
        return [piece.view(own.shape) for piece, own in zip(pieces, self.read, strict=True)]

    def _tensor(self, own: Tensor, like: DTensor) -> DTensor:
        """Rows of a rank as FSDP has them of a parameter."""
        return DTensor.from_local(
            own, self.mesh, [Shard(0)], run_check=False, shape=like.shape, stride=like.stride()
        )


def _shard(module: nn.Module, loaded: torch.dtype, mesh: DeviceMesh) -> None:
    """Shard blocks, then what is left, so that one block at a time is there in float32."""
    precise = torch.promote_types(loaded, torch.float32)
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precise != loaded:  # the forward as unsharded; gradients are summed in float32
        policy = MixedPrecisionPolicy(
            param_dtype=loaded, reduce_dtype=precise, cast_forward_inputs=False
        )
    for part in (*repeated_blocks(module), module):
        for parameter in part.parameters():
            if not isinstance(parameter, DTensor):
                parameter.requires_grad_(True)
                parameter.data = parameter.data.to(precise).contiguous()
        sharded = fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        assert isinstance(sharded, FSDPModule)
        sharded.set_gradient_divide_factor(1.0)  # a loss is divided by the global batch already
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def _sharded(parameter: nn.Parameter) -> DTensor:
    assert isinstance(parameter, DTensor)
    return parameter
