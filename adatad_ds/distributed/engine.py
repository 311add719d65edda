"""DeepSpeed: the only module that imports it.

Hosts the model, block by block as its weights are read, and accesses what ZeRO has partitioned: the fp32 masters of
trainable parameters, their Adam moments and their running average (EMA). Frozen weights are partitioned (stage 3) or
replicated (1, 2) in the compute type, once, with neither gradient nor master.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adatad_ds.config.schema import TrainConfig
from adatad_ds.distributed import partitions
from adatad_ds.distributed.average import AverageDecay
from adatad_ds.distributed.gradients import FlatGradients
from adatad_ds.distributed.lean_start import AdamW, exclusions_left_out, muon_uncompiled, parameters_unprinted
from adatad_ds.distributed.releases import release_recomputed, search_by_index
from adatad_ds.distributed.world import World
from adatad_ds.errors import ConfigError
from adatad_ds.system.library_messages import hide_library_messages
from adatad_ds.weights.files import StoredTensor, check_fit
from adatad_ds.weights.trainable_state import AVERAGE, MASTER, round_

os.environ.setdefault("DS_BUILD_OPS", "0")  # nothing is compiled on the default path
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
hide_library_messages()

# Its log goes to stderr from now on: stdout is for what was asked for.
with exclusions_left_out(), contextlib.redirect_stdout(sys.__stderr__):
    import deepspeed  # (reads its environment and logger at import)
from deepspeed import utils  # noqa: E402
from deepspeed.runtime import compiler  # noqa: E402
from deepspeed.runtime.utils import all_gather_dp_groups  # noqa: E402
from deepspeed.runtime.zero import partitioned_param_coordinator as coordination  # noqa: E402
from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state  # noqa: E402

# On CPUs DeepSpeed would compile a shared-memory collective at first use; gloo serves, and needs no toolchain.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

search_by_index(
    coordination.PartitionedParameterCoordinator, weights_of=coordination.iter_params, is_leaf=utils.z3_leaf_module
)
releases_recomputed = release_recomputed(coordination)

MOMENTS = ("exp_avg", "exp_avg_sq")
ROUNDED_AT_ONCE = 2**18  # numbers; what fits a cache
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # what DeepSpeed's scaler counts
# AVERAGE is our key in the optimizer's state: the EMA is partitioned exactly as the moments are.


def partitioner(ds_config: dict[str, Any], *, world: World) -> Callable[[nn.Module], None]:
    """The function that partitions a module as soon as rank 0 has read its weights.

    Under ZeRO-3 each module is sent from rank 0 and partitioned at once, so that no rank ever holds the whole model.
    Under ZeRO-1 and 2 it stays, to be sent with the whole model. A collective, on every rank.
    """
    _make_group(world)
    if ds_config["zero_optimization"]["stage"] != 3:
        return lambda module: None
    deepspeed.init_distributed(dist_init_required=False, verbose=False)  # takes over the group that is there

    def partition(module: nn.Module) -> None:
        deepspeed.zero.Init(module=module, config_dict_or_path=ds_config)

    return partition


def _make_group(world: World) -> None:
    """Have DeepSpeed's ranks wait for one another as long as ours: it gives its group no time, and NCCL 10 minutes."""
    if utils.groups._WORLD_GROUP is None:
        utils.groups._WORLD_GROUP = world.groups(world.size).handle


class Engine:
    """A model hosted by DeepSpeed, with AdamW over its trainable parameters.

    Args:
        model: on the CPU, or in part where `partitioner` put it; trainable parameters have `requires_grad`.
        groups: the optimizer's, of all parameters that are trainable: "params", "name", "base_lr", "lr" and
            "weight_decay" of each.
        average: how the running average of the masters follows them.
        called_whole: frozen modules that are called as a whole: ZeRO-3 gathers each one's weights at once, instead of
            layer by layer.
        recomputing: modules that recompute in graphs of their own, in which ZeRO-3 releases weights as anywhere.
        train: the compute type.
        ds_config: as `resolve_ds_config` returns it.
        world: the ranks.

    Raises:
        ConfigError: nothing learns, or the device cannot compute in the wanted precision.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        groups: Sequence[dict[str, Any]],
        average: AverageDecay,
        called_whole: Sequence[nn.Module] = (),
        recomputing: Sequence[nn.Module] = (),
        train: TrainConfig,
        ds_config: dict[str, Any],
        world: World,
    ) -> None:
        self.ds_config = ds_config
        self.stage: int = ds_config["zero_optimization"]["stage"]
        self.accumulation: int = ds_config["gradient_accumulation_steps"]
        self.average = average
        self._world = world
        self._check_precision(train.precision)
        if not groups:
            raise ConfigError("no parameter of this model is trainable")
        partitions.cast_and_move_rest(model, dtype=train.dtype, device=world.device)
        for module in called_whole:
            utils.set_z3_leaf_module(module, True)
        releases_recomputed(recomputing)
        _make_group(world)
        with muon_uncompiled(compiler), exclusions_left_out(), parameters_unprinted():
            engine, zero, _, _ = deepspeed.initialize(
                model=model, optimizer=AdamW(list(groups)), config=ds_config, dist_init_required=False
            )
        self._engine: Any = engine  # DeepSpeed's classes are not typed closely enough to name
        self._zero: Any = zero
        as_deepspeed_does = self.stage == 3 or self._zero.cpu_offload
        self._gradients = None if as_deepspeed_does else FlatGradients(engine, world=world)
        self.module = model
        self.trainable_parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._create_optimizer_state()
        if self._zero.loss_scaler.dynamic:
            self._zero.loss_scaler.raise_error_at_min_scale = False  # who counts skipped steps ends the run

    def __call__(self, *inputs: Tensor) -> Any:
        """The model's forward pass."""
        outputs = self._engine(*inputs)
        if self.stage == 3 and not self.module.training:  # else what was fetched for a backward pass stays, uncounted
            self._zero.empty_partition_cache()
        return outputs

    def train(self, mode: bool = True) -> None:
        """Training or evaluation mode."""
        self._engine.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Back-propagate one micro batch; gradients become the mean over ranks and micro batches."""
        self._engine.backward(loss)
        if self._gradients:
            self._gradients.add()

    def step(self) -> None:
        """Call after each micro batch; the last one of a step clips gradients, updates weights and running average.

        A step whose gradients have no finite norm updates nothing, see `step_taken`.
        """
        at_boundary = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        if at_boundary and self.step_taken and self.average.decay > 0:
            decay = self.average.after(self._steps_taken)
            for flat in self._flat_masters():
                self._adam.state[flat][AVERAGE].lerp_(flat.detach(), 1 - decay)

    @property
    def step_taken(self) -> bool:
        """Whether the last step updated the weights; the same on all ranks."""
        return self._engine.was_step_applied()

    def set_learning_rate(self, factor: float) -> None:
        """Scale every group's base rate by the schedule's factor."""
        for group in self._adam.param_groups:
            group["lr"] = group["base_lr"] * factor

    def learning_rates(self) -> dict[str, float]:
        """Each decayed group's current rate."""
        return {group["name"]: group["lr"] for group in self._adam.param_groups if "no_decay" not in group["name"]}

    def gradient_norm(self) -> float:
        """Gradient norm of the last step, before clipping."""
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def trainable_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Each trainable parameter's name and full fp32 tensors: master, moments, running average. A collective.

        Each kind of many parameters is gathered at once, so that a save costs a few collectives.
        """
        kinds = (MASTER, *self._state_keys())
        return partitions.gathered(self.trainable_parameters, kinds=kinds, part=self._part, world=self._world)

    def trainable_parts(self) -> Iterator[tuple[str, Tensor]]:
        """Each trainable parameter's name and this rank's part of its fp32 master, flat; nothing is sent."""
        for name, parameter in self.trainable_parameters.items():
            begin, end = partitions.held_range(parameter, rank=self._world.rank)  # then what is no weight follows
            yield name, self._part(parameter, MASTER)[: end - begin].detach().float()

    def load_trainable_state(
        self, state: Mapping[str, Mapping[str, StoredTensor]], *, source: str, partial: bool = False
    ) -> None:
        """Restore masters, moments and average on any number of ranks and any stage; each rank reads its parts.

        A moment that `state` lacks stays as it is; an average that it lacks starts from the masters.

        Args:
            state: tensors by kind and name.
            source: where they are from, for messages.
            partial: whether parameters may be left out, which then stay as they are.

        Raises:
            CheckpointError: names or shapes are not the model's; nothing is changed then.
        """
        shapes = {name: partitions.whole_shape(p) for name, p in self.trainable_parameters.items()}
        for kind, tensors in state.items():
            wanted = {name: shapes[name] for name in tensors if name in shapes} if partial else shapes
            check_fit(tensors, wanted, source=f"{source} ({kind})")
        for kind in (MASTER, *self._state_keys()):
            masters = state[MASTER] if kind == AVERAGE else {}
            for name, stored in {**masters, **state.get(kind, {})}.items():
                self._set(self.trainable_parameters[name], stored, kind)
        self._write_weights(MASTER)

    def optimizer_state(self) -> dict[str, Any]:
        """The rest of the optimizer's state: steps taken, fp16's loss scale, the average's warm-up; JSON-ready."""
        scaler = self._zero.loss_scaler
        return {
            "steps": self._steps_taken,
            "loss_scale": {name: getattr(scaler, name) for name in LOSS_SCALE} if scaler.dynamic else {},
            "ema_warmup": self.average.warmup,
        }

    def load_optimizer_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `optimizer_state` returned."""
        for flat in self._flat_masters():
            self._adam.state[flat]["step"].fill_(float(state["steps"]))
        if self._zero.loss_scaler.dynamic:
            vars(self._zero.loss_scaler).update(state["loss_scale"])
        self.average = replace(self.average, warmup=state["ema_warmup"])

    def round_trainable_state(self) -> None:
        """Round masters, moments and average as compact checkpoints do, so that a resume goes on with the same bits."""
        for flat in self._flat_masters():
            states = {key: self._adam.state[flat][key].split(ROUNDED_AT_ONCE) for key in self._state_keys()}
            for index, part in enumerate(flat.detach().split(ROUNDED_AT_ONCE)):
                round_(part, {key: parts[index] for key, parts in states.items()})
        self._write_weights(MASTER)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Context in which the model computes with the running average; an exception leaves it. A collective."""
        if self.average.decay == 0:
            yield
            return
        self._write_weights(AVERAGE)
        yield
        self._write_weights(MASTER)  # not after an exception, which may be of this rank alone

    def bytes_by_kind(self) -> dict[str, int]:
        """This rank's bytes: frozen and trainable weights in the compute type, masters, moments, average."""
        flats = self._flat_masters()
        states = {key: [self._adam.state[flat][key] for flat in flats] for key in self._state_keys()}
        return partitions.bytes_by_kind(self.module, {"masters": flats, **states})

    def close(self) -> None:
        """Release DeepSpeed's hooks, buffers and group."""
        self._engine.destroy()
        utils.groups._WORLD_GROUP = None

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return self._zero.optimizer

    @property
    def _steps_taken(self) -> int:
        """Adam's step count, without skipped steps."""
        return int(self._adam.state[self._flat_masters()[0]]["step"])

    def _state_keys(self) -> tuple[str, ...]:
        return (*MOMENTS, AVERAGE) if self.average.decay > 0 else MOMENTS

    def _flat_masters(self) -> list[Tensor]:
        """This rank's flat fp32 partitions, which are what Adam updates."""
        zero = self._zero
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    def _create_optimizer_state(self) -> None:
        """Create Adam's zero state now rather than in its first step, with the average next to the moments."""
        on_cpu = self._flat_masters()[0].device.type == "cpu"
        for group in self._adam.param_groups:
            group["fused"] = on_cpu  # a tenth of the time there; on a GPU the step count would lie on the device
        for flat in self._flat_masters():
            self._adam.state[flat] = {"step": torch.zeros(()), **{key: torch.zeros_like(flat) for key in MOMENTS}}
            if self.average.decay > 0:
                self._adam.state[flat][AVERAGE] = flat.detach().clone()
        if self.stage != 3:
            for parameters, flat in zip(self._zero.bit16_groups, self._flat_masters(), strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, self._adam.state)

    def _part(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """This rank's flat part of a parameter's master or Adam state, filled up under ZeRO-3."""
        if self.stage != 3:
            return partitions.fragment(parameter, None if kind == MASTER else kind)
        if kind == MASTER:
            return utils.safe_get_local_fp32_param(parameter)
        return utils.safe_get_local_optimizer_state(parameter, kind)

    @torch.no_grad()
    def _set(self, parameter: nn.Parameter, stored: StoredTensor, kind: str) -> None:
        """Read this rank's part of a parameter's master or Adam state."""
        begin, end = partitions.held_range(parameter, rank=self._world.rank)
        part = self._part(parameter, kind).clone()
        if begin < end:
            part[: end - begin] = stored.part(begin, end)
        if self.stage != 3:
            partitions.fragment(parameter, None if kind == MASTER else kind).copy_(part)
        elif kind == MASTER:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, kind)

    @torch.no_grad()
    def _write_weights(self, kind: str) -> None:
        """Replace the compute-type weights of trainable parameters by masters or running averages. A collective.

        Each rank writes the part whose master it holds. Under ZeRO-3 that is what it holds of the weights, which the
        next use gathers; under ZeRO-1 and 2 all parts are gathered at once, as after a step.
        """
        if self.stage == 3:
            self._zero.empty_partition_cache()  # a forward pass leaves weights that were fetched ahead in flight
            for parameter in self.trainable_parameters.values():
                partitions.held_partition(parameter).copy_(self._part(parameter, kind))
            return
        for parts, flat in zip(self._zero.parallel_partitioned_bit16_groups, self._flat_masters(), strict=True):
            parts[self._world.rank].copy_(flat if kind == MASTER else self._adam.state[flat][kind])
        partitions.gather_weights(self._zero, by=all_gather_dp_groups)

    def _check_precision(self, precision: str) -> None:
        accelerator: Any = deepspeed.get_accelerator()
        supported = {"fp16": accelerator.is_fp16_supported(), "bf16": accelerator.is_bf16_supported(), "fp32": True}
        if not supported[precision]:
            other = "bf16" if precision == "fp16" else "fp16"
            raise ConfigError(
                f"{accelerator.device_name()} here cannot train in {precision}; --set train.precision={other} or fp32"
            )
