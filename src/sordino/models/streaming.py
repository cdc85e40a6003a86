"""A model's weights, read from its files one part at a time, for models that memory cannot hold.

The module tree is on torch's "meta" device, where tensors have a shape and no values. A *part* of
it is brought into memory when it is needed and released when another is: a decoder layer, by its
index; `INPUT`, what the decoder has outside of its layers (embeddings, norms); or `OUTPUT`, what
turns the last hidden state into logits. The next part can be read in the background.
Transformers' own tables translate names, shapes and dtypes from the files to the model.

Files are read and never mapped: a mapping counts in full towards a limit on address space.
"""

import copy
import ctypes
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sordino.errors import UserError
from sordino.models.calls import quiet_transformers
from sordino.models.checkpoint import refuse_not_finite, refuse_unfit
from sordino.models.dtypes import torch_dtype
from sordino.models.reference import ModelRef
from sordino.models.safetensors_header import Stored, read_header
from sordino.models.sites import decoder_layers, decoder_of
from sordino.models.transformers_internals import Conversions, finish_loading, load_tensors

Part = int
INPUT: Part = -1
OUTPUT: Part = -2

_READERS = 4  # how many tensors transformers reads at a time
_MADE_UP = 65_521  # random values before they repeat: a prime, so that a matrix's rows differ


class StoredTensors:
    """The tensors of a model's safetensors files, none of them read yet.

    Raises:
        UserError: A file is damaged, or holds a tensor of an unknown type.
    """

    def __init__(self, ref: ModelRef) -> None:
        self._places: dict[str, tuple[Path, Stored]] = {}
        for path in ref.weight_files:
            self._places |= {name: (path, stored) for name, stored in read_header(path).items()}
        self.empty = {name: self._describe(name) for name in self._places}

    def _describe(self, name: str) -> Tensor:
        _, stored = self._places[name]
        dtype = torch_dtype(stored.dtype, name)
        return torch.empty(stored.shape, dtype=dtype, device="meta")

    def __getitem__(self, name: str) -> "Unread":
        """A tensor that is read when it is indexed, as transformers' loader does."""
        path, stored = self._places[name]
        return Unread(path, stored.start, self.empty[name])

    @property
    def dtype(self) -> torch.dtype:
        """The first floating dtype: transformers' choice where the configuration has none."""
        floating = (t.dtype for t in self.empty.values() if t.is_floating_point())
        return next(floating, torch.float32)


@dataclass(frozen=True)
class Unread:
    """A tensor in a file.

    Args:
        path: The file.
        start: Its first byte there.
        form: Its shape and dtype, on the "meta" device.
    """

    path: Path
    start: int
    form: Tensor

    def __getitem__(self, index: Any) -> Tensor:
        """Read the tensor, and return that part of it.

        Raises:
            OSError: The file cannot be read, or has become shorter.
        """
        data = torch.empty(self.form.nbytes, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            rest = data.numpy().data
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise OSError(f"{self.path} ends too early")
                rest = rest[count:]
        return data.view(self.form.dtype).view(self.form.shape)[index]


class StreamedWeights:
    """The weights of a model, of which one part is in memory (and the next is being read).

    Args:
        ref: The model.
        stored: The tensors in its files.
        model: Its module tree on the "meta" device, in the dtype wanted. Buffers that are in no
            file get their values here.
        device: The device to which parts are brought.

    Raises:
        UserError: The files do not hold exactly the model's weights.
    """

    def __init__(
        self, ref: ModelRef, stored: StoredTensors, model: PreTrainedModel, device: torch.device
    ) -> None:
        self.device = device
        self._ref, self._stored, self._model = ref, stored, model
        self._conversions = Conversions(model)
        # A thread loads parts into a second tree, from which the model gets them.
        self._vessel = copy.deepcopy(model)
        self._finish_model()
        self._empty = {name: tensor for name, tensor in _tensors(model) if tensor.is_meta}
        self._parameters = self._parts()
        self._names, self._converted = self._sources()
        buffers = {name for name, _ in model.named_buffers()}
        self._constants = [name for name in stored.empty if name in buffers]
        self._reader = ThreadPoolExecutor(1, "sordino-weights")
        self._coming: tuple[Part, Future[dict[str, Tensor]]] | None = None
        self._held: Part | None = None
        self._pretending = False

    @property
    def layers(self) -> int:
        """The number of decoder layers."""
        return sum(part >= 0 for part in self._parameters)

    def hold(self, part: Part, then: Part | None = None) -> None:
        """Bring a part into memory, and release the one that is there.

        Args:
            part: The part that is needed now.
            then: The part that will be needed next; it is read in the background.

        Raises:
            UserError: The files cannot be read.
        """
        if self._pretending:
            return
        if part != self._held:
            self.release()
            loaded = self._read_ahead(part).result()
            self._install(loaded)
            self._coming, self._held = None, part
        if then is not None:
            self._read_ahead(then)

    def release(self) -> None:
        """Release the part that is in memory."""
        if self._held is not None:
            self._install({name: self._empty[name] for name in self._parameters[self._held]})
            self._held = None
            _give_back()

    @contextmanager
    def make_up(self) -> Iterator[None]:
        """Inside the block every layer has random weights, all in the memory of one matrix.

        Buffers that are in the files have their own values.

        All layers can then run, although no two of them might fit into memory, to find out how they
        are called, which does not depend on weights. No part is read inside the block; `INPUT` or
        `OUTPUT` has to be in memory already.
        """
        if self._pretending:
            yield
            return
        if self._held not in (INPUT, OUTPUT):
            raise ValueError("make_up() needs INPUT or OUTPUT in memory")
        names = [name for part in range(self.layers) for name in self._parameters[part]]
        empty = {name: self._empty[name] for name in names}
        # Constants, such as the decay of MiniMax's attention, have to make sense.
        known = [name for name in self._constants if name in empty]
        constants = self._reader.submit(self._load, known).result() if known else {}
        made_up = {name: tensor for name, tensor in empty.items() if name not in constants}
        self._install(_make_up(made_up, self._model, self.device) | constants)
        self._pretending = True
        try:
            yield
        finally:
            self._pretending = False
            self._install(empty)

    @contextmanager
    def bring_when_called(self) -> Iterator[None]:
        """Inside the block the model's ordinary forward runs: each module brings its part.

        One forward reads all weights once, however many texts pass, so batches should be large.
        """
        _, layers = decoder_layers(self._model)
        inside = {module for layer in layers for module in layer.modules()}
        with ExitStack() as hooks:

            def before(module: nn.Module, bring: Callable[..., None]) -> None:
                hooks.callback(module.register_forward_pre_hook(bring).remove)

            for index, layer in enumerate(layers):
                before(layer, partial(self._bring_layer, index))
            for path, module in self._model.named_modules(remove_duplicate=False):
                leaves = [name for name, _ in _tensors(module) if "." not in name]
                names = self._empty.keys() & {f"{path}.{leaf}".lstrip(".") for leaf in leaves}
                if module not in inside and names:
                    before(module, partial(self._bring_other, min(names)))
            yield

    def _bring_layer(self, index: Part, *_: Any) -> None:
        self.hold(index, then=index + 1 if index + 1 < self.layers else INPUT)

    def _bring_other(self, name: str, *_: Any) -> None:
        """Bring what a module outside of the layers needs: it is called before or after them.

        `INPUT` and `OUTPUT` can both be large, so neither is read while the other is there.
        """
        if self._held is not None and name in self._parameters[self._held]:
            return
        if name not in self._parameters[INPUT]:
            self.hold(OUTPUT)
        else:
            after = self._held == self.layers - 1
            self.hold(INPUT, then=None if after else 0)

    def resident(self, *parts: Part) -> int:
        """Bytes that these parts take together in memory."""
        names = chain.from_iterable(self._parameters[part] for part in parts)
        # A shared tensor counts once.
        return sum({id(self._empty[n]): self._empty[n].nbytes for n in names}.values())

    def stored(self, part: Part) -> int:
        """Bytes that are read from files to bring the part into memory."""
        return sum(self._stored.empty[name].nbytes for name in self._names[part])

    @property
    def scratch(self) -> int:
        """The most bytes that reading a part takes temporarily, beside the part itself."""
        recast = 0
        for names in self._names.values():
            tensors = [self._stored.empty[name] for name in names]
            sizes = sorted(t.nbytes for t in tensors if t.dtype != self._model.dtype)
            recast = max(recast, sum(sizes[-_READERS:]))
        # A merged tensor is in memory as it was read, as parts of the whole, and whole.
        merged = max((self._empty[name].nbytes for name in self._converted), default=0)
        return recast + 2 * merged

    def _finish_model(self) -> None:
        """Do what `from_pretrained` does before reading: check names, tie weights, fill buffers."""
        refuse_unfit(self._ref.name, self._model, self._stored.empty)
        with quiet_transformers():
            finish_loading(self._model, self._stored.empty, self._conversions, self.device)
        self._model.eval()

    def _parts(self) -> dict[Part, list[str]]:
        """The names of each part's weights, shared ones included."""
        stack, layers = decoder_layers(self._model)
        decoder = {id(tensor) for _, tensor in _tensors(decoder_of(self._model))}
        head = self._model.get_output_embeddings()
        # Without a module of its own, the head may be the embeddings.
        embeddings = _ids(self._model.get_input_embeddings()) - _ids(head) if head else set()
        parts: dict[Part, list[str]] = {part: [] for part in (*range(len(layers)), INPUT, OUTPUT)}
        for name, tensor in self._empty.items():
            if name.startswith(f"{stack}."):
                parts[int(name.removeprefix(f"{stack}.").split(".")[0])].append(name)
                continue
            if id(tensor) in decoder:
                parts[INPUT].append(name)
            if id(tensor) not in embeddings:
                parts[OUTPUT].append(name)
        return parts

    def _sources(self) -> tuple[dict[Part, list[str]], set[str]]:
        """The names in the files by part, and the weights that are converted while loading."""
        found: defaultdict[int, list[str]] = defaultdict(list)
        converted: set[str] = set()
        for name, (target, operations) in self._conversions.place(self._stored.empty).items():
            if target in self._empty:
                found[id(self._empty[target])].append(name)
                converted |= {target} if operations else set()
        names = {
            part: list(
                chain.from_iterable(found[key] for key in {id(self._empty[n]): n for n in weights})
            )
            for part, weights in self._parameters.items()
        }
        return names, converted

    def _read_ahead(self, part: Part) -> Future[dict[str, Tensor]]:
        """The part that is being read; reading starts if it has not yet."""
        if self._coming is None or self._coming[0] != part:
            self._coming = None  # frees a part that was read in vain
            self._coming = part, self._reader.submit(self._read, part)
        return self._coming[1]

    def _read(self, part: Part) -> dict[str, Tensor]:
        """A part's weights by name, read from the files."""
        loaded = self._load(self._names[part])
        values = {id(self._empty[n]): tensor.requires_grad_(False) for n, tensor in loaded.items()}
        if lacking := [n for n in self._parameters[part] if id(self._empty[n]) not in values]:
            raise self._needs_others(lacking[0])
        found_values = {name: values[id(self._empty[name])] for name in self._parameters[part]}
        refuse_not_finite(
            self._ref.name, found_values.items(), "its files are damaged, get them again"
        )
        return found_values

    def _load(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What the model gets, by its names, from tensors by their names in the files."""
        try:
            with quiet_transformers():
                tensors = {name: self._stored[name] for name in names}
                found = load_tensors(self._vessel, tensors, self._conversions, self.device)
        except OSError as error:
            raise UserError(
                f"The weights of {self._ref.name} could not be read ({error}): check that its "
                "files are complete, and run the same command again."
            ) from None
        loaded = {name: tensor for name, tensor in _tensors(self._vessel) if not tensor.is_meta}
        for name in loaded:
            _put(self._vessel, name, self._empty[name])
        if found.failed:
            raise self._needs_others(next(iter(found.failed)))
        return loaded

    def _needs_others(self, name: str) -> UserError:
        return UserError(
            f"{name} of {self._ref.name} cannot be read without other layers: use a machine whose "
            "memory holds the whole model, with `stream=False`."
        )

    def _install(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            _put(self._model, name, tensor)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers by name, shared ones by each of their names."""
    return chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )


def _ids(module: nn.Module) -> set[int]:
    return {id(tensor) for _, tensor in _tensors(module)}


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    places: Any = module._parameters if leaf in module._parameters else module._buffers
    places[leaf] = tensor


def _make_up(
    weights: Mapping[str, Tensor], model: PreTrainedModel, device: torch.device
) -> dict[str, Tensor]:
    """Random weights of these shapes, views of few tensors; matrices keep sizes, norms are ≈ 1."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(_MADE_UP, generator=generator)
    width = model.config.get_text_config(decoder=True).hidden_size
    sizes: defaultdict[tuple[bool, torch.dtype], int] = defaultdict(int)
    for weight in weights.values():
        kind = weight.dim() > 1, weight.dtype
        sizes[kind] = max(sizes[kind], weight.numel())
    pools = {
        (matrix, dtype): (values / width**0.5 if matrix else 1 + values / 10)
        .to(device, dtype)
        .repeat(-(-size // _MADE_UP))
        for (matrix, dtype), size in sizes.items()
    }
    return {
        name: nn.Parameter(
            pools[weight.dim() > 1, weight.dtype][: weight.numel()].view(weight.shape),
            requires_grad=False,
        )
        for name, weight in weights.items()
    }


def _give_back() -> None:
    """Have the C library return free memory: reading threads leave holes that nothing fills."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
