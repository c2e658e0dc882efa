"""Products of few tokens with packed weights, compiled for this processor.

oneDNN's own product of one token reads packed weights at half the speed that a core can read at.
This one reads the same weights, where they are, at nearly all of it. It computes in float32 and
rounds once. It needs LLVM (the extra `fast-cpu`) and the OpenMP runtime that torch brought, whose
threads do the work. Where one of them is missing, or it says something else, oneDNN computes.
See ADR 25.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gateway.engine.memory.overhead import Overhead
from gateway.engine.weights.blocks import PAD, find_block, lies_in
from gateway.engine.weights.tasks import PRODUCT

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

HEADS_BYTES = 24 * 2**20
"""What compiling the code of one kind of heads takes at the most: 12 MB were measured."""

MOST_ROWS, MOST_ROWS_BY_DOT = 4, 128
"""Tokens of one product. Without the processor's instruction for products of pairs of bfloat16,
oneDNN is faster from there on; with it, more in one call would gain nothing. Figures:
bench/README.md."""


class Gemv:
    """The compiled code, which any thread may run. What is bound to it keeps it.

    `has_dot` tells whether it uses the processor's instruction for products of pairs of bfloat16,
    `block` how many outputs oneDNN packs together here.
    """

    def __init__(self, overhead: Overhead | None = None, *, has_dot: bool | None = None) -> None:
        """Compile: a quarter of a second. What is compiled later is counted in `overhead`;
        `has_dot` None: as the processor has it.

        Raises ImportError, AttributeError or RuntimeError where something is missing.
        """
        from llvmlite import binding, ir

        from gateway.engine.weights.gemv_code import NAME, most_tile, write_product

        self._overhead = overhead or Overhead()
        if has_dot is None:
            has_dot = bool(binding.get_host_cpu_features().get("avx512bf16"))
        self.has_dot = has_dot
        self.block = find_block()
        module = ir.Module("gemv")
        write_product(module, self.block, has_dot=has_dot)
        self._code = compile_module(module)
        self.function = self._code.get_function_address(NAME)
        self.most_rows = MOST_ROWS_BY_DOT if has_dot else MOST_ROWS
        self._most_tile = most_tile(self.block, has_dot=has_dot)
        self._task = ctypes.c_int64 * (len(PRODUCT) + 2)
        self._layers: dict[tuple[int, bool], LayerCode] = {}
        self._lock = threading.Lock()
        # What of OpenMP is in the process before all else is torch's own.
        runtime = ctypes.CDLL(None)
        self._barrier = runtime.GOMP_barrier
        self._run_team: Any = runtime.GOMP_parallel
        self._run_team.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._run_team.restype = None

    def run(self, fields: tuple[int, ...]) -> None:
        """Do a task of `gemv_code`, with as many threads as torch would use here."""
        task = self._task(*fields)
        self.run_team(self.function, ctypes.addressof(task))

    def tile(self, rows: int) -> int:
        """Return how many rows are multiplied at a time: as few tiles as may be, of like sizes."""
        tiles = -(-rows // self._most_tile)
        return -(-rows // tiles)

    def width(self, outputs: int) -> int:
        """Return how wide the rows are that a product of so many outputs writes: whole blocks."""
        return -(-outputs // self.block) * self.block

    def run_team(self, function: int, task: int) -> None:
        """Have each thread of the team call a function with the address of a task."""
        self._run_team(function, task, 0, 0)

    def layer_code(self, size: int, *, has_head_norm: bool) -> LayerCode:
        """Return the code of `layer_code.write_layer`, compiled when it is first asked for."""
        with self._lock:
            kind = size, has_head_norm
            if kind not in self._layers:
                with self._overhead.counting(HEADS_BYTES):
                    code = LayerCode(self._barrier, size, has_head_norm=has_head_norm)
                self._layers[kind] = code
            return self._layers[kind]


class HeadCode(NamedTuple):
    """The addresses of `keep` and `attend`, for keys that lie in one of two ways."""

    keep: int
    attend: int


class LayerCode:
    """The addresses of the functions of `layer_code.write_layer`, which it keeps.

    `narrow` are those for keys whose numbers lie side by side, `wide` for those whose tokens do.
    """

    def __init__(self, barrier: Any, size: int, *, has_head_norm: bool) -> None:
        """`barrier` is the function by which the threads of a team wait for each other."""
        from llvmlite import binding, ir

        from gateway.engine.weights.layer_code import write_layer

        binding.add_symbol("GOMP_barrier", ctypes.cast(barrier, ctypes.c_void_p).value)
        module = ir.Module("layer")
        write_layer(module, size, has_head_norm=has_head_norm)
        self._code = compile_module(module)
        find = self._code.get_function_address
        self.norm, self.gate, self.run = find("norm"), find("gate"), find("run")
        self.narrow, self.wide = (
            HeadCode(find(f"keep{end}"), find(f"attend{end}")) for end in ("", "_wide")
        )


class BoundGemv:
    """The product of few tokens with one packed weight, which it keeps."""

    def __init__(self, gemv: Gemv, packed: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """`packed` is what oneDNN packed of `weight`, [outputs, inputs].

        Raises ValueError where it does not lie as the code expects.
        """
        outputs, inputs = weight.shape
        if inputs % 2 or not lies_in(gemv.block, packed, weight):
            raise ValueError(f"packed weights of {outputs} x {inputs} in another layout")
        self._gemv = gemv
        self._packed = packed
        self.outputs, self.inputs, self.width = outputs, inputs, gemv.width(outputs)
        # Without a bias all blocks have the same zeros.
        self._bias = torch.zeros(gemv.block if bias is None else self.width)
        if bias is not None:
            self._bias[:outputs] = bias
        bias_step = 0 if bias is None else gemv.block * self._bias.element_size()
        self._addresses: tuple[int, int] = torch.ops.mkldnn.data_ptr(packed), self._bias.data_ptr()
        block_bytes = weight.element_size() * gemv.block * PAD * -(-inputs // PAD)
        output_bytes = self.width * weight.element_size()
        self._sizes = inputs // 2, block_bytes, bias_step, output_bytes
        self._blocks = self.width // gemv.block

    def takes(self, tensor: Tensor) -> bool:
        """Tell whether there are few enough tokens."""
        return 0 < tensor.numel() <= self._gemv.most_rows * self.inputs

    def fields(self, given: int, output: int, rows: int) -> tuple[int, ...]:
        """Return the task that has its input at `given` and writes `output`, rows of `width`."""
        tile = self._gemv.tile(rows)
        return given, *self._addresses, output, *self._sizes, rows, tile, self._blocks, 0

    def __call__(self, tensor: Tensor) -> Tensor:
        given = tensor.contiguous()
        rows = given.numel() // self.inputs
        output = given.new_empty(rows, self.width)
        self._gemv.run(self.fields(given.data_ptr(), output.data_ptr(), rows))
        if self.width != self.outputs:
            output = output[:, : self.outputs]
        return output if tensor.dim() == 2 else output.reshape(*tensor.shape[:-1], self.outputs)


def compile_module(module: Any) -> Any:
    """Return the engine of a module of `llvmlite.ir`, compiled for this processor."""
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    return engine


def find_gemv(overhead: Overhead | None = None) -> Gemv | None:
    """Return the code if this machine can compile and run it, and it is right; computes a little.

    Only for machines where oneDNN packs bfloat16.
    """
    try:
        gemv = Gemv(overhead)
        if is_right(gemv):
            return gemv
        reason = "its output differs"
    except ImportError:
        logger.info("the extra fast-cpu is not installed: one stream is slower than it could be")
        return None
    except Exception as error:  # another OpenMP runtime, another version of LLVM or oneDNN
        reason = f"{type(error).__name__}: {error}"
    logger.warning("products of few tokens are left to oneDNN: %s", reason)
    return None


@torch.inference_mode()
def is_right(gemv: Gemv) -> bool:
    """Tell whether it says what float32 says: of whole blocks and a part of one, with a bias and
    without, for each count of tokens."""
    source = torch.Generator().manual_seed(0)
    for outputs, inputs, has_bias in ((128, 512, False), (100, 518, True)):
        weight, tokens, bias = (
            torch.randn(*sizes, generator=source).bfloat16()
            for sizes in ((outputs, inputs), (gemv.most_rows, inputs), (outputs,))
        )
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        bound = BoundGemv(gemv, packed, weight, bias if has_bias else None)
        expected = tokens.float() @ weight.float().T + (bias.float() if has_bias else 0)
        for rows in range(1, gemv.most_rows + 1):
            found = bound(tokens[:rows]).float()
            if not torch.allclose(found, expected[:rows], rtol=1e-2, atol=1e-2):
                return False
    return True
