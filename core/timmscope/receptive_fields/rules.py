"""Which rule says what an operation's results depend on."""

from __future__ import annotations

from typing import Any

import torch

from timmscope.receptive_fields import elementwise_ops as moves
from timmscope.receptive_fields import reduction_ops as joins
from timmscope.receptive_fields import windows
from timmscope.receptive_fields.op import Rule

_TABLE: tuple[tuple[Rule, str], ...] = (
    (moves.elementwise, "add sub"),
    (moves.first, "hardswish native_dropout clone _to_copy lift_fresh contiguous"),
    (
        moves.constant,
        "fill zero bernoulli uniform normal empty_like zeros_like ones_like full_like rand_like "
        "randn_like new_empty new_zeros new_ones new_full new_empty_strided",
    ),
    (moves.chosen, "where masked_fill"),
    (moves.copied, "copy"),
    (moves.placed, "index_put _index_put_impl"),
    (
        moves.moved,
        "cat stack index _unsafe_index index_select gather roll flip repeat im2col _unsafe_view "
        "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle tril triu rot90 "
        "slice_scatter select_scatter diag view_copy _reshape_copy squeeze_copy expand_copy "
        "permute_copy",
    ),
    (
        moves.padded,
        "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d",
    ),
    (windows.convolution, "convolution"),
    (
        windows.pooled,
        "max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d avg_pool1d "
        "avg_pool2d avg_pool3d",
    ),
    (
        windows.adaptive,
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_max_pool2d adaptive_max_pool3d",
    ),
    (
        windows.resampled,
        "upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    ),
    (windows.folded, "col2im"),
    (
        joins.reduced,
        "sum nansum mean prod var var_mean std std_mean norm linalg_vector_norm logsumexp amax "
        "amin max min argmax argmin any all median topk",
    ),
    (joins.along, "cumsum cumprod cummax logcumsumexp sort"),
    (joins.softmax, "_softmax _safe_softmax _log_softmax"),
    (joins.layer_norm, "native_layer_norm _fused_rms_norm rms_norm"),
    (joins.group_norm, "native_group_norm"),
    (
        joins.batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "cudnn_batch_norm _batch_norm_no_update",
    ),
    (joins.product, "mm bmm mv dot addmm addmv baddbmm linear"),
    (joins.recurrent, "mkldnn_rnn_layer"),
)
_RULES = {name: rule for rule, names in _TABLE for name in names.split()}


def rule_of(name: str, function: Any) -> Rule | None:
    """The rule of an operation; what PyTorch calls pointwise needs no entry in the table."""
    if name.startswith("_scaled_dot_product"):
        return joins.attention
    if name in _RULES:
        return _RULES[name]
    return moves.elementwise if torch.Tag.pointwise in function.tags else None
