"""A module that runs compiled as one whole, and as plain Python where it cannot."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, wraps
from pathlib import Path
from types import new_class
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_map_only

from thalweg.files import whole
from thalweg.tasks.blame import first_line, is_own, raised
from thalweg.train.arguments import FitError

__all__ = ["Hybrid", "hybridize", "load_exported"]


class _Compiled:
    """How a hybrid module runs.

    Attributes:
        reason: why it runs as plain Python; None while it runs compiled.
        kinds: shapes and types of the tensors it was called with last.
        example: those arguments, positional and by name, with tensors that have no data.
    """

    def __init__(self) -> None:
        self.run: Callable[..., Any] | None = None
        self.reason: str | None = None
        self.kinds: list[tuple[torch.Size, torch.dtype]] = []
        self.example: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "run": None}  # code stays here; a copy compiles its own

    def see(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember what the arguments are like."""
        kinds = [(t.shape, t.dtype) for t in _tensors((args, kwargs))]
        if kinds != self.kinds or self.example is None:
            self.kinds = kinds
            self.example = tree_map_only(
                Tensor, lambda t: torch.empty_like(t, device="meta"), (args, kwargs)
            )

    def __call__(
        self,
        plain: Callable[..., Any],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """What the module makes of its arguments, compiled if that can be."""
        first = self.run is None and self.reason is None
        if first and (missing := _missing(module)):
            self._give_up(module, missing)
        if self.reason is not None:
            return plain(module, *args, **kwargs)
        if self.run is None:
            self.run = _compiled(plain)
        try:
            with _quiet() if first else nullcontext():
                return self.run(module, *args, **kwargs)
        except _failures() as error:
            failure = error
        # Nothing of it has run. If plain Python raises too, the mistake is not the compiler's.
        outputs = plain(module, *args, **kwargs)
        self._give_up(module, _why(failure))
        return outputs

    def _give_up(self, module: nn.Module, reason: str) -> None:
        self.reason = reason
        name = type(module).__name__.removeprefix(_PREFIX)
        warnings.warn(f"hybridize: {name} runs as plain Python: {reason}", stacklevel=6)


_PREFIX = "Hybrid"


class Hybrid(nn.Module):
    """What `hybridize` makes of a module, which stays of its own class too."""

    _plain: type[nn.Module]
    _hybrid: _Compiled | None = None

    @property
    def reason(self) -> str | None:
        """Why it runs as plain Python; None while it runs compiled, or was not called yet."""
        return None if self._hybrid is None else self._hybrid.reason

    def export(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write the module as it is in evaluation, for batches of any size, by `torch.export`.

        `load_exported` reads it, as does `torch.export.load`, in a process that knows nothing of
        the module's class. What stood at ``path`` is replaced when all is written.

        Args:
            path: of the file, which usually ends in ``.pt2``.
            *args: inputs as the module takes them, of any batch; by default of the shapes and
                types that it was called with last. Of a tensor whose first dimension is as long
                as that of the first, it is the batch.
            **kwargs: the same by name.

        Raises:
            FitError: if there are no inputs to go by, or the module cannot be exported; the message
                says where.
            OSError: if the file cannot be written.
        """
        if not args and not kwargs:
            if self._hybrid is None or self._hybrid.example is None:
                raise FitError(
                    "inputs",
                    "the module has not been called yet, so that nothing is known of its inputs; "
                    "call it once, or give a batch: export(path, x)",
                )
            args, kwargs = self._hybrid.example
        program = _exported(self, args, kwargs)
        with whole(path) as temporary, temporary.open("wb") as file:
            torch.export.save(program, file)

    def __reduce__(self) -> Any:
        # The class is made here, and found by its name nowhere.
        return _hybrid, (self._plain,), self.__dict__


def hybridize(model: nn.Module, active: bool = True) -> nn.Module:
    """Compile a module's forward pass as one whole, in place.

    It stays the same object, of its own class, with its parameters, buffers, names in
    ``state_dict``, modes and hooks, and can be copied, moved, wrapped in DistributedDataParallel
    and trained by any optimizer. It is compiled when it is first called in training, and again in
    evaluation, each for batches of that size, whose code is the fastest; when another size comes,
    a last one that is smaller say, it is compiled once more for all sizes (some operations want
    code of their own for a few samples, or for one). It is compiled anew when something changes
    that was taken as fixed: a dtype, a hook, a module's setting.

    Outputs and gradients are those of plain Python within rounding, random numbers included.
    Compiled code has no gradients of gradients: asking for them raises torch's RuntimeError; make
    the module plain again for these.

    Where no compiler is found, or the code cannot be compiled as one whole (it prints, leaves
    PyTorch, or takes a branch by the value of a tensor), the module runs as plain Python from
    then on; a warning says so once, and `Hybrid.reason` why. A try that fails leaves buffers and
    random states as they were.

    Args:
        model: any module whose class has a ``forward``.
        active: False makes the module plain again.

    Returns:
        The module itself; while active a `Hybrid`.

    Raises:
        FitError: for what is no module, or is wrapped or compiled already.
    """
    own: Any = model
    if isinstance(model, Hybrid) and not active:
        own.__class__ = model._plain
        del own._hybrid
    if isinstance(model, Hybrid) or not active:
        return model
    _check(model)
    import torch._dynamo
    import torch._functorch.config

    # Else hooks that are added later would not be called, and no graph could be kept for a second
    # backward pass.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    torch._functorch.config.donated_buffer = False
    own.__class__ = _class(own.__class__)
    own._hybrid = _Compiled()
    return model


def load_exported(path: str | Path) -> nn.Module:
    """A module that `Hybrid.export` wrote, to be called as it was.

    `torch.export.load` may run code that such a file holds: read those alone whose origin you know.

    Args:
        path: of the file.

    Raises:
        FitError: for a file that is none of `torch.export`.
        OSError: if it cannot be read.
    """
    with Path(path).open("rb") as file:
        try:
            return torch.export.load(file).module()
        except Exception as error:
            raise FitError(
                "path", f"{path} is no module that was exported: {first_line(error)}"
            ) from error


def _check(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise FitError("model", f"must be a torch.nn.Module, got {type(model).__name__}")
    kind = type(model).__name__
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise FitError("model", f"hybridize what is inside first: {kind}(hybridize(model))")
    if isinstance(model, torch.jit.ScriptModule | torch._dynamo.OptimizedModule) or (
        model._compiled_call_impl is not None
    ):
        raise FitError("model", f"the {kind} is compiled already; give the module as it was before")
    if type(model).forward is nn.Module.forward:
        raise FitError("model", f"this {kind} has no forward; hybridize what is called")
    if "forward" in vars(model):
        raise FitError(
            "model",
            f"the forward of this {kind} was replaced on the object; give the module as it was "
            "before, and let what replaced it (Accelerate's prepare, say) take the hybrid one",
        )


@cache
def _class(plain: Any) -> type[Hybrid]:
    """The hybrid class of a module's own."""
    of_plain = plain.forward

    @wraps(of_plain)
    def forward(self: Hybrid, *args: Any, **kwargs: Any) -> Any:
        compiled = self._hybrid
        # Slices of an nn.Sequential are made of its class, and are not hybrid.
        if compiled is None or _is_watched():
            return of_plain(self, *args, **kwargs)
        compiled.see(args, kwargs)
        return compiled(of_plain, self, args, kwargs)

    body = {"_plain": plain, "forward": forward, "__module__": plain.__module__}
    name = _PREFIX + plain.__name__
    return new_class(name, (Hybrid, plain), exec_body=lambda space: space.update(body))


def _is_watched() -> bool:
    """Whether a compiler traces this already, or vmap or grad of `torch.func` does."""
    inside: Any = torch._C._functorch
    return torch.compiler.is_compiling() or inside.maybe_current_level() is not None


def _hybrid(plain: Any) -> Hybrid:
    kind = _class(plain)
    return kind.__new__(kind)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    # Of its own, or all nn.Sequentials would share the few compilations that one function may have.
    compile: Any = torch.compile
    found: Callable[..., Any] = compile(
        plain, fullgraph=True, backend=_inductor, isolate_recompiles=True
    )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings, which tell of its own deprecations, and of what it cannot trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _inductor(graph: Any, inputs: Any) -> Any:
    """Inductor, with random numbers as without it, and the backward pass compiled right away.

    Torch compiles that when it is first needed, where nothing could return to plain Python.
    """
    with _quiet():
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx

        with config.patch(force_non_lazy_backward_lowering=True):
            return compile_fx(graph, inputs, config_patches={"fallback_random": True})


@cache
def _failures() -> tuple[type[Exception], ...]:
    """What is raised while a module is compiled, and never by what was."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


def _missing(module: nn.Module) -> str | None:
    """What there has to be to compile for the module's devices and is not."""
    devices = {t.device.type for t in (*module.parameters(), *module.buffers())}
    if "cuda" in devices:
        from torch.utils._triton import has_triton

        if not has_triton():
            return "there is no Triton that compiles for this GPU; install triton"
    if "cpu" in devices or not devices:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, OSError, RuntimeError):
            return "no C++ compiler is found; install g++, or say in CXX which there is"
    return None


def _why(error: Exception) -> str:
    """The reason that an error gives, with the line of a person's own code."""
    from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

    if isinstance(error, FailOnRecompileLimitHit):
        return "it would be compiled ever again, as something else changes with every call"
    if isinstance(error, BackendCompilerFailed):
        return f"the compiler failed with {first_line(error.inner_exception)}"
    said = [line.strip() for line in str(error).splitlines()]
    explained = [s.removeprefix("Explanation: ") for s in said if s.startswith("Explanation: ")]
    reason = " ".join([said[0], *explained[:1]]) if said else type(error).__name__
    own = [frame for frame in getattr(error, "real_stack", None) or () if is_own(frame.filename)]
    if own:
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}, `{own[-1].line}`"
        reason = f"{reason.rstrip('.')}, at {where}"
    return reason


def _exported(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The program of a module in evaluation, whose batch may have any size."""
    batch = next((len(t) for t in _tensors([args, kwargs]) if t.ndim), None)
    device = next((t.device for t in (*module.parameters(), *module.buffers())), "cpu")

    # Of one sample torch would take it that there is never more than one.
    several: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]

    def example(t: Tensor) -> Tensor:
        if t.ndim == 0 or len(t) != batch:
            return torch.zeros(t.shape, dtype=t.dtype, device=device)
        made = torch.zeros(max(batch, 2), *t.shape[1:], dtype=t.dtype, device=device)
        several[made] = {0: torch.export.Dim.DYNAMIC}
        return made

    args, kwargs = tree_map_only(Tensor, example, (args, kwargs))
    modes = [(part, part.training) for part in module.modules()]
    kind, module.__class__ = module.__class__, module._plain
    try:
        module.eval()
        with _quiet():
            return torch.export.export(module, args, kwargs, dynamic_shapes=several)
    except Exception as error:
        raise FitError("model", f"cannot be exported: {raised(error)}") from error
    finally:
        module.__class__ = kind
        for part, mode in modes:
            part.training = mode
