"""A table of which rule computes the dependency boxes of which operation."""

from __future__ import annotations

from typing import Any

import torch

from timmscope.receptive_fields import elementwise_ops, reduction_ops, windows
from timmscope.receptive_fields.op import Rule

_TABLE: tuple[tuple[Rule, str], ...] = (
    (elementwise_ops.elementwise, "add sub"),
    (
        elementwise_ops.first_input,
        "hardswish native_dropout clone _to_copy lift_fresh contiguous",
    ),
    (
        elementwise_ops.constant,
        "fill zero bernoulli uniform normal empty_like zeros_like ones_like full_like rand_like "
        "randn_like new_empty new_zeros new_ones new_full new_empty_strided",
    ),
    (elementwise_ops.select, "where masked_fill"),
    (elementwise_ops.copy, "copy"),
    (elementwise_ops.index_put, "index_put _index_put_impl"),
    (
        elementwise_ops.rearrange,
        "cat stack index _unsafe_index index_select gather roll flip repeat im2col _unsafe_view "
        "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle tril triu rot90 "
        "slice_scatter select_scatter diag view_copy _reshape_copy squeeze_copy expand_copy "
        "permute_copy",
    ),
    (
        elementwise_ops.pad,
        "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
        "replication_pad2d replication_pad3d",
    ),
    (windows.convolution, "convolution"),
    (
        windows.pooling,
        "max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d avg_pool1d "
        "avg_pool2d avg_pool3d",
    ),
    (
        windows.adaptive_pooling,
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_max_pool2d adaptive_max_pool3d",
    ),
    (
        windows.interpolation,
        "upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    ),
    (windows.col2im, "col2im"),
    (
        reduction_ops.reduction,
        "sum nansum mean prod var var_mean std std_mean norm linalg_vector_norm logsumexp amax "
        "amin max min argmax argmin any all median topk",
    ),
    (reduction_ops.scan, "cumsum cumprod cummax logcumsumexp sort"),
    (reduction_ops.softmax, "_softmax _safe_softmax _log_softmax"),
    (reduction_ops.layer_norm, "native_layer_norm _fused_rms_norm rms_norm"),
    (reduction_ops.group_norm, "native_group_norm"),
    (
        reduction_ops.batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "cudnn_batch_norm _batch_norm_no_update",
    ),
    (reduction_ops.matmul, "mm bmm mv dot addmm addmv baddbmm linear"),
    (reduction_ops.recurrent, "mkldnn_rnn_layer"),
)
_RULES = {name: rule for rule, names in _TABLE for name in names.split()}


def rule_of(name: str, function: Any) -> Rule | None:
    """Return an operation's rule, or None; operations tagged as pointwise need no entry."""
    if name.startswith("_scaled_dot_product"):
        return reduction_ops.attention
    if name in _RULES:
        return _RULES[name]
    return elementwise_ops.elementwise if torch.Tag.pointwise in function.tags else None
