"""Attention by kernels of the accelerators' makers: cuDNN on NVIDIA GPUs, splash attention (Pallas) on TPUs.

Both compute softmax(Q Kᵀ / √c) V of whole groups of tokens, without mask, bias and dropout, and never hold the n x n
weights. Neither runs on CPUs; what is lacking elsewhere, `cudnn_takes` and `flash_takes` say.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

Heads = Float[Array, 'b heads n c']

# Side of the blocks that splash attention works on: whole vector registers (128 lanes), and five of the largest
# float32 blocks, as the backward pass has them, within half of the 16 MiB that a kernel may use.
LANES = 128
BLOCKS = (256, 384, 512, 640)


def cudnn(query: Heads, key: Heads, value: Heads) -> Heads:
    """Attention by cuDNN's fused kernel, forward and backward (`jax.nn.dot_product_attention`).

    On several GPUs it runs on each one's part of the batch.

    Args:
        query: Queries `[b heads n c]`, float16 or bfloat16, any n.
        key: Keys, same shape and dtype.
        value: Values, same shape and dtype.

    Returns:
        The mixed values `[b heads n c]`, in the dtype given; softmax statistics are float32.

    Raises:
        ValueError: Where `cudnn_takes` has a reason against the dtype or the size of heads.
    """
    if reason := _not_for_cudnn(query.shape[-1], query.dtype):
        raise ValueError(f'attention by cuDNN: {reason}')
    batch, _, tokens, _ = query.shape
    # Of an odd number of tokens jax (0.10) refuses the backward pass: one more then, which the lengths leave out.
    odd = tokens % 2
    lengths = jnp.full(batch, tokens, jnp.int32) if odd else None

    def tokens_first(part: Heads) -> Array:
        # The kernel's layout, and that in which the projections compute: XLA removes the transposes of both.
        return jnp.pad(rearrange(part, 'b heads n c -> b n heads c'), ((0, 0), (0, odd), (0, 0), (0, 0)))

    mixed = jax.nn.dot_product_attention(
        *(tokens_first(part) for part in (query, key, value)),
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation='cudnn',
    )
    return rearrange(mixed[:, :tokens], 'b n heads c -> b heads n c')


def cudnn_takes(shape: tuple[Any, ...], dtype: Any, device: Any = None) -> str:
    """Returns why cuDNN would not do an attention, '' if it would.

    Args:
        shape: Of the queries, `(b, heads, n, c)`.
        dtype: Of the queries.
        device: Where it is to run; by default where jax computes.
    """
    device = device or default_device()
    # AMD's GPUs name another kind of capability ('gfx90a').
    version = re.fullmatch(r'(\d+)\.(\d+)', getattr(device, 'compute_capability', ''))
    if device.platform != 'gpu' or not version:
        return f'it needs an NVIDIA GPU, and this is {_name(device)}'
    capability = int(version[1]), int(version[2])
    if capability < (8, 0):
        return f'it needs an NVIDIA GPU of compute capability 8.0 (Ampere), and this has {version[0]}'
    return _not_for_cudnn(shape[-1], dtype, largest=256 if capability >= (9, 0) else 128)


def _not_for_cudnn(per_head: int, dtype: Any, largest: int = 256) -> str:
    if jnp.dtype(dtype) not in (jnp.float16, jnp.bfloat16):
        return f'it needs 16-bit numbers (model.dtype=bfloat16), not {jnp.dtype(dtype)}'
    if per_head % 8 or per_head > largest:
        return f'it needs heads of a multiple of 8 numbers, at most {largest} on this GPU, not of {per_head}'
    return ''


def flash(query: Heads, key: Heads, value: Heads) -> Heads:
    """Attention by the splash-attention kernel of jax, forward and backward (Dao et al. 2022, by blocks).

    Tokens are padded to whole blocks; the padding is a segment of its own, which no token attends to. On several
    devices it runs on each one's part of the batch, by the mesh that is in use (`jax.set_mesh`).

    Args:
        query: Queries `[b heads n c]`, float32 or bfloat16, any n and c.
        key: Keys, same shape and dtype.
        value: Values, same shape and dtype.

    Returns:
        The mixed values `[b heads n c]`, in the dtype given; softmax statistics and sums are float32.

    Raises:
        ValueError: Where `flash_takes` has a reason against the dtype.
    """
    if reason := _not_for_flash(query.dtype):
        raise ValueError(f'attention by the TPU kernel: {reason}')
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _splash(query, key, value)
    # XLA cannot split a kernel by itself. Whatever does not divide (the single clip of initialisation) is done whole
    # by every device.
    batch = P(mesh.axis_names) if query.shape[0] % mesh.size == 0 else P()
    split = jax.shard_map(_splash, in_specs=batch, out_specs=batch, check_vma=False)
    return split(query, key, value)


def flash_takes(shape: tuple[Any, ...], dtype: Any, device: Any = None) -> str:
    """Returns why the TPU kernel would not do an attention, '' if it would.

    Args:
        shape: Of the queries, `(b, heads, n, c)`; any will do.
        dtype: Of the queries.
        device: Where it is to run; by default where jax computes.
    """
    device = device or default_device()
    if device.platform != 'tpu':
        return f'it needs a TPU, and this is {_name(device)}'
    if jax.device_count() > 1 and jax.sharding.get_abstract_mesh().empty:
        return f'on {jax.device_count()} devices it needs a mesh in use (jax.set_mesh), to split the batch'
    return _not_for_flash(dtype)


def _not_for_flash(dtype: Any) -> str:
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        return f'it needs float32 or bfloat16, not {jnp.dtype(dtype)}'
    return ''


def padded_tokens(tokens: int) -> tuple[int, int]:
    """Returns to how many tokens the TPU kernel pads, and the side of its blocks, a divisor of that.

    The blocks are those with the least padding, of these the largest; one block if all tokens fit into the smallest.
    """
    if tokens <= BLOCKS[0]:
        whole = LANES * math.ceil(tokens / LANES)
        return whole, whole
    return min(
        ((block * math.ceil(tokens / block), block) for block in BLOCKS),
        key=lambda choice: (choice[0], -choice[1]),
    )


def _splash(query: Heads, key: Heads, value: Heads) -> Heads:
    """Runs the kernel on one device."""
    # Imported here, since it takes a second and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, heads, tokens, per_head = query.shape
    padded, block = padded_tokens(tokens)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((padded, padded))] * batch * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
    )
    padding = (jnp.arange(padded) >= tokens).astype(jnp.int32)
    segments = splash.SegmentIds(q=padding, kv=padding) if padded > tokens else None

    def whole_blocks(part: Heads) -> Array:
        # Examples are as far from one another as heads are: no axis of their own.
        return rearrange(
            jnp.pad(part, ((0, 0), (0, 0), (0, padded - tokens), (0, 0))), 'b heads n c -> (b heads) n c'
        )

    parts = [whole_blocks(part) for part in (query / math.sqrt(per_head), key, value)]
    mixed = kernel(*parts, segment_ids=segments)
    return rearrange(mixed, '(b heads) n c -> b heads n c', b=batch)[:, :, :tokens]


def default_device() -> Any:
    """Returns where jax computes: on the device of `jax.default_device`, else on its first."""
    chosen: Any = jax.config.values['jax_default_device']
    return jax.devices(chosen)[0] if chosen is None or isinstance(chosen, str) else chosen


def _name(device: Any) -> str:
    return f'{device.platform} ({device.device_kind})'
