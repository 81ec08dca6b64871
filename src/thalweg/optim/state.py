"""What is kept of a parameter between steps, and in how many bits."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.optim.shards import laid_out_alike, part_of, side_by_side, with_part
from thalweg.rules.rule import Hyper, Rule

if TYPE_CHECKING:
    from thalweg.kernels.cpu import Storage
    from thalweg.optim.base import RuleOptimizer

__all__ = ["keep_types", "scale_of", "start", "storage"]

State = dict[str, Any]

_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def scale_of(name: str) -> str:
    """Under which name the scales of a state of eight bits are kept."""
    return f"{name}_scale"


def storage(rule: Rule, dtype: torch.dtype, group: Hyper) -> "Storage":
    """How a step's arrays lie in memory, for a resolved rule and parameters of a dtype."""
    from thalweg.kernels.cpu import Storage

    parameter = _NAMES.get(dtype, "")
    at_random = group["stochastic_rounding"] and dtype == torch.bfloat16
    return Storage(
        parameter,
        tuple(_kind(rule, name, group) or parameter for name in rule.state),
        at_random,
        group["clear_grad"],
    )


def _kind(rule: Rule, name: str, group: Hyper) -> str:
    """Way of storing a state, empty if as the parameter."""
    asked = group.get("state")
    if asked is None or name not in rule.moments:
        return ""
    if asked == "8bit":
        return "signed8" if rule.moments[name] else "unsigned8"
    return str(asked)


_DTYPES = {"bfloat16": torch.bfloat16, "signed8": torch.int8, "unsigned8": torch.uint8}


def start(state: State, rule: Rule, p: Tensor, group: Hyper) -> State:
    """Make what is missing of a parameter's state, and return it.

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
            _start_one(state, name, value, rule, p, group)
    for name, number in zip(rule.scalars, rule.start_scalars(group), strict=True):
        if state.get(name) is None:
            state[name] = torch.tensor(number, dtype=torch.float64)
    return state


def _start_one(
    state: State, name: str, value: float | None, rule: Rule, p: Tensor, group: Hyper
) -> None:
    kind = _kind(rule, name, group)
    if value is None:
        state[name] = p.detach().clone(memory_format=torch.preserve_format)
    elif name in rule.shapes:
        state[name] = p.new_full(rule.shapes[name](tuple(p.shape)), value)
    elif kind.endswith("8"):
        part = part_of(p)
        plain = torch.full(part.shape, value, dtype=torch.float32, device=part.device)
        _keep(state, name, kind, plain, p)
    else:
        dtype = _DTYPES.get(kind, p.dtype)
        state[name] = torch.full_like(p, value, dtype=dtype, memory_format=torch.preserve_format)


def _keep(state: State, name: str, kind: str, values: Tensor, p: Tensor) -> None:
    """Keep values, float32 and of the shape of the parameter's part, in their way of storing."""
    from thalweg.kernels.storage import CHUNK, encoded

    made, scale = encoded(kind, values, 0, at_random=False)
    state[name] = with_part(p, made)
    if scale is not None:
        state[scale_of(name)] = side_by_side(p, scale, CHUNK)


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
        for name in rule.state:
            kind, found = _kind(rule, name, group), saved.get(name)
            if kind and isinstance(found, Tensor):
                _recode(state, name, kind, found, saved.get(scale_of(name)), p)
        for name in rule.scalars:
            if isinstance(saved.get(name), Tensor):
                state[name] = saved[name].detach().to(torch.float64, copy=True).cpu()


def _recode(
    state: State, name: str, kind: str, found: Tensor, scale: Tensor | None, p: Tensor
) -> None:
    """A saved moment in the way of storing that the group now asks for."""
    from thalweg.kernels.storage import CHUNK, decoded, scales

    if scale is not None:
        part = part_of(p)
        like = side_by_side(p, torch.zeros(scales(part.numel())), CHUNK)
        if not laid_out_alike(p, found) or scale.shape != like.shape:
            raise ValueError(
                f"the checkpoint has {name!r} in eight bits with scales of shape "
                f"{tuple(scale.shape)}, and here they have {tuple(like.shape)}: each process has "
                "its own; load it where parameters are cut up as where it was saved, or save it "
                "from an optimizer with state='bfloat16'"
            )
    if found.dtype == _DTYPES[kind]:
        state[name] = found.detach().to(p.device, copy=True)
        if scale is not None:
            state[scale_of(name)] = scale.detach().to(p.device, copy=True)
        return
    saved_kind = {torch.int8: "signed8", torch.uint8: "unsigned8"}.get(found.dtype, "")
    its_scale = None if scale is None else part_of(scale).view(-1)[: scales(part.numel())]
    _keep(state, name, kind, decoded(saved_kind, part_of(found), its_scale).to(p.device), p)
