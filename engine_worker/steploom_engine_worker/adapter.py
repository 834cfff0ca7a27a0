"""Low-rank adapters on a UNet, gated per row: rows with and without an adapter share one forward pass.

The one idea: a linear map or convolution W of a row with the gate g computes

    y = W x + g * B A x                                  (arXiv 2106.09685, equation 3)

with g = 1 for the rows of the adapter and 0 for all others. The rows of an adapter stand together, so a gate is a range
of rows, and rows outside of it are not touched: they are, bit for bit, what the model without adapters makes of them.
Where all rows are one adapter's, W + B A may stand ready as one map: such a pass costs what one without adapters does.

An adapter may also take the guidance scales as inputs (arXiv 2210.03142, section 3.1): an embedding of both is added to
the embedding of the timestep, and the row stands for the whole guided prediction.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from steploom_engine_worker.adapter_files import AdapterFiles
from steploom_engine_worker.errors import ModelError

ALL_ROWS = slice(None)

_OCTAVES = 8  # of the sines that describe a guidance scale
_DOWN, _UP = "lora_A.weight", "lora_B.weight"
_EMBEDDING = "guidance_embedding."
_UNET = "unet."


class LowRank(nn.Module):
    """B A for one linear map or convolution: A has its kernel, stride and padding, B is a matrix. B starts at zero."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(base, nn.Linear):
            rank = min(rank, base.in_features, base.out_features)
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        else:
            rank = min(rank, base.in_channels, base.out_channels)
            self.down = nn.Conv2d(
                base.in_channels, rank, cast(tuple[int, int], base.kernel_size), cast(tuple[int, int], base.stride),
                cast(tuple[int, int], base.padding), bias=False,
            )  # fmt: skip
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.up(self.down(x))
        return result

    @torch.no_grad()
    def merged_into(self, base: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
        """The map with W + B A for its W, in the type and memory layout of W; the bias is shared."""
        product = self.up.weight.float().flatten(1) @ self.down.weight.float().flatten(1)
        merged = copy.deepcopy(base, {id(base.weight): base.weight, id(base.bias): base.bias})
        weight = torch.empty_like(base.weight)
        weight.copy_(base.weight.float() + product.view_as(base.weight))
        merged.weight = nn.Parameter(weight, requires_grad=False)
        return merged


class GuidanceEmbedding(nn.Module):
    """Both guidance scales as a change of the timestep's embedding; zero at the start of training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(4 * _OCTAVES, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, scales: Tensor) -> Tensor:
        """``scales`` is ``[rows, 2]``, text and picture; the result ``[rows, width]``."""
        frequencies = 2.0 ** torch.arange(_OCTAVES, device=scales.device)
        phases = scales.float().log()[:, :, None] * frequencies  # [rows, 2, octaves]
        waves = torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(1)
        result: Tensor = self.out(nn.functional.silu(self.hidden(waves.to(self.hidden.weight.dtype))))
        return result


class Adapter(nn.Module):
    """The weights of one adapter for one UNet.

    Args:
        unet: the UNet whose maps are adapted.
        names: of the linear maps and convolutions to adapt.
        rank: of the changes, where a map is not smaller.
        has_guidance: whether it takes the guidance scales.

    Raises:
        ValueError: the UNet has no linear map or convolution of a name.
    """

    def __init__(self, unet: nn.Module, names: Iterable[str], rank: int, has_guidance: bool) -> None:
        super().__init__()
        self.names = tuple(names)
        known = dict(linear_maps(unet))
        for name in self.names:
            if name not in known:
                raise ValueError(f"the UNet has no linear map or convolution {name}")
        self.low_ranks = nn.ModuleList([LowRank(known[name], rank) for name in self.names])
        width = cast(Any, unet).time_embedding.linear_2.out_features
        self.guidance = GuidanceEmbedding(width) if has_guidance else None

    @property
    def changes(self) -> dict[str, LowRank]:
        """By the name of the map that they change."""
        return dict(zip(self.names, cast(Sequence[LowRank], self.low_ranks), strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by their names in a file."""
        found: dict[str, Tensor] = {}
        for name, low_rank in self.changes.items():
            found[f"{_UNET}{name}.{_DOWN}"] = low_rank.down.weight
            found[f"{_UNET}{name}.{_UP}"] = low_rank.up.weight
        if self.guidance is not None:
            found |= {_EMBEDDING + name: tensor for name, tensor in self.guidance.named_parameters()}
        return found

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over weights.

        Raises:
            ValueError: a tensor is missing, not wanted, of another shape, or not finite.
        """
        wanted = self.tensors()
        if wanted.keys() != tensors.keys():
            odd = sorted(wanted.keys() ^ tensors.keys())
            raise ValueError(f"{'lacks' if odd[0] in wanted else 'has no place for'} tensor {odd[0]}")
        for name, target in wanted.items():
            if tensors[name].shape != target.shape:
                raise ValueError(f"tensor {name} is {list(tensors[name].shape)}, must be {list(target.shape)}")
            if not torch.isfinite(tensors[name]).all():
                raise ValueError(f"tensor {name} holds values that are not finite")
            target.copy_(tensors[name])


def load_adapter(unet: nn.Module, files: AdapterFiles) -> Adapter:
    """The adapter of these files, for this UNet, in evaluation mode and float32.

    Raises:
        ModelError: its tensors do not fit the UNet.
    """
    manifest = files.manifest
    names = [key.removeprefix(_UNET).removesuffix(f".{_DOWN}") for key in sorted(files.tensors) if key.endswith(_DOWN)]
    try:
        adapter = Adapter(unet, names, manifest.rank, manifest.traits.is_guidance_distilled)
        adapter.fill(files.tensors)
    except ValueError as error:
        raise ModelError(files.folder, str(error)) from None
    return adapter.eval().requires_grad_(False)


@dataclass
class RowGates:
    """Which rows of the next forward pass belong to which adapter. All modules of one `AdaptedUNet` look at it."""

    segments: list[tuple[int, slice]] = field(default_factory=list)  # adapter and its rows; they do not overlap
    scales: Tensor | None = None  # [rows, 2], text and picture guidance


class _GatedModule(nn.Module):
    """A linear map or convolution with the changes of all adapters."""

    def __init__(self, base: nn.Module, gates: RowGates) -> None:
        super().__init__()
        self.base = base
        self.low_ranks: dict[int, LowRank] = {}  # by adapter; a plain dict: the adapters own them
        self.gates = gates

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x)
        for number, rows in self.gates.segments:
            low_rank = self.low_ranks.get(number)
            if low_rank is not None:
                result = _add_rows(result, rows, low_rank(x[rows]))
        return result


class _GuidedTimeEmbedding(nn.Module):
    """The timestep's embedding, to which each adapter adds that of the guidance scales."""

    def __init__(self, base: nn.Module, embeddings: Mapping[int, GuidanceEmbedding], gates: RowGates) -> None:
        super().__init__()
        self.base = base
        self.embeddings = embeddings  # by adapter: those of the whole network
        self.gates = gates

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        result: Tensor = self.base(sample, condition)
        for number, rows in self.gates.segments:
            embedding = self.embeddings.get(number)
            if embedding is not None:
                assert self.gates.scales is not None
                result = _add_rows(result, rows, embedding(self.gates.scales[rows]))
        return result


def _add_rows(whole: Tensor, rows: slice, change: Tensor) -> Tensor:
    if rows == ALL_ROWS:
        return whole + change
    whole[rows].add_(change)  # in place: the view is not copied back as by +=
    return whole


# A CPU gains little from more rows in a pass, and low ranks cost as much as some rows: from here on it is faster to let
# each kind of rows have a pass of its own (the embedded model, two cores).
_MIN_ROWS_APART = 2


class AdaptedUNet(nn.Module):
    """A UNet with adapters. It shares the weights of the UNet that it is made of, which itself stays as it was.

    Args:
        unet: a diffusers UNet2DConditionModel.
        adapters: for it, made or loaded; a row's number counts in this order.
        is_merged: whether rows of one adapter run on maps with its changes merged in, where a pass has no others, or on
            a CPU enough of each kind. They take the memory of the adapted maps again for each adapter, and what the
            adapters hold later is not seen.
    """

    def __init__(self, unet: nn.Module, adapters: Sequence[Adapter], is_merged: bool = False) -> None:
        super().__init__()
        self.gates = RowGates()
        self.adapters = nn.ModuleDict()  # by number, as all that follows
        self.merged = nn.ModuleDict()
        self._embeddings: dict[int, GuidanceEmbedding] = {}
        self._gated: dict[str, _GatedModule] = {}  # by the name of the map
        self.unet = with_shared_weights(unet)
        # where each map lies, by its name as long as nothing is around it
        self._places = {name: (_parent(self.unet, name), module) for name, module in linear_maps(self.unet)}
        for number, adapter in enumerate(adapters):
            self.put(number, adapter, merged_unet(unet, adapter) if is_merged else None)

    def put(self, number: int, adapter: Adapter, merged: nn.Module | None) -> None:
        """Takes one more adapter, under a number that no other has; between forward passes. Quick: nothing is computed.

        Args:
            number: by which gates name it.
            adapter: for the same UNet, on its device.
            merged: what `merged_unet` makes of both, where the others have theirs.
        """
        for name, change in adapter.changes.items():
            if name not in self._gated:
                parent, module = self._places[name]
                self._gated[name] = _GatedModule(module, self.gates)
                setattr(parent, name.rpartition(".")[2], self._gated[name])
            self._gated[name].low_ranks[number] = change
        if adapter.guidance is not None:
            self._embeddings[number] = adapter.guidance
            self._guide(self.unet)
        self.adapters[str(number)] = adapter
        if merged is not None:
            self.merged[str(number)] = merged
            if adapter.guidance is not None:
                self._guide(merged)

    def drop(self, number: int) -> None:
        """Forgets an adapter, which no gate names any more; between forward passes."""
        for module in self._gated.values():
            module.low_ranks.pop(number, None)
        self._embeddings.pop(number, None)
        del self.adapters[str(number)]
        if str(number) in self.merged:
            del self.merged[str(number)]

    def _guide(self, unet: nn.Module) -> None:
        """Lets the guidance scales into a UNet."""
        inner = cast(Any, unet)
        if not isinstance(inner.time_embedding, _GuidedTimeEmbedding):
            inner.time_embedding = _GuidedTimeEmbedding(inner.time_embedding, self._embeddings, self.gates)

    def forward(self, sample: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """The prediction of each row under the gates that are set.

        Args:
            sample: [rows, in_channels, h, w].
            timesteps: [rows].
            context: [rows, tokens, width].

        Returns:
            [rows, out_channels, h, w].
        """
        kinds = self._kinds(len(sample)) if self.merged else []
        if len(kinds) > 1 and sample.device.type == "cpu" and all(len(rows) >= _MIN_ROWS_APART for _, rows in kinds):
            return self._apart(kinds, sample, timesteps, context)
        unet = self.unet
        if len(kinds) == 1 and kinds[0][0] is not None:
            unet = self.merged[str(kinds[0][0])]
        prediction: Tensor = unet(sample, timesteps, encoder_hidden_states=context, return_dict=False)[0]
        return prediction

    def _kinds(self, rows: int) -> list[tuple[int | None, range]]:
        """The rows of each adapter, and those of none, in their order."""
        kinds: list[tuple[int | None, range]] = []
        done = 0
        for number, segment in self.gates.segments:
            own = range(rows)[segment]
            if own.start > done:
                kinds.append((None, range(done, own.start)))
            kinds.append((number, own))
            done = own.stop
        return [*kinds, (None, range(done, rows))] if done < rows else kinds

    def _apart(
        self, kinds: Sequence[tuple[int | None, range]], sample: Tensor, timesteps: Tensor, context: Tensor
    ) -> Tensor:
        """`forward`, a pass for each kind of rows."""
        segments, scales = self.gates.segments, self.gates.scales
        parts = []
        try:
            for number, own in kinds:
                rows = slice(own.start, own.stop)
                self.gates.segments = [] if number is None else [(number, ALL_ROWS)]
                self.gates.scales = None if scales is None else scales[rows]
                parts.append(self(sample[rows], timesteps[rows], context[rows]))
        finally:
            self.gates.segments, self.gates.scales = segments, scales
        return torch.cat(parts)


def merged_unet(unet: nn.Module, adapter: Adapter) -> nn.Module:
    """A UNet with an adapter's changes in its weights; what they leave alone is shared. Guidance is not in it."""
    merged = with_shared_weights(unet)
    maps = dict(linear_maps(merged))
    for name, change in adapter.changes.items():
        _replace(merged, name, change.merged_into(maps[name]))
    return merged


def linear_maps(unet: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Everything in a UNet that can be adapted, by name."""
    for name, module in unet.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield name, module


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    setattr(_parent(root, name), name.rpartition(".")[2], module)


def _parent(root: nn.Module, name: str) -> nn.Module:
    return root.get_submodule(name.rpartition(".")[0])


def with_shared_weights(module: nn.Module) -> nn.Module:
    """A copy of the structure alone."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
