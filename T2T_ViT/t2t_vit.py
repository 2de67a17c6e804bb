"""Tokens-to-Token ViT (Yuan et al., 2021, https://arxiv.org/abs/2101.11986).

The whole model in one file that needs Paddle and NumPy alone. Bottom up: the two
kinds of token module, the transformer block, T2TViT, build_t2t_vit. Shapes are
in the comments: B images, N tokens, D = embed_dim, C = token_dim.

Parameter names and shapes are PaddleViT's. The arithmetic is that of the
official PyTorch code (https://github.com/yitu-opensource/T2T-ViT) down to
LayerNorm's epsilon, 1e-5, so that its weights give its logits.

A layer that names functions in `kernels` calls them as `self.NAME(...)`, and may be
given others that compute the same (see common/kernels); these are the plain ones.
"""

import math
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

# Kernel, stride and padding of the three soft splits (paper, Sec. 3.1). Together
# they make one token of 16 x 16 pixels, so both image sides must divide by 16.
SOFT_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
TOKEN_STRIDE = 16

TOKEN_TYPES = ('performer', 'transformer')


def gelu(x: Tensor, form: str) -> Tensor:
    """GELU: "erf", the exact one, or "tanh", its approximation (Hendrycks and Gimpel, 2016)."""
    return F.gelu(x, approximate=form == 'tanh')


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise over the last axis (Ba et al., 2016)."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def gelu_linear(hidden: Tensor, form: str, linear: nn.Layer, dropout: nn.Layer) -> Tensor:
    """The second half of an MLP: GELU, dropout, linear layer."""
    return linear(dropout(gelu(hidden, form)))


def project_heads(tokens: Tensor, projection: nn.Layer, num_heads: int) -> list[Tensor]:
    """Tokens [B, N, D] to queries, keys and values, [B, H, N, d] each.

    projection: the linear layer D -> 3 H d; its outputs are q, k, v side by side.
    """
    num_tokens = tokens.shape[1]
    qkv = projection(tokens)
    qkv = qkv.reshape([-1, num_tokens, 3, num_heads, qkv.shape[2] // num_heads // 3])
    return qkv.transpose([2, 0, 3, 1, 4]).unbind(0)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: nn.Layer) -> Tensor:
    """softmax(scale q k^T) v, heads merged: [B, H, N, d] each -> [B, N, H d]."""
    scores = paddle.matmul(q * scale, k, transpose_y=True)
    probabilities = dropout(F.softmax(scores, axis=-1))
    heads = paddle.matmul(probabilities, v).transpose([0, 2, 1, 3])
    return heads.reshape([-1, q.shape[2], q.shape[1] * q.shape[3]])


class Linear(nn.Linear):
    """[..., in] -> [..., out]."""

    kernels = ('linear',)
    linear = staticmethod(F.linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Over the channels of each token."""

    kernels = ('layer_norm',)
    layer_norm = staticmethod(layer_norm)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer_norm(tokens, self.weight, self.bias, self._epsilon)


class DropPath(nn.Layer):
    """Stochastic depth: drop a residual branch, sample by sample (Huang et al., 2016).

    In training a sample's branch becomes 0 with probability `rate`, and is
    divided by 1 - rate otherwise, which keeps its expectation.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:                        # [B, ...]
        if self.rate == 0 or not self.training:
            return branch
        kept = paddle.rand([branch.shape[0]] + [1] * (branch.ndim - 1)) >= self.rate
        return branch * (kept.astype(branch.dtype) / (1.0 - self.rate))


class Attention(nn.Layer):
    """Multi-head self-attention: [B, N, D] -> [B, N, D].

    qk_scale: factor of the scores; None: (D / num_heads) ** -0.5. The attention
    probabilities [B, H, N, N] are the input of `attn_dropout`, where a forward hook can
    read them.
    """

    kernels = ('project_heads', 'attention')
    project_heads = staticmethod(project_heads)
    attention = staticmethod(attention)

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool = False,
                 qk_scale: float | None = None, dropout: float = 0.0,
                 attention_dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.qkv = Linear(embed_dim, 3 * embed_dim, bias_attr=None if qkv_bias else False)
        self.attn_dropout = nn.Dropout(attention_dropout)
        self.proj = Linear(embed_dim, embed_dim)
        self.proj_dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.project_heads(tokens, self.qkv, self.num_heads)  # [B, H, N, d] each
        heads = self.attention(q, k, v, self.scale, self.attn_dropout)
        return self.proj_dropout(self.proj(heads))


class Mlp(nn.Layer):
    """Two linear layers with a GELU between them; dropout after each."""

    kernels = ('gelu_linear',)
    gelu_linear = staticmethod(gelu_linear)

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(embed_dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.gelu = 'erf'                   # see T2TViT.set_numerics

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        return self.dropout(self.gelu_linear(hidden, self.gelu, self.fc2, self.dropout))


class TokenAttention(nn.Layer):
    """The token module's attention: one head, [B, N, in_dim] -> [B, N, C].

    The values are the residual, because input and output differ in width. As in
    the official code, the scores are scaled by the input's width, not by C.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.scale = in_dim ** -0.5
        self.qkv = Linear(in_dim, 3 * dim, bias_attr=False)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, axis=-1)
        probabilities = F.softmax(paddle.matmul(q * self.scale, k, transpose_y=True), axis=-1)
        return v + self.proj(paddle.matmul(probabilities, v))


class TokenTransformer(nn.Layer):
    """Token module of T2T-ViT_t: [B, N, in_dim] -> [B, N, C] in O(N^2)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm1 = LayerNorm(in_dim)
        self.attn = TokenAttention(in_dim, dim)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attention_macs(self, tokens: int) -> int:
        return 2 * tokens ** 2 * self.dim                               # q k^T, probabilities v


class TokenPerformer(nn.Layer):
    """Token module of T2T-ViT: [B, N, in_dim] -> [B, N, C] in O(N).

    Performer attention (Choromanski et al., 2020): phi(q) phi(k) stands for
    softmax's exp(q k), with m = C / 2 positive random features phi. Their
    directions `w` are orthogonal, of length sqrt(m), drawn once and never trained.
    The dropout of 0.1 is fixed here, whatever the model's own rate. Length and
    dropout are those of the official models/token_performer.py.
    """

    kernels = ('gelu_linear',)
    gelu_linear = staticmethod(gelu_linear)

    def __init__(self, in_dim: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dim = dim
        self.num_features = dim // 2
        keep_in_float32(self)
        self.w = self.create_parameter(
            [self.num_features, dim],
            attr=paddle.ParamAttr(trainable=False),
            default_initializer=nn.initializer.Orthogonal(gain=math.sqrt(self.num_features)))
        self.norm1 = LayerNorm(in_dim)
        self.kqv = Linear(in_dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = LayerNorm(dim)
        # Named as the official nn.Sequential names them; GELU and dropout have no parameters.
        self.mlp = nn.LayerDict({'0': Linear(dim, dim), '2': Linear(dim, dim)})
        self.no_dropout = nn.Dropout(0.0)
        self.gelu = 'erf'                   # see T2TViT.set_numerics

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, axis=-1)             # [B, N, C], in this order
        x = v + self.dropout(self.proj(self.attend(q, k, v)))
        hidden = self.mlp['0'](self.norm2(x))
        hidden = self.gelu_linear(hidden, self.gelu, self.mlp['2'], self.no_dropout)
        return x + self.dropout(hidden)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention output [B, N, C] in v's type, computed in float32.

        In float16 the 1e-8 below is zero and the features leave the range of the
        type. In float32 they cannot: w x - |x|^2 / 2 is at most |w|^2 / 2 = m / 2.
        """
        dtype = v.dtype
        with paddle.amp.auto_cast(enable=False):
            q, k, v = _to_float32(q), _to_float32(k), _to_float32(v)
            q_features, k_features = self.features(q), self.features(k)         # [B, N, m]
            k_sum = k_features.sum(axis=1, keepdim=True)                        # [B, 1, m]
            normalizer = paddle.matmul(q_features, k_sum, transpose_y=True)     # [B, N, 1]
            context = paddle.matmul(k_features, v, transpose_x=True)            # [B, m, C]
            # A tensor, because an ONNX exporter rounds so small a constant to zero.
            epsilon = paddle.full([1], 1e-8, normalizer.dtype)
            attended = paddle.matmul(q_features, context) / (normalizer + epsilon)
        return attended.astype(dtype)

    def features(self, x: Tensor) -> Tensor:
        """phi(x) = exp(w x - |x|^2 / 2) / sqrt(m): [B, N, C] -> [B, N, m]."""
        half_norm = x.square().sum(axis=-1, keepdim=True) / 2
        projected = paddle.matmul(x, _to_float32(self.w), transpose_y=True)
        return paddle.exp(projected - half_norm) / math.sqrt(self.num_features)

    def attention_macs(self, tokens: int) -> int:
        # Features of q and k, context and output: C * m each; the normalizer: m.
        return tokens * self.num_features * (4 * self.dim + 1)


class T2TModule(nn.Layer):
    """Tokens-to-Token module (paper, Sec. 3.1): [B, channels, H, W] -> [B, N, D].

    Each soft split cuts overlapping windows and joins each window's tokens into
    one; after the first two a token module mixes them and narrows them to C.
    image_size: (H, W) in pixels, multiples of 16. N = H/16 * W/16.
    """

    def __init__(self, image_size: tuple[int, ...], in_channels: int, token_type: str,
                 embed_dim: int, token_dim: int) -> None:
        super().__init__()
        token_module = {'performer': TokenPerformer, 'transformer': TokenTransformer}[token_type]
        first, second, third = (kernel * kernel for kernel, _, _ in SOFT_SPLITS)
        self.attn1 = token_module(in_channels * first, token_dim)
        self.attn2 = token_module(token_dim * second, token_dim)
        self.proj = Linear(token_dim * third, embed_dim)
        height, width = image_size
        self.grids = [(height // stride, width // stride) for stride in (4, 8, TOKEN_STRIDE)]

    def forward(self, images: Tensor) -> Tensor:
        x = self.attn1(soft_split(images, *SOFT_SPLITS[0]))             # [B, H/4 * W/4, C]
        x = self.attn2(soft_split(as_image(x, self.grids[0]), *SOFT_SPLITS[1]))
        return self.proj(soft_split(as_image(x, self.grids[1]), *SOFT_SPLITS[2]))

    def attention_macs(self) -> int:
        return sum(layer.attention_macs(rows * columns)
                   for layer, (rows, columns) in zip((self.attn1, self.attn2), self.grids))


class Block(nn.Layer):
    """One transformer block: normalise, transform, add; twice. [B, N, D] -> [B, N, D].

    num_read: return the first so many tokens, which spares the MLP the others; None: all.
    """

    def __init__(self, embed_dim: int, attention: nn.Layer, mlp: nn.Layer, droppath: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(embed_dim)
        self.attn = attention
        self.drop_path = DropPath(droppath)
        self.norm2 = LayerNorm(embed_dim)
        self.mlp = mlp

    def forward(self, tokens: Tensor, num_read: int | None = None) -> Tensor:
        branch = self.attn(self.norm1(tokens))
        if num_read is not None:
            tokens, branch = tokens[:, :num_read], branch[:, :num_read]
        tokens = tokens + self.drop_path(branch)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class T2TViT(nn.Layer):
    """T2T-ViT: images [B, in_channels, H, W] -> logits [B, num_classes].

    image_size: pixels, H = W, or (H, W); both must be multiples of 16.
    num_classes: 0 gives the class token's features [B, D] instead of logits.
    token_type: "performer" (T2T-ViT) or "transformer" (T2T-ViT_t).
    qkv_bias: of the blocks. PaddleViT's default is True; every published model
        has False, and so do the config's default and our yaml files.
    qk_scale: None for head_dim ** -0.5.
    dropout, attention_dropout: rates in the blocks. droppath: stochastic depth,
        growing linearly from 0 to this rate in the last block.
    token_dim: width C inside the token modules.
    gelu: "erf", or "tanh" for the approximation. layer_norm_eps: PaddleViT has
        1e-6; the weights were trained with 1e-5.
    recompute: run the blocks a second time in backward instead of storing their
        activations.
    zero_head: start the classifier's weight at zero, as fine-tuning often does.
    Raises ValueError for sizes that do not fit and unknown names.
    """

    num_prefix_tokens = 1                   # before those of the image: the class token
    num_prefix_positions = 1                # of them, with a row in the position table

    def __init__(self, image_size: int | tuple[int, int] = 224, in_channels: int = 3,
                 num_classes: int = 1000, token_type: str = 'performer', embed_dim: int = 768,
                 depth: int = 12, num_heads: int = 12, mlp_ratio: float = 4.0,
                 qkv_bias: bool = True, qk_scale: float | None = None, dropout: float = 0.0,
                 attention_dropout: float = 0.0, droppath: float = 0.0, token_dim: int = 64,
                 gelu: str = 'erf', layer_norm_eps: float = 1e-5, recompute: bool = False,
                 zero_head: bool = False) -> None:
        super().__init__()
        if isinstance(image_size, int):
            image_size = (image_size, image_size)
        check_sizes(image_size, token_type, embed_dim, num_heads, token_dim, mlp_ratio)
        self.image_size = tuple(image_size)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.embed_dim = embed_dim
        self.recompute = recompute

        self.patch_embed = T2TModule(
            self.image_size, in_channels, token_type, embed_dim, token_dim)
        self.grid_size = self.patch_embed.grids[-1]                     # (rows, columns)
        num_tokens = self.num_prefix_positions + self.grid_size[0] * self.grid_size[1]
        self.cls_token = self.create_parameter([1, 1, embed_dim])
        self.pos_embed = self.create_parameter(
            [1, num_tokens, embed_dim],
            attr=paddle.ParamAttr(trainable=False),
            default_initializer=nn.initializer.Assign(sinusoid(num_tokens, embed_dim)))
        self.pos_dropout = nn.Dropout(dropout)
        self.blocks = nn.LayerList([
            Block(embed_dim,
                  Attention(embed_dim, num_heads, qkv_bias, qk_scale, dropout, attention_dropout),
                  Mlp(embed_dim, int(embed_dim * mlp_ratio), dropout),
                  droppath * i / max(depth - 1, 1))
            for i in range(depth)])
        self.norm = LayerNorm(embed_dim)
        self.head = Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()

        keep_in_float32(self)
        initialize_weights(self, zero_head)
        self.set_numerics(gelu, layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images)[:, 0])

    def forward_logits(self, images: Tensor) -> Tensor:
        """Return what forward does, sparing the last MLP the tokens that the head does not read."""
        return self.head(self.forward_features(images, num_read=1)[:, 0])

    def forward_features(self, images: Tensor, num_read: int | None = None) -> Tensor:
        """Return the tokens after the last norm, class token first: [B, 1 + N, D].

        num_read: the first so many, for which the last MLP computes less; None: all.
        """
        if list(images.shape[1:]) != [self.in_channels, *self.image_size]:
            raise ValueError(
                f'The model takes images [B, {self.in_channels}, {self.image_size[0]}, '
                f'{self.image_size[1]}], not {list(images.shape)}; set image_size to match.')
        patches = self.patch_embed(images)                              # [B, N, D]
        cls_token = self.cls_token.astype(patches.dtype).expand([patches.shape[0], -1, -1])
        x = paddle.concat([cls_token, patches], axis=1)
        x = self.pos_dropout(x + self.pos_embed.astype(x.dtype))        # [B, 1 + N, D]
        for block in self.blocks:
            # Above frozen layers nothing would tell recompute that a gradient is wanted.
            if self.recompute and self.training and not x.stop_gradient:
                x = recompute_in_backward(block, x)
            else:
                x = block(x, num_read) if num_read and block is self.blocks[-1] else block(x)
        return self.norm(x)

    def get_numerics(self) -> dict:
        """Return what differs between the sources of checkpoints, as set_numerics takes it."""
        return {'gelu': self.gelu, 'layer_norm_eps': self.layer_norm_eps}

    def set_numerics(self, gelu: str | None = None, layer_norm_eps: float | None = None) -> None:
        """Set the form of GELU ("erf" or "tanh") and LayerNorm's epsilon; None keeps one."""
        if gelu is not None:
            check_choice('gelu', gelu, ('erf', 'tanh'))
            self.gelu = gelu
        if layer_norm_eps is not None:
            self.layer_norm_eps = layer_norm_eps
        for layer in self.sublayers():
            if isinstance(layer, (Mlp, TokenPerformer)):
                layer.gelu = self.gelu
            elif isinstance(layer, LayerNorm):
                layer._epsilon = self.layer_norm_eps

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters, beside biases and norms, that must not decay."""
        fixed = {name for name, parameter in self.named_parameters() if parameter.stop_gradient}
        return {'cls_token', 'pos_embed'} | {name for name in fixed if name.endswith('.w')}

    def attention_macs(self) -> int:
        """Return an image's multiply-adds in matmuls without parameters.

        They are q k^T and probabilities v of the blocks, and all of the token modules'
        attention; counters that go by layers do not see them.
        """
        tokens = self.pos_embed.shape[1]
        in_blocks = len(self.blocks) * 2 * tokens ** 2 * self.embed_dim
        return in_blocks + self.patch_embed.attention_macs()


def check_sizes(image_size: int | tuple[int, int], token_type: str, embed_dim: int, num_heads: int,
                token_dim: int, mlp_ratio: float) -> None:
    """Raise ValueError, naming the arguments, if T2T-ViT cannot be built with these."""
    for side in (image_size, image_size) if isinstance(image_size, int) else image_size:
        if side < TOKEN_STRIDE or side % TOKEN_STRIDE:
            nearest = sorted({max(side // TOKEN_STRIDE, 1), side // TOKEN_STRIDE + 1})
            raise ValueError(
                f'image_size {side} is not a multiple of {TOKEN_STRIDE}; use '
                f'{" or ".join(str(number * TOKEN_STRIDE) for number in nearest)}')
    check_choice('token_type', token_type, TOKEN_TYPES)
    if embed_dim % num_heads:
        raise ValueError(f'embed_dim {embed_dim} is not a multiple of num_heads {num_heads}')
    if token_dim < 2:
        raise ValueError(f'token_dim must be 2 or more, not {token_dim}')
    if int(embed_dim * mlp_ratio) < 1:
        raise ValueError(f'mlp_ratio {mlp_ratio} leaves the MLP no width')


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError if value is not among choices."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(choices)}, not {value!r}')


def soft_split(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Cut overlapping windows: [B, C, H, W] -> [B, windows, C * kernel * kernel]."""
    return F.unfold(x, kernel, stride, padding).transpose([0, 2, 1])


def as_image(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, rows * columns, C] -> [B, C, rows, columns]. grid: (rows, columns)."""
    return tokens.transpose([0, 2, 1]).reshape([0, 0, *grid])


def sinusoid(num_tokens: int, dim: int) -> np.ndarray:
    """Return the fixed position embedding [1, num_tokens, dim] (Vaswani et al., Sec. 3.5).

    Sine in the even channels, cosine in the odd; position 0 is the class token.
    """
    frequencies = 10000.0 ** (-2 * (np.arange(dim) // 2) / dim)
    angles = np.arange(num_tokens)[:, None] * frequencies
    table = np.where(np.arange(dim) % 2 == 0, np.sin(angles), np.cos(angles))
    return table[None].astype('float32')


def keep_in_float32(layer: nn.Layer) -> None:
    """Leave a layer's own parameters (not its sublayers') in float32 under AMP O2.

    The fixed tensors would otherwise be rounded, in checkpoints too.
    """
    layer._cast_to_low_precision = False    # Paddle 3
    layer._cast_to_low_precison = False     # Paddle 2


def initialize_weights(model: nn.Layer, zero_head: bool = False) -> None:
    """Initialise as the official models/t2t_vit.py: linear weights and class token from
    a normal of std 0.02, biases 0, LayerNorm 1 and 0.

    The official truncation at -2 and 2 is a hundred standard deviations away, hence
    a plain normal; Paddle 2.6's TruncatedNormal cuts at two of them (std 0.0176).
    """
    normal = nn.initializer.Normal(std=0.02)
    zero = nn.initializer.Constant(0.0)
    normal(model.cls_token)
    for layer in model.sublayers():
        if isinstance(layer, nn.Linear):
            normal(layer.weight)
            if layer.bias is not None:
                zero(layer.bias)
    if zero_head and model.num_classes > 0:
        zero(model.head.weight)


def recompute_in_backward(layer: nn.Layer, tokens: Tensor) -> Tensor:
    """Run a layer without keeping its activations; backward computes them again.

    Without re-entrance, because the other form fails under DataParallel.
    """
    from paddle.distributed.fleet.utils import recompute
    if int(paddle.__version__.split('.')[0]) >= 3 or paddle.get_device() != 'cpu':
        return recompute(layer, tokens, use_reentrant=False)

    # Paddle 2 does not bring back the CPU's random state, so that dropout would differ.
    state_before = paddle.get_rng_state()
    calls = []

    def run_layer(tokens):
        calls.append(1)
        state = paddle.get_rng_state()
        paddle.set_rng_state(state_before)
        output = layer(tokens)
        if len(calls) > 1:
            paddle.set_rng_state(state)
        return output

    return recompute(run_layer, tokens, use_reentrant=False, preserve_rng_state=False)


def _to_float32(x):
    return x.astype('float32') if x.dtype in (paddle.float16, paddle.bfloat16) else x


def get_model_arguments(config: Any) -> dict[str, Any]:
    """Return the arguments of T2TViT that a config tree holds."""
    model = config.MODEL
    return {
        'image_size': config.DATA.IMAGE_SIZE,
        'in_channels': config.DATA.IMAGE_CHANNELS,
        'num_classes': model.NUM_CLASSES,
        'token_type': model.TOKEN_TYPE,
        'embed_dim': model.EMBED_DIM,
        'depth': model.DEPTH,
        'num_heads': model.NUM_HEADS,
        'mlp_ratio': model.MLP_RATIO,
        'qkv_bias': model.QKV_BIAS,
        'qk_scale': model.QK_SCALE,
        'dropout': model.DROPOUT,
        'attention_dropout': model.ATTENTION_DROPOUT,
        'droppath': model.DROPPATH,
        'token_dim': model.TOKEN_DIM,
        'gelu': model.GELU,
        'layer_norm_eps': model.LAYER_NORM_EPS,
        'recompute': model.RECOMPUTE,
        'zero_head': model.ZERO_HEAD,
    }


def build_t2t_vit(config: Any) -> T2TViT:
    """Return the T2TViT that a config tree describes, with new weights."""
    return T2TViT(**get_model_arguments(config))
