"""ATen operation -> the rule for its channels.

A rule gets the nodes, the operation's name, all its arguments in its own order, and its result. Names are those of
torch's ATen library, to which every operation of a model is reduced, however Python spells it; elementwise operations
need no entry.
"""

from collections.abc import Callable
from typing import Any

from prune.follow import arithmetic, layout
from prune.follow.nodes import ChannelNodes

__all__ = ["RULES", "Rule"]

Rule = Callable[[ChannelNodes, str, list[Any], Any], None]


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_named(layout.pointwise, "pointwise native_dropout rrelu_with_noise"),
    **_named(arithmetic.unknown, "unknown"),
    **_named(
        arithmetic.same,
        "alias detach lift_fresh contiguous _to_copy fill zero "
        "zeros_like ones_like full_like empty_like rand_like randn_like bernoulli",
    ),
    **_named(arithmetic.fresh, "new_zeros new_ones new_full new_empty new_empty_strided"),
    **_named(arithmetic.convolution, "convolution"),
    **_named(arithmetic.deform_conv, "deform_conv2d"),
    **_named(arithmetic.product, "mm bmm addmm baddbmm"),
    **_named(arithmetic.mixed, "mv addmv dot vdot"),
    **_named(
        arithmetic.attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    ),
    **_named(
        arithmetic.batch_norm,
        "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit_no_training "
        "_native_batch_norm_legit _batch_norm_with_update _batch_norm_no_update",
    ),
    **_named(arithmetic.layer_norm, "native_layer_norm _fused_rms_norm"),
    **_named(arithmetic.group_norm, "native_group_norm"),
    **_named(arithmetic.weight_norm, "_weight_norm_interface"),
    **_named(
        arithmetic.reduction,
        "mean sum amax amin max min var std var_mean std_mean argmax argmin prod logsumexp linalg_vector_norm norm "
        "median nanmedian kthvalue any all",
    ),
    **_named(
        arithmetic.across,
        "_softmax _safe_softmax _log_softmax cumsum cumprod sort topk renorm _fft_c2c _fft_r2c _fft_c2r",
    ),
    **_named(arithmetic.gated, "glu"),
    **_named(
        arithmetic.spatial,
        "max_pool2d_with_indices mkldnn_max_pool2d adaptive_max_pool2d fractional_max_pool2d "
        "avg_pool2d _adaptive_avg_pool2d "
        "max_pool3d_with_indices mkldnn_max_pool3d adaptive_max_pool3d avg_pool3d _adaptive_avg_pool3d "
        "avg_pool1d adaptive_avg_pool1d upsample_linear1d upsample_nearest1d _upsample_nearest_exact1d "
        "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
        "upsample_nearest2d _upsample_nearest_exact2d "
        "upsample_trilinear3d upsample_nearest3d _upsample_nearest_exact3d "
        "grid_sampler_2d grid_sampler_3d roi_align roi_pool",
    ),
    **_named(
        layout.pad,
        "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
        "replication_pad3d",
    ),
    **_named(layout.permute, "permute transpose t"),
    **_named(layout.view, "view _unsafe_view reshape _reshape_alias"),
    **_named(layout.unsqueeze, "unsqueeze"),
    **_named(layout.squeeze, "squeeze"),
    **_named(layout.expand, "expand"),
    **_named(layout.repeat, "repeat"),
    **_named(layout.slices, "slice"),
    **_named(layout.select, "select unbind"),
    **_named(layout.index, "index index_select embedding"),
    **_named(layout.split, "split split_with_sizes"),
    **_named(layout.cat, "cat"),
    **_named(layout.stack, "stack"),
    **_named(layout.flip, "flip"),
    **_named(layout.roll, "roll"),
    **_named(layout.pixel_shuffle, "pixel_shuffle"),
    **_named(layout.pixel_unshuffle, "pixel_unshuffle"),
    **_named(layout.channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **_named(layout.unfold, "im2col col2im"),
}
"""Operations that torch tags as pointwise need no entry."""
