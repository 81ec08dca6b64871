"""What is kept of a parameter between steps, and in how many bits."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.optim.shards import laid_out_alike, part_of, side_by_side, with_part
from thalweg.rules.rule import Hyper, Rule

if TYPE_CHECKING:
    from thalweg.kernels.cpu import Storage
    from thalweg.optim.base import RuleOptimizer

__all__ = ["keep_types", "opened", "scale_of", "start", "storage"]

State = dict[str, Any]

# Ways of storing, as `thalweg.kernels.storage` calls them; without importing Numba.
_AT_RANDOM = "bfloat16 at random"
_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def scale_of(name: str) -> str:
    """Under which name the scales of a state of eight bits are kept."""
    return f"{name}_scale"


def storage(rule: Rule, dtype: torch.dtype, group: Hyper) -> "Storage":
    """How a step's arrays lie in memory, for a resolved rule and parameters of a dtype."""
    from thalweg.kernels.cpu import Storage

    parameter = _NAMES.get(dtype, "")
    if group["stochastic_rounding"] and dtype == torch.bfloat16:
        parameter = _AT_RANDOM
    states = tuple(
        "" if name in rule.exact else _kind(rule, name, group) or parameter for name in rule.state
    )
    return Storage(parameter, states, group["clear_grad"])


def _kind(rule: Rule, name: str, group: Hyper) -> str:
    """Way of storing a state, empty if as the parameter."""
    asked = group.get("state")
    if asked is None or name not in rule.moments:
        return ""
    signed = rule.moments[name]
    if asked == "8bit" and signed is not None:
        return "signed8" if signed else "unsigned8"
    # To the nearest, an average that moves by less than half a unit would not move at all.
    return _AT_RANDOM


_EIGHT = {"signed8": torch.int8, "unsigned8": torch.uint8}
_EIGHT_OF = {dtype: kind for kind, dtype in _EIGHT.items()}
_DTYPES = {_AT_RANDOM: torch.bfloat16, **_EIGHT}


def start(state: State, rule: Rule, p: Tensor, group: Hyper) -> State:
    """Make what is missing of a parameter's state, or kept in another way, and return it.

    Args:
        state: what there is.
        rule: a resolved rule.
        p: the parameter.
        group: its hyperparameters.
    """
    missing = [name for name in rule.state if state.get(name) is None]
    if "step" not in state or (missing and len(missing) == len(rule.state)):
        # torch.optim.SGD and Muon keep no count; for their buffers any step after the first does.
        began = bool(rule.state) and not missing
        state["step"] = torch.tensor(float(began), dtype=torch.float32)
    for name, value in zip(rule.state, rule.start(group), strict=True):
        if name in missing:
            _start_one(state, name, value, rule, p)
        _check_shape(state[name], name, rule, p)
        if name in rule.moments:
            _recode(state, name, _kind(rule, name, group), p)
    for name, number in zip(rule.scalars, rule.start_scalars(group), strict=True):
        if state.get(name) is None:
            state[name] = torch.tensor(number, dtype=torch.float64)
    return state


def _check_shape(kept: Tensor, name: str, rule: Rule, p: Tensor) -> None:
    shape = tuple(p.shape)
    wanted = rule.shapes[name](shape) if name in rule.shapes else shape
    if tuple(kept.shape) != tuple(wanted):
        raise ValueError(
            f"{rule.name}: the state {name!r} has shape {tuple(kept.shape)}, and a parameter of "
            f"shape {shape} needs {tuple(wanted)}; it is another model's, or the parameter was "
            "replaced: begin with a new optimizer"
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _NAMES else dtype


def _start_one(state: State, name: str, value: float | None, rule: Rule, p: Tensor) -> None:
    if value is None:
        state[name] = p.detach().clone(memory_format=torch.preserve_format)
    elif name in rule.shapes:
        dtype = _wide(p.dtype) if name in rule.exact else p.dtype
        state[name] = p.new_full(rule.shapes[name](tuple(p.shape)), value, dtype=dtype)
    else:
        state[name] = torch.full_like(p, value, memory_format=torch.preserve_format)


def _recode(state: State, name: str, kind: str, p: Tensor) -> None:
    """Keep a moment in the way of storing that its group asks for, if it is kept in another."""
    found: Tensor = state[name]
    wanted = _DTYPES.get(kind, p.dtype)
    if found.dtype == wanted:
        return
    if found.is_floating_point() and wanted.is_floating_point:
        state[name] = found.to(wanted)
        return
    from thalweg.kernels.codecs import encoded
    from thalweg.kernels.storage import CHUNK

    values = opened(found, state.pop(scale_of(name), None))
    made, scale = encoded(kind, values) if kind else (values.to(wanted), None)
    state[name] = with_part(p, made)
    if scale is not None:
        state[scale_of(name)] = side_by_side(p, scale, CHUNK)


def opened(kept: Tensor, scale: Tensor | None) -> Tensor:
    """What a state in fewer bits stands for, float32; of a DTensor the part in this process.

    Args:
        kept: as it is stored.
        scale: its scales, if it is in eight bits.
    """
    from thalweg.kernels.codecs import decoded
    from thalweg.kernels.storage import scales

    part = part_of(kept)
    if scale is not None:
        scale = part_of(scale).view(-1)[: scales(part.numel())]
    return decoded(_EIGHT_OF.get(part.dtype, ""), part, scale)


def keep_types(optimizer: "RuleOptimizer", state_dict: dict[str, Any]) -> None:
    """Give what a checkpoint holds besides torch's own kinds of state the types that it needs.

    `torch.optim.Optimizer.load_state_dict` casts all but the step count to the parameter's dtype.
    """
    ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    for i, (p, group) in zip(ids, parameters, strict=True):
        saved, state = state_dict["state"].get(i), optimizer.state.get(p)
        if not saved or not state:
            continue
        rule = optimizer.rule.resolve(group, tuple(p.shape))
        for name in rule.moments:
            if isinstance(saved.get(scale_of(name)), Tensor):
                _check_scale(name, saved, p)
                for kept in (name, scale_of(name)):
                    state[kept] = saved[kept].detach().to(p.device, copy=True)
        for name in rule.exact:
            if isinstance(saved.get(name), Tensor):
                state[name] = saved[name].detach().to(p.device, _wide(p.dtype), copy=True)
        for name in rule.scalars:
            if isinstance(saved.get(name), Tensor):
                state[name] = saved[name].detach().to(torch.float64, copy=True).cpu()


def _check_scale(name: str, saved: State, p: Tensor) -> None:
    """Raise `ValueError` for eight bits of parameters that were cut up in another way."""
    from thalweg.kernels.storage import CHUNK, scales

    like = side_by_side(p, torch.zeros(scales(part_of(p).numel())), CHUNK)
    found = saved[scale_of(name)]
    if not laid_out_alike(p, saved[name]) or found.shape != like.shape:
        raise ValueError(
            f"the checkpoint has {name!r} in eight bits with scales of shape "
            f"{tuple(found.shape)}, and here they have {tuple(like.shape)}: each process has "
            "its own; load it where parameters are cut up as where it was saved, or save it "
            "from an optimizer with state='bfloat16'"
        )
