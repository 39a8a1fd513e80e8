"""Which modules of a model a similarity regulariser listens to: found, or named by the caller."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from ..nn.wrappers import clean_name, unwrap

Block: TypeAlias = tuple[str, nn.Module]
StageSpec: TypeAlias = Sequence[Sequence[str]]
StageFunction: TypeAlias = Callable[[nn.Module], Sequence[Sequence[str | nn.Module]]]

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SEARCHED = (nn.Sequential, nn.ModuleList)
_TORCH_BLOCKS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
# Lists of equal modules that stand side by side or between the stages instead of making one.
_NO_STAGE = re.compile(r"head|classifier|embed|expert|downsample", re.IGNORECASE)
_NAMES_SHOWN = 12


def module_names(model: nn.Module) -> dict[str, nn.Module]:
    """Clean name -> module, in module order; of a wrapper and what it wraps, the wrapper.

    The wrapper is the better place to listen: its hooks run outside of the compiled or
    checkpointed region.
    """
    names: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        clean = clean_name(name)
        if clean:
            names.setdefault(clean, module)
    return names


def resolve_stages(
    model: nn.Module, stages: StageSpec | StageFunction | None = None
) -> list[list[Block]]:
    """The blocks of each stage, in module order, as ``(name, module)``.

    Args:
        model: the network; wrappers around it are looked through, and names are those of the
            network inside.
        stages: ``None`` to find them (:func:`find_stages`); a list of lists of module names or
            globs, where ``*``, ``?`` and ``[...]`` match within one dotted part, as in file paths
            (``"layer1.*"`` is the blocks of layer1 and not their convolutions); or a function
            from the unwrapped model to a list of lists of modules or names.

    Returns:
        One list of blocks for each stage.

    Raises:
        TypeError: if stages has another form.
        ValueError: if nothing is found, a pattern matches nothing (close names are listed), a
            stage is empty, a module belongs to two stages, is not part of the model, or can never
            be called (ModuleList, ModuleDict).
    """
    core = unwrap(model)
    if stages is None:
        found = find_stages(core)
        if not found:
            raise ValueError(_nothing_found(core))
        return found
    chosen = stages(core) if callable(stages) else stages
    expected = 'a list of lists of module names or globs, such as [["layer1.*"], ["layer2.*"]]'
    if isinstance(chosen, str) or not isinstance(chosen, Sequence):
        raise TypeError(f"stages must be {expected}, got {type(chosen).__name__}")
    if not chosen:
        raise ValueError(f"stages is empty: expected {expected}, or None to find the blocks")
    names = module_names(core)
    position = {name: index for index, name in enumerate(names)}
    owner: dict[str, int] = {}
    result: list[list[Block]] = []
    for index, stage in enumerate(chosen):
        if isinstance(stage, str | nn.Module) or not isinstance(stage, Sequence):
            raise TypeError(
                f"stages[{index}] is {stage!r:.80}: stages must be {expected}; "
                "to make it a stage of its own, put it in a list"
            )
        picked = {name for item in stage for name in _select(item, names, index)}
        if not picked:
            raise ValueError(f"stages[{index}] is empty")
        for name in picked:
            if name in owner:
                raise ValueError(f"{name!r} belongs to stages[{owner[name]}] and stages[{index}]")
            if isinstance(names[name], _NEVER_CALLED):
                raise ValueError(
                    f"{name!r} in stages[{index}] is a {type(names[name]).__name__}, which has no "
                    f'output of its own; its children are "{name}.*"'
                )
            owner[name] = index
        result.append([(name, names[name]) for name in sorted(picked, key=position.__getitem__)])
    return result


def find_stages(model: nn.Module) -> list[list[Block]]:
    """Finds a network's residual or transformer blocks, grouped into stages.

    A stage is an nn.Sequential or nn.ModuleList in which one class of block occurs at least
    twice: ``layer1`` to ``layer4`` of a ResNet, ``blocks`` of a ViT, ``encoder.layer`` of a BERT. A
    block is a module with children that is neither a container (a Sequential has no skip
    connection) nor one of torch's own layers, except for its transformer layers. Blocks are not
    looked into; modules that only hold a stage (``ResNetStage``, a module whose ``blocks`` or
    ``layers`` are blocks) are. A container with a single block counts where other stages have the
    same class of block (ResNet-8 has one block in each of three stages).

    Args:
        model: the network, unwrapped.

    Returns:
        A list of stages in module order, each a list of ``(name, module)``; empty if there is
        none.
    """
    names = {id(module): name for name, module in module_names(model).items()}
    # By identity: a container that the model also keeps under a second name is one stage.
    stages = list({id(stage[0]): stage for stage in _stages_inside(model, "")}.values())
    classes = Counter(type(unwrap(stage[0])) for stage in stages)
    repeated = {type(unwrap(stage[0])) for stage in stages if len(stage) > 1}
    kept = [
        stage
        for stage in stages
        if type(unwrap(stage[0])) in repeated or classes[type(unwrap(stage[0]))] > 1
    ]
    return [[(names[id(block)], block) for block in stage] for stage in kept]


def _stages_inside(module: nn.Module, own_name: str) -> Iterator[list[nn.Module]]:
    module = unwrap(module)
    blocks: list[nn.Module] = []
    if isinstance(module, _SEARCHED):
        if _NO_STAGE.search(own_name):
            return
        blocks = _repeated_blocks(module)
    deeper: list[list[nn.Module]] = []
    for name, child in module.named_children():
        if len(blocks) < 2 or type(unwrap(child)) is not type(unwrap(blocks[0])):
            deeper += _stages_inside(child, name)
    if len(blocks) > 1 or (blocks and not deeper):
        yield blocks
    yield from deeper


def _repeated_blocks(container: nn.Module) -> list[nn.Module]:
    blocks = [child for child in container.children() if _is_block(unwrap(child))]
    if not blocks:
        return []
    (block_class, _), *_ = Counter(type(unwrap(block)) for block in blocks).most_common(1)
    return [block for block in blocks if type(unwrap(block)) is block_class]


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, _TORCH_BLOCKS):
        return True
    if isinstance(module, _CONTAINERS) or type(module).__module__.startswith("torch.nn."):
        return False
    return any(True for _ in module.children()) and not _holds_a_stage(module)


def _holds_a_stage(module: nn.Module) -> bool:
    if "stage" in type(module).__name__.lower():
        return True
    held = (getattr(module, name, None) for name in ("blocks", "layers"))
    return any(
        isinstance(inner, _SEARCHED) and any(_is_block(unwrap(child)) for child in inner.children())
        for inner in held
    )


def _select(item: str | nn.Module, names: dict[str, nn.Module], stage: int) -> list[str]:
    if isinstance(item, nn.Module):
        inner = unwrap(item)
        matches = [name for name, module in names.items() if unwrap(module) is inner]
        if not matches:
            raise ValueError(
                f"stages[{stage}] holds a {type(item).__name__} that is no part of the model"
            )
        return matches[:1]
    if not isinstance(item, str):
        raise TypeError(
            f"stages[{stage}] holds {item!r:.80}: expected the name of a module, a glob, or "
            "(from a function) a module"
        )
    pattern = clean_name(item)
    matches = [name for name in names if _matches(name, pattern)]
    if not matches:  # a name copied from a DataParallel or DDP model
        bare = pattern.removeprefix("module.")
        matches = [name for name in names if _matches(name, bare)]
    if not matches:
        close = difflib.get_close_matches(item, names, n=4, cutoff=0.4)
        hint = f"close names: {', '.join(close)}" if close else f"it has {_shorten(list(names))}"
        raise ValueError(f"{item!r} in stages[{stage}] matches no module of the model; {hint}")
    return matches


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _shorten(names: list[str]) -> str:
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _nothing_found(model: nn.Module) -> str:
    children = [clean_name(name) for name, _ in model.named_children()]
    return (
        f"no residual or transformer blocks were found in {type(model).__name__}: looked for an "
        "nn.Sequential or nn.ModuleList that holds at least two blocks (modules with children) "
        'of one class. Name them with stages, for example stages=[["encoder.*"], ["a", "b"]]: '
        "lists of module names or globs, one list for each stage. "
        f"The model's children are: {_shorten(children) or 'none'}"
    )
