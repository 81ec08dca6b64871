"""Optimizers around another: two gradients a step, slow weights, the mean over several batches.

The one inside is any `torch.optim.Optimizer`, another of these included. Parameter groups, state
and defaults are its own, so that schedulers may hold either.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from thalweg import rules
from thalweg.optim.classes import SGD
from thalweg.optim.shards import is_sharded, part_of
from thalweg.rules.rule import Flag, Hyperparameter, Number

__all__ = ["GD", "SAM", "Accumulate", "Lookahead", "Wrapper"]

Closure = Callable[[], Any]


class _Shared:
    """An attribute of the optimizer inside."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: "Wrapper | None", owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.base, self.name)

    def __set__(self, wrapper: "Wrapper", value: Any) -> None:
        setattr(wrapper.base, self.name, value)


class Wrapper(Optimizer):
    """A `torch.optim.Optimizer` around another; its step is for subclasses to write.

    Attributes:
        hyper: hyperparameters, each an attribute of its name.
        memory: what is kept between steps, by name, with the type that makes it anew; a dict has a
            tensor for each of some parameters.
        base: the optimizer inside.
    """

    hyper: ClassVar[tuple[Hyperparameter, ...]] = ()
    memory: ClassVar[Mapping[str, type]] = {}
    base: Optimizer
    # Asked for anew each time: `load_state_dict` gives the base other objects.
    param_groups: Any = _Shared()
    state: Any = _Shared()
    defaults: Any = _Shared()

    def __init__(self, base: Optimizer, **hyper: Any) -> None:
        name = type(self).__name__
        if not isinstance(base, Optimizer):
            raise TypeError(
                f"{name}: base must be a torch.optim.Optimizer, got {type(base).__name__}; "
                f"make one first: {name}(SGD(model.parameters()))"
            )
        for h in self.hyper:
            h.check(name, hyper[h.name])
        # Optimizer.__init__ would make groups and state too; this makes hooks alone.
        self.__setstate__({"base": base, **hyper, **self._fresh()})

    def _fresh(self) -> dict[str, Any]:
        return {name: kind() for name, kind in self.memory.items()}

    def _kept(self) -> dict[str, Any]:
        names = *(h.name for h in self.hyper), *self.memory
        return {name: getattr(self, name) for name in names}

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _dtype(self, p: Tensor) -> torch.dtype:
        """In which a parameter's memory is kept."""
        return p.dtype

    def __getstate__(self) -> dict[str, Any]:
        # As torch.optim's: without hooks, and without the step that a scheduler has put here.
        return {"base": self.base, **self._kept()}

    def __repr__(self) -> str:
        hyper = ", ".join(f"{h.name}={getattr(self, h.name)!r}" for h in self.hyper)
        return f"{type(self).__name__}({hyper}) around {self.base!r}"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters to the optimizer inside."""
        self.base.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or set them to zero."""
        self.base.zero_grad(set_to_none)

    def eval(self) -> None:
        """What the optimizer inside does to evaluate, if anything."""
        getattr(self.base, "eval", _nothing)()

    def train(self) -> None:
        """What the optimizer inside does to train on, if anything."""
        getattr(self.base, "train", _nothing)()

    def state_dict(self) -> dict[str, Any]:
        """What the optimizer inside says, and under ``wrappers`` what those around it keep.

        The innermost comes first. The optimizer inside can load it too, as if it were its own.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        saved = self.base.state_dict()
        number = {p: i for i, p in self._numbered(saved)}
        own = {
            name: {number[p]: t for p, t in value.items()} if isinstance(value, dict) else value
            for name, value in self._kept().items()
        }
        saved = {**saved, "wrappers": [*saved.get("wrappers", ()), own]}
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; from one of the optimizer inside, with nothing remembered.

        Raises:
            ValueError: for one of other parameter groups or of another wrapper.
        """
        saved = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, saved)
            saved = saved if changed is None else changed
        *inner, own = saved.pop("wrappers", None) or [{}]
        kept = self._kept()
        if own and own.keys() != kept.keys():
            raise ValueError(
                f"{type(self).__name__}: the checkpoint is of another wrapper, one that keeps "
                f"{', '.join(own)}"
            )
        self.base.load_state_dict({**saved, "wrappers": inner} if inner else saved)
        parameter = dict(self._numbered(saved))
        for name, value in {**kept, **self._fresh(), **own}.items():
            if isinstance(value, dict):
                value = {parameter[i]: self._copied(t, parameter[i]) for i, t in value.items()}
            setattr(self, name, value)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _numbered(self, saved: dict[str, Any]) -> Iterator[tuple[int, Tensor]]:
        """Parameters, with the numbers by which a checkpoint knows them."""
        for group, packed in zip(self.param_groups, saved["param_groups"], strict=True):
            yield from zip(packed["params"], group["params"], strict=True)

    def _copied(self, t: Tensor, p: Tensor) -> Tensor:
        return t.detach().to(p.device, self._dtype(p), copy=True)


class SAM(Wrapper):
    """Sharpness-aware minimization: steps by the gradient at the worst point of a neighbourhood.

        e = rho g(x) / ‖g(x)‖;  the optimizer inside takes its step at x with g(x + e)

    and adaptive e = rho x² g / ‖ |x| g ‖, which does not change when layers are rescaled. The norm
    is over all parameters. Foret et al. (2021), Sharpness-aware minimization for efficiently
    improving generalization, ICLR, arXiv:2010.01412, equations 2 and 3; adaptive: Kwon et al.
    (2021), ASAM, ICML, arXiv:2102.11600, algorithm 1 without its eta. The norm is taken to be 1e-12
    more than it is, as in davda54/sam.

    `step` calls the closure twice, so that batch norm's running averages see each batch twice.
    Without a closure there are `first_step` and `second_step`; and with a `torch.amp.GradScaler`,
    on whose scale the direction does not depend:

        scaler.scale(loss()).backward(); optimizer.first_step(zero_grad=True)
        scaler.scale(loss()).backward(); optimizer.restore()
        scaler.step(optimizer.base); scaler.update()

    Args:
        base: any optimizer.
        rho: radius of the neighbourhood. In [0, inf).
        adaptive: measure it relative to each weight. True or False.

    Raises:
        HyperparameterError: for a value outside its range.
        TypeError: if ``base`` is no optimizer.
    """

    hyper = (Number("rho", 0.05, low=0.0), Flag("adaptive"))
    memory: ClassVar[Mapping[str, type]] = {"here": dict}
    rho: float
    adaptive: bool
    here: dict[Tensor, Tensor]  # between the two gradients, where to go back to

    def __init__(self, base: Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        super().__init__(base, rho=rho, adaptive=adaptive)

    def step(self, closure: Closure | None = None, **others: Any) -> Any:
        """One step of the optimizer inside, which is given a closure of two evaluations.

        Args:
            closure: sets the gradients to zero, evaluates the loss and its gradient, and returns
                the loss; called twice.
            **others: for the step of the optimizer inside.

        Returns:
            The loss at the parameters, not at the worst point.

        Raises:
            ValueError: without a closure.
        """
        evaluate = _needed(closure, "SAM", "; or call first_step() and second_step()")

        def sharp() -> Any:
            loss = evaluate()
            self.first_step()
            try:
                evaluate()
            finally:
                self.restore()
            return loss

        return self.base.step(sharp, **others)

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move the parameters to the worst point, x + e."""
        self.restore()
        moved = {p: p.grad for p in self._parameters() if p.grad is not None}
        self.here = {p: p.detach().clone() for p in moved}

        def weighed(p: Tensor, t: Tensor) -> Tensor:
            return p.abs() * t if self.adaptive else t

        up = [weighed(p, g) for p, g in moved.items()]
        length = self.rho / (_norm(up) + 1e-12)
        for p, e in zip(moved, up, strict=True):
            p.add_(weighed(p, e) * length)
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Go back to x, and take the step there with the gradients as they are now."""
        self.restore()
        self.base.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to x, exactly."""
        for p, x in self.here.items():
            p.copy_(x)
        self.here = {}


class Lookahead(Wrapper):
    """Every k steps, the weights go back part of the way to where they were k steps before.

        every k steps: s <- s + alpha (x - s), x <- s

    The state of the optimizer inside stays as it is. Slow weights s start where the parameters are
    at their first step. Zhang et al. (2019), Lookahead optimizer: k steps forward, 1 step back,
    NeurIPS, arXiv:1907.08610, algorithm 1.

    Args:
        base: any optimizer.
        k: steps between two updates of the slow weights. A whole number in [1, inf).
        alpha: share of the way that is kept. In [0, 1].

    Raises:
        HyperparameterError: for a value outside its range.
        TypeError: if ``base`` is no optimizer.
    """

    hyper = (Number("k", 5, low=1.0, whole=True), Number("alpha", 0.5, low=0.0, high=1.0))
    memory: ClassVar[Mapping[str, type]] = {"count": int, "slow": dict}
    k: int
    alpha: float
    count: int
    slow: dict[Tensor, Tensor]

    def __init__(self, base: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(base, k=k, alpha=alpha)

    def step(self, closure: Closure | None = None, **others: Any) -> Any:
        """One step of the optimizer inside; arguments and result are that step's."""
        for p in self._parameters():
            if p not in self.slow:
                self.slow[p] = p.detach().clone()
        loss = self.base.step(closure, **others)
        self.count += 1
        if self.count % self.k == 0:
            self._pull()
        return loss

    @torch.no_grad()
    def _pull(self) -> None:
        # DTensors do not know these functions; their parts do.
        fast, slow = ([part_of(t) for t in some] for some in (self.slow, self.slow.values()))
        torch._foreach_lerp_(slow, fast, self.alpha)
        torch._foreach_copy_(fast, slow)
        torch.autograd.graph.increment_version([p for p in self.slow if is_sharded(p)])


_SAMPLES = Number("samples", None, low=0.0, low_open=True, optional=True)


class Accumulate(Wrapper):
    """A step every so many batches, with the mean gradient of all their samples.

        optimizer = Accumulate(AdamW(model.parameters()), steps=8)
        for x, y in batches:
            optimizer.zero_grad()
            mean_loss(model(x), y).backward()
            optimizer.step(samples=len(x))
        optimizer.flush()

    leads where batches eight times as large lead, within rounding. Gradients are cleared at every
    batch: those that are left would be counted again. ``samples`` weighs batches of unequal size
    (samples, or tokens: what the loss is the mean over), and `flush` takes the step of a window
    that the end of the epoch cut short. The sum is kept apart from ``p.grad`` (in float32 for half
    precision), which after a step holds the mean.

    ``optimizer.window`` is empty just after a step: then is the time of a scheduler that counts
    them. To bound the norm of the mean and not of each batch, use ``clip_norm`` of the optimizer
    inside. With SAM: ``SAM(Accumulate(...))``, whose neighbourhood is each batch's own; an
    optimizer that needs a closure cannot be inside.

    Args:
        base: any optimizer whose step needs no closure.
        steps: how many batches a step is made of. A whole number in [1, inf).

    Raises:
        HyperparameterError: for a value outside its range.
        TypeError: if ``base`` is no optimizer.
    """

    hyper = (Number("steps", 1, low=1.0, whole=True),)
    memory: ClassVar[Mapping[str, type]] = {"window": tuple, "sums": dict}
    steps: int
    window: tuple[float | None, ...]  # samples of the batches since the last step
    sums: dict[Tensor, Tensor]

    def __init__(self, base: Optimizer, steps: int) -> None:
        super().__init__(base, steps=steps)

    def _dtype(self, p: Tensor) -> torch.dtype:
        return torch.promote_types(p.dtype, torch.float32)

    @torch.no_grad()
    def step(self, closure: Closure | None = None, samples: float | None = None) -> Any:
        """Take in the gradients of a batch, and after the last of a window take its step.

        Args:
            closure: evaluates this batch's loss and gradient, and returns the loss.
            samples: over how many the loss is the mean; at all batches of a window, or at none
                if they are equal. In (0, inf) or None.

        Returns:
            What the closure returned, or None.

        Raises:
            HyperparameterError: for a value outside its range.
            ValueError: if the window has batches with and without ``samples``.
        """
        _SAMPLES.check("Accumulate", samples)
        if self.window and (samples is None) != (self.window[0] is None):
            raise ValueError(
                "Accumulate: samples must be given at every step of a window or at none, "
                f"got {samples!r} after {self.window[0]!r}"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if samples is not None:
            samples = float(samples)
        weight = 1.0 if samples is None else samples
        for p in self._parameters():
            if p.grad is not None:
                if p in self.sums:
                    self.sums[p].add_(p.grad, alpha=weight)
                else:
                    self.sums[p] = self._copied(p.grad, p).mul_(weight)
        self.window = *self.window, samples
        if len(self.window) >= self.steps:
            self.flush()
        return loss

    @torch.no_grad()
    def flush(self) -> None:
        """Take the step of the window so far, if there is any batch in it."""
        if not self.window:
            return
        total = sum(1.0 if samples is None else samples for samples in self.window)
        for p, mean in self.sums.items():
            mean.div_(total)
            if p.grad is None:
                p.grad = mean.to(p.dtype)
            else:
                p.grad.copy_(mean)
        self.sums, self.window = {}, ()
        self.base.step()


class GD(Wrapper):
    """Gradient descent over the whole training set, many steps in one, as `LBFGS` takes them.

        x <- x - lr g, until ‖g‖ <= tolerance_grad or max_iter steps are done

    Cauchy (1847), Méthode générale pour la résolution des systèmes d'équations simultanées.

    Args:
        params: parameters, groups or named parameters, as torch.optim takes them.
        lr: learning rate. In [0, inf).
        max_iter: steps at most in one call. A whole number in [1, inf).
        tolerance_grad: Euclidean norm of the gradient at which to stop. In [0, inf).

    Raises:
        HyperparameterError: for a value outside its range.
    """

    hyper = (
        Number("max_iter", 20, low=1.0, whole=True),
        Number("tolerance_grad", 1e-7, low=0.0),
    )
    memory: ClassVar[Mapping[str, type]] = {"n_iter": int}
    max_iter: int
    tolerance_grad: float
    n_iter: int  # steps taken in all calls

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        max_iter: int = 20,
        tolerance_grad: float = 1e-7,
    ) -> None:
        rules.SGD.check({"lr": lr}, "GD")
        super().__init__(SGD(params, lr=lr), max_iter=max_iter, tolerance_grad=tolerance_grad)

    def step(self, closure: Closure | None = None) -> Any:
        """Descend until the gradient is small or the limit is reached.

        Args:
            closure: sets the gradients to zero, evaluates the loss of the whole training set and
                its gradient, and returns the loss.

        Returns:
            The loss at the start, as `LBFGS` returns it.

        Raises:
            ValueError: without a closure.
        """
        evaluate = torch.enable_grad()(_needed(closure, "GD"))
        first = evaluate()
        for i in range(self.max_iter):
            if i:
                evaluate()
            gradients = [p.grad for p in self._parameters() if p.grad is not None]
            if _norm(gradients) <= self.tolerance_grad:
                break
            self.base.step()
            self.n_iter += 1
        return first


def _nothing() -> None:
    pass


def _needed(closure: Closure | None, owner: str, otherwise: str = "") -> Closure:
    if closure is None:
        raise ValueError(
            f"{owner}: step() needs a closure that sets the gradients to zero, evaluates the loss "
            f"and its gradient, and returns the loss{otherwise}"
        )
    return closure


def _norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm of all of them together; half precision is summed in float32."""
    norms = [
        torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32))
        for t in (t.coalesce().values() if t.is_sparse else t for t in tensors)
    ]
    if not norms:
        return 0.0
    # One wait for an accelerator, not one a tensor.
    together = torch.stack([n.to(norms[0].device, torch.float64) for n in norms])
    return float(torch.linalg.vector_norm(together))
