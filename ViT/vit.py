"""Vision Transformer (Dosovitskiy et al., 2020, https://arxiv.org/abs/2010.11929), one file.

Figure 1 of the paper, from bottom to top: PatchEmbedding, the class token and the position
embedding, Encoder (EncoderLayer = Attention + Mlp, each behind a LayerNorm and in front of a
residual sum), classifier. Layers that only some families need are at the end, with the paper's
hybrid, ResNetStem. Names and shapes of parameters are PaddleViT's, so that its weights load.

A layer that names functions in `kernels` calls them as `self.NAME(...)`, and may be given others
that compute the same (see common/kernels); these are the plain ones.

Shapes in comments: B images, N patches (in attention: tokens), P prefix tokens (class and
distillation token, registers), D embed_dim, H heads, d channels of a head, C classes.
"""

import inspect
import math
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional as F

PRE_LOGITS_ACTIVATIONS = {'tanh': nn.Tanh, 'relu': nn.ReLU}


def gelu(x: Tensor, form: str) -> Tensor:
    """GELU (Hendrycks and Gimpel, 2016). form: "erf", "tanh" or "quick"."""
    return x * F.sigmoid(1.702 * x) if form == 'quick' else F.gelu(x, form == 'tanh')


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise over the last axis (Ba et al., 2016)."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def gelu_linear(hidden: Tensor, form: str, linear: nn.Layer, dropout: nn.Layer) -> Tensor:
    """The second half of an MLP: GELU, dropout, linear layer."""
    return linear(dropout(gelu(hidden, form)))


def project_heads(tokens: Tensor, projection: nn.Layer, num_heads: int) -> list[Tensor]:
    """Tokens [B, N, D] to q, k and v, [B, H, N, d] each, by one linear layer D -> 3 H d."""
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

    In training a sample's branch becomes 0 with probability `rate`, and is divided by 1 - rate
    otherwise, which keeps its expectation.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:                # [B, ...]
        if self.rate == 0 or not self.training:
            return branch
        keep = 1 - self.rate
        kept = paddle.rand([branch.shape[0]] + [1] * (branch.ndim - 1)) < keep
        return branch * (kept.astype(branch.dtype) / keep)


class PatchEmbedding(nn.Layer):
    """Cut an image, or a stem's features, into patches and project each (paper, Eq. 1)."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2D(in_channels, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:                # [B, in, height, width]
        patches = self.patch_embedding(images)                  # [B, D, rows, cols]
        return patches.flatten(2).transpose([0, 2, 1])          # [B, N, D], row after row


class Attention(nn.Layer):
    """Multi-head self-attention (paper, Appendix A): [B, P + N, D] -> [B, P + N, D].

    rope: turns queries and keys by their places, see RotaryEmbedding; None: nothing does. The
    attention probabilities [B, H, P + N, P + N] are the input of `attn_dropout`, where a forward
    hook can read them.
    """

    kernels = ('project_heads', 'attention')
    project_heads = staticmethod(project_heads)
    attention = staticmethod(attention)

    def __init__(self, embed_dim: int, num_heads: int, head_size: int, qkv_bias: bool,
                 dropout: float, attention_dropout: float, rope: nn.Layer | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = head_size ** -0.5
        self.qkv = Linear(embed_dim, 3 * num_heads * head_size,
                          bias_attr=None if qkv_bias else False)
        self.out = Linear(num_heads * head_size, embed_dim)
        self.attn_dropout = nn.Dropout(attention_dropout)
        self.proj_dropout = nn.Dropout(dropout)
        self.rope = rope

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.project_heads(tokens, self.qkv, self.num_heads)
        if self.rope is not None:
            q, k = self.rope(q), self.rope(k)
        heads = self.attention(q, k, v, self.scale, self.attn_dropout)
        return self.proj_dropout(self.out(heads))


class Mlp(nn.Layer):
    """Two linear layers with a GELU between them; dropout after each."""

    kernels = ('gelu_linear',)
    gelu_linear = staticmethod(gelu_linear)

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float, gelu: str) -> None:
        super().__init__()
        self.fc1 = Linear(embed_dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.gelu = gelu

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc1(tokens)
        return self.dropout(self.gelu_linear(hidden, self.gelu, self.fc2, self.dropout))


class EncoderLayer(nn.Layer):
    """One transformer block (paper, Eq. 2 and 3): normalise, transform, add.

    layer_scale: starting value of a factor for each channel of both branches (CaiT,
        Touvron et al., 2021, Sec. 2); None: no such factors.
    num_read: return the first so many tokens, which spares the MLP the others; None: all.
    """

    def __init__(self, embed_dim, attention, mlp, droppath, layer_scale=None):
        super().__init__()
        self.attn_norm = LayerNorm(embed_dim)
        self.attn = attention
        self.mlp_norm = LayerNorm(embed_dim)
        self.mlp = mlp
        self.drop_path = DropPath(droppath)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            start = nn.initializer.Constant(layer_scale)
            self.gamma_1 = self.create_parameter([embed_dim], default_initializer=start)
            self.gamma_2 = self.create_parameter([embed_dim], default_initializer=start)

    def forward(self, tokens: Tensor, num_read: int | None = None) -> Tensor:
        branch = self.attn(self.attn_norm(tokens))
        if num_read is not None:
            tokens, branch = tokens[:, :num_read], branch[:, :num_read]
        tokens = tokens + self.drop_path(branch if self.gamma_1 is None else branch * self.gamma_1)
        branch = self.mlp(self.mlp_norm(tokens))
        return tokens + self.drop_path(branch if self.gamma_2 is None else branch * self.gamma_2)


class Encoder(nn.Layer):
    """The blocks and, with last_norm, a LayerNorm. num_read: of the last, see EncoderLayer."""

    def __init__(self, layers, embed_dim, recompute, last_norm):
        super().__init__()
        self.layers = nn.LayerList(layers)
        self.encoder_norm = LayerNorm(embed_dim) if last_norm else nn.Identity()
        self.recompute = recompute

    def forward(self, tokens: Tensor, num_read: int | None = None) -> Tensor:
        for layer in self.layers:
            # A recomputed function whose inputs need no gradient yields none for its parameters
            # either, so the first trained block above frozen ones runs plainly.
            if self.recompute and self.training and not tokens.stop_gradient:
                tokens = recompute_in_backward(layer, tokens)
            else:
                is_last = layer is self.layers[-1]
                tokens = layer(tokens, num_read) if num_read and is_last else layer(tokens)
        return self.encoder_norm(tokens)


def recompute_in_backward(layer: nn.Layer, tokens: Tensor) -> Tensor:
    """Run a layer without keeping its activations; backward computes them again."""
    from paddle.distributed.fleet.utils import recompute
    if int(paddle.__version__.split('.')[0]) >= 3 or paddle.get_device() != 'cpu':
        return recompute(layer, tokens, use_reentrant=False)    # the other fails in DataParallel

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


class VisionTransformer(nn.Layer):
    """Image classifier: [B, in_channels, height, width] float -> logits [B, num_classes].

    image_size: pixels, int or (height, width); a multiple of patch_size.
    patch_size: pixels between two tokens (through the stem, in a hybrid).
    attn_head_size: of a head; None: embed_dim // num_heads. mlp_ratio: hidden width / embed_dim.
    dropout: after the position embedding, the attention's projection and both layers of the MLP.
    attention_dropout: on the attention probabilities.
    droppath: stochastic depth, rate of the last block; it grows linearly from 0.
    representation_size: width of a hidden layer before the classifier (paper, Sec. 3.1: in
        pre-training); None: none. pre_logits_activation: its activation, "tanh" or "relu".
    gelu: "erf" (exact), "tanh" (approximation) or "quick" (x * sigmoid(1.702 x), CLIP's).
    pool: "token" (class token), "avg" (mean of the patch tokens after the last norm) or
        "map" (attention pooling, see AttentionPool).
    class_token: False leaves it out, and needs another pool than "token".
    position_embedding: "learned"; "sincos2d", a fixed table; "rope", see RotaryEmbedding.
    zero_head: start the classifier at zero (paper, Appendix B.1.1). layer_scale: see EncoderLayer.
    recompute: save memory in training by computing each block twice.
    resnet_layers: units a stage of a hybrid's ResNet, (3, 4, 9) for R50. resnet_width: of its root.
    register_tokens: tokens after the class token that no head reads (Darcet et al., 2023). Their
        rows of the position table are zero where the file that is loaded has none (DINOv2).
    distilled: a second token and head (DeiT, Touvron et al., 2020, Sec. 4). In training the
        output is the logits of both heads, in evaluation their mean.
    pre_norm: a LayerNorm before the first block (CLIP). last_norm: one after the last (not RADIO).
    norm_after_pooling: the last norm follows the pooling, as `fc_norm` (BEiT's and MAE's).
    Raises ValueError if the sizes do not fit together.
    """

    def __init__(self, image_size=224, patch_size=16, in_channels=3, num_classes=1000,
                 embed_dim=768, depth=12, num_heads=12, attn_head_size=None, mlp_ratio=4,
                 qkv_bias=True, dropout=0., attention_dropout=0., droppath=0.,
                 representation_size=None, gelu='erf', layer_norm_eps=1e-6,
                 pre_logits_activation='tanh', pool='token', class_token=True,
                 position_embedding='learned', zero_head=False, recompute=False,
                 resnet_layers=(), resnet_width=64, layer_scale=None, register_tokens=0,
                 distilled=False, pre_norm=False, norm_after_pooling=False, last_norm=True):
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        check_sizes(image_size, patch_size, embed_dim, num_heads, attn_head_size, mlp_ratio, pool,
                    class_token, position_embedding, resnet_layers, resnet_width, distilled,
                    representation_size, norm_after_pooling)
        self.input_shape = [in_channels, height, width]
        self.grid_size = (height // patch_size, width // patch_size)
        self.num_class_tokens = int(class_token) + int(distilled)
        self.num_prefix_tokens = self.num_class_tokens + register_tokens
        self.num_prefix_positions = 0 if position_embedding == 'rope' else self.num_prefix_tokens
        self.pool = pool

        self.resnet = None
        if resnet_layers:
            self.resnet = ResNetStem(in_channels, resnet_layers, resnet_width)
            in_channels = self.resnet.out_channels
            patch_size //= self.resnet.stride
        self.patch_embedding = PatchEmbedding(in_channels, embed_dim, patch_size)

        self.prefix_names = []              # of the tokens before the patches, in their order
        for name, count in (('cls_token', int(class_token)), ('dist_token', int(distilled)),
                            ('register_tokens', register_tokens)):
            if count:
                self.prefix_names.append(name)
                self.add_parameter(name, self.create_parameter([1, count, embed_dim]))
        head_size = attn_head_size or embed_dim // num_heads
        rope = None
        if position_embedding == 'learned':
            self.position_embedding = self.create_parameter(
                [1, self.num_prefix_positions + math.prod(self.grid_size), embed_dim])
        elif position_embedding == 'sincos2d':
            table = build_sincos_table(self.grid_size, embed_dim, self.num_prefix_positions)
            self.register_buffer('position_embedding', paddle.to_tensor(table))
        else:
            self.position_embedding = None
            rope = RotaryEmbedding(self.grid_size, head_size, self.num_prefix_tokens)
        self.pos_dropout = nn.Dropout(dropout)
        self.pre_norm = LayerNorm(embed_dim) if pre_norm else nn.Identity()

        layers = [EncoderLayer(
            embed_dim,
            Attention(embed_dim, num_heads, head_size, qkv_bias, dropout, attention_dropout, rope),
            Mlp(embed_dim, int(embed_dim * mlp_ratio), dropout, gelu),
            rate, layer_scale) for rate in np.linspace(0, droppath, depth).tolist()]
        self.encoder = Encoder(layers, embed_dim, recompute, last_norm and not norm_after_pooling)

        self.attention_pool = self.pre_logits = None
        if pool == 'map':
            self.attention_pool = AttentionPool(embed_dim, num_heads, mlp_ratio, gelu)
        self.fc_norm = LayerNorm(embed_dim) if norm_after_pooling else nn.Identity()
        if representation_size:
            self.pre_logits = nn.Sequential(Linear(embed_dim, representation_size), nn.Tanh())
        self.classifier = Linear(representation_size or embed_dim, num_classes)
        self.classifier_dist = Linear(embed_dim, num_classes) if distilled else None

        self.set_numerics(gelu, layer_norm_eps, pre_logits_activation)
        initialize_weights(self, zero_head)

    @property
    def blocks(self) -> nn.LayerList:
        """The encoder's blocks, from the input to the output."""
        return self.encoder.layers

    def forward_features(self, images: Tensor, num_read: int | None = None) -> Tensor:
        """Return the encoder's tokens (after its norm, if it has one), P first: [B, P + N, D].

        num_read: the first so many, for which the last MLP computes less; None: all.
        """
        if list(images.shape[1:]) != self.input_shape:
            raise ValueError(f'the model takes images [B, {str(self.input_shape)[1:]}, '
                             f'not {list(images.shape)}')
        if self.resnet is not None:
            images = self.resnet(images)
        tokens = self.patch_embedding(images)                               # [B, N, D]
        prefix = [getattr(self, name).expand([tokens.shape[0], -1, -1])
                  for name in self.prefix_names]
        tokens = paddle.concat([*prefix, tokens], axis=1) if prefix else tokens
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding.astype(tokens.dtype)  # [B, P + N, D]
        return self.encoder(self.pre_norm(self.pos_dropout(tokens)), num_read)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor | tuple:
        """Return logits [B, C] of forward_features' tokens; pre_logits: what the head reads."""
        if self.classifier_dist is not None:
            if pre_logits:
                return tokens[:, :2].mean(axis=1)
            both = self.classifier(tokens[:, 0]), self.classifier_dist(tokens[:, 1])
            return both if self.training else (both[0] + both[1]) / 2
        if self.pool == 'token':
            features = tokens[:, 0]                                         # [B, D]
        elif self.pool == 'avg':
            features = tokens[:, self.num_prefix_tokens:].mean(axis=1)
        else:
            features = self.attention_pool(tokens[:, self.num_prefix_tokens:])
        features = self.fc_norm(features)
        if self.pre_logits is not None:
            features = self.pre_logits(features)
        return features if pre_logits else self.classifier(features)

    def forward(self, images: Tensor) -> Tensor | tuple:
        return self.forward_head(self.forward_features(images))

    def forward_logits(self, images: Tensor) -> Tensor:
        """Return what forward does in evaluation, sparing the last MLP the tokens that no head
        reads: ViT-B/16 at 224 pixels does with 5 % less arithmetic."""
        num_read = self.num_class_tokens if self.pool == 'token' else None
        return self.forward_head(self.forward_features(images, num_read))

    def get_numerics(self) -> dict:
        """Return what differs between the sources of checkpoints, as set_numerics takes it."""
        numerics = {'gelu': self.blocks[0].mlp.gelu,
                    'layer_norm_eps': self.blocks[0].attn_norm._epsilon}
        for name, activation in PRE_LOGITS_ACTIVATIONS.items():
            if self.pre_logits is not None and type(self.pre_logits[1]) is activation:
                numerics['pre_logits_activation'] = name
        return numerics

    def set_numerics(self, gelu: str | None = None, layer_norm_eps: float | None = None,
                     pre_logits_activation: str | None = None) -> None:
        """Change what differs between the sources of checkpoints; None leaves a setting alone."""
        if gelu is not None:
            check_choice('gelu', gelu, ('erf', 'tanh', 'quick'))
            for layer in self.sublayers():
                if isinstance(layer, Mlp):
                    layer.gelu = gelu
        if layer_norm_eps is not None:
            for layer in self.sublayers():
                if isinstance(layer, nn.LayerNorm):
                    layer._epsilon = layer_norm_eps
        if pre_logits_activation is not None:
            check_choice('pre_logits_activation', pre_logits_activation, PRE_LOGITS_ACTIVATIONS)
            if self.pre_logits is not None:
                self.pre_logits[1] = PRE_LOGITS_ACTIVATIONS[pre_logits_activation]()

    def no_weight_decay(self) -> set[str]:
        """Return names in the state dict of what is not decayed, beside biases and norms."""
        return {*self.prefix_names, 'position_embedding', 'attention_pool.latent'} & set(
            self.state_dict())

    def attention_macs(self) -> int:
        """Return the multiply-accumulates of q k^T and of the weighted sum of v, for one image."""
        patches = self.grid_size[0] * self.grid_size[1]
        macs = sum(2 * (self.num_prefix_tokens + patches) ** 2 * attn.num_heads * attn.head_size
                   for attn in (block.attn for block in self.blocks))
        pool = self.attention_pool
        return macs if pool is None else macs + 2 * patches * pool.latent.shape[2]


def build_sincos_table(grid_size: tuple[int, int], embed_dim: int, num_prefix_positions: int,
                       temperature: float = 10000.) -> np.ndarray:
    """Return the fixed 2-D position embedding [1, P + N, D] of MoCo v3 and "Better plain ViT".

    Quarters of D: sine and cosine of the column, then of the row, at frequencies from 1 to
    1 / temperature, as big_vision spaces them (MoCo v3 stops one step earlier). Prefix tokens
    get zeros. D is a multiple of 4.
    """
    frequencies = temperature ** -np.linspace(0, 1, embed_dim // 4)
    rows, cols = np.mgrid[:grid_size[0], :grid_size[1]].reshape(2, -1, 1) * frequencies
    table = np.concatenate([np.sin(cols), np.cos(cols), np.sin(rows), np.cos(rows)], axis=1)
    table = np.concatenate([np.zeros([num_prefix_positions, embed_dim]), table])
    return table[None].astype('float32')


def initialize_weights(model: nn.Layer, zero_head: bool) -> None:
    """Set every parameter to its starting value.

    Normal, deviation 0.02: linear layers (BERT, DeiT and timm; timm's truncation lies 100
        deviations out), position embedding (vit_jax/models_vit.py), other prefix tokens (DeiT).
    LeCun normal, deviation sqrt(1 / fan_in): convolutions (flax's default, so Google's).
    Zero: biases, class token (vit_jax/models_vit.py), and with `zero_head` the classifier (the
        same; ViT paper, Appendix B.1.1).
    One: scales of norms, but for gn3 of each ResNet unit, 0 (vit_jax/models_resnet.py).
    """
    zeros = nn.initializer.Constant(0.)
    ones = nn.initializer.Constant(1.)
    normal = nn.initializer.Normal(std=0.02)
    for layer in model.sublayers():
        if isinstance(layer, nn.Linear):
            normal(layer.weight)
        elif isinstance(layer, nn.Conv2D):
            fan_in = math.prod(layer.weight.shape[1:])
            nn.initializer.Normal(std=fan_in ** -0.5)(layer.weight)
        elif isinstance(layer, (nn.LayerNorm, GroupNorm)):
            ones(layer.weight)
        if getattr(layer, 'bias', None) is not None:
            zeros(layer.bias)
    for layer in model.sublayers():
        if isinstance(layer, ResNetUnit):
            zeros(layer.gn3.weight)
    for name in model.prefix_names:
        (zeros if name == 'cls_token' else normal)(getattr(model, name))
    if model.position_embedding is not None and not model.position_embedding.stop_gradient:
        normal(model.position_embedding)
    for head in (model.classifier, model.classifier_dist):
        if zero_head and head is not None:
            zeros(head.weight)


def check_sizes(image_size: int | tuple[int, int], patch_size: int, embed_dim: int, num_heads: int,
                attn_head_size: int | None, mlp_ratio: float, pool: str, class_token: bool,
                position_embedding: str, resnet_layers: list[int] | tuple[int, ...],
                resnet_width: int, distilled: bool, representation_size: int | None,
                norm_after_pooling: bool) -> None:
    """Raise ValueError, naming the arguments, if VisionTransformer cannot be built with these."""
    check_choice('pool', pool, ('token', 'avg', 'map'))
    check_choice('position_embedding', position_embedding, ('learned', 'sincos2d', 'rope'))
    for side in (image_size, image_size) if isinstance(image_size, int) else image_size:
        if side < patch_size or side % patch_size:
            sizes = sorted({max(side // patch_size, 1), side // patch_size + 1})
            raise ValueError(f'image_size {side} is not a multiple of patch_size {patch_size}; use '
                             f'{" or ".join(str(size * patch_size) for size in sizes)}')
    if not class_token and pool == 'token':
        raise ValueError('pool token needs class_token True; without a class token use pool avg')
    if distilled and (pool != 'token' or representation_size or norm_after_pooling):
        raise ValueError('distilled True has a head on each of two tokens: it needs pool token, '
                         'and neither representation_size nor norm_after_pooling')
    if position_embedding == 'sincos2d' and embed_dim % 4:
        raise ValueError('position_embedding sincos2d needs an embed_dim that is a multiple of 4, '
                         f'not {embed_dim}')
    if embed_dim % num_heads and (attn_head_size is None or pool == 'map'):
        raise ValueError(f'embed_dim {embed_dim} is not a multiple of num_heads {num_heads}; '
                         'change one of them or, without pool map, set attn_head_size')
    if int(embed_dim * mlp_ratio) < 1:
        raise ValueError(f'mlp_ratio {mlp_ratio} leaves the MLP no width')
    head_size = attn_head_size or embed_dim // num_heads
    if position_embedding == 'rope' and head_size % 4:
        raise ValueError('position_embedding rope needs heads whose width is a multiple of 4, not '
                         f'{head_size}; change num_heads')
    if resnet_layers:
        stride = 4 * 2 ** (min(len(resnet_layers), 20) - 1)
        if patch_size % stride:
            raise ValueError(f'resnet_layers of {len(resnet_layers)} stages reduce images by '
                             f'{stride}, of which patch_size {patch_size} must be a multiple')
        if resnet_width % GROUPS:
            raise ValueError(f'resnet_width {resnet_width} is not a multiple of {GROUPS}, the '
                             'number of groups in its norms')


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError if value is not among choices."""
    if value not in choices:
        raise ValueError(f'{name} must be one of {", ".join(choices)}, not {value!r}')


def get_model_arguments(config: Any) -> dict[str, Any]:
    """Return VisionTransformer's arguments: keys of MODEL in capitals, but for four."""
    elsewhere = {'image_size': config.DATA.IMAGE_SIZE, 'in_channels': config.DATA.IMAGE_CHANNELS,
                 'resnet_layers': config.MODEL.HYBRID, 'resnet_width': config.MODEL.HYBRID_WIDTH}
    names = set(inspect.signature(VisionTransformer).parameters) - set(elsewhere)
    return {**elsewhere, **{name: config.MODEL[name.upper()] for name in names}}


def build_vit(config: Any) -> VisionTransformer:
    """Return the VisionTransformer that a config tree describes, with new weights."""
    return VisionTransformer(**get_model_arguments(config))


# What only some families need: RoPE (DINOv3), attention pooling (SigLIP), the hybrid's ResNet.


class RotaryEmbedding(nn.Layer):
    """Turns queries and keys of the patches by their places (RoPE, Su et al., 2021; DINOv3).

    Rows and columns go from -1 to 1. Channels i and i + d / 2 of a head are turned by 2 pi *
    place / 100 ** (4 j / d), for the row and then the column, j from 0 to d / 4. The prefix
    tokens have no place. d is a multiple of 4.
    """

    def __init__(self, grid_size: tuple[int, int], head_size: int, num_prefix_tokens: int) -> None:
        super().__init__()
        frequencies = 2 * math.pi / 100 ** (np.arange(head_size // 4) * 4 / head_size)
        rows, cols = ((2 * np.arange(0.5, size) / size - 1) for size in grid_size)
        places = np.stack(np.meshgrid(rows, cols, indexing='ij'), axis=-1).reshape(-1, 2, 1)
        angles = np.tile((places * frequencies).reshape(len(places), -1), 2)        # [N, d]
        angles = np.pad(angles, [(num_prefix_tokens, 0), (0, 0)])
        for name, table in (('cos', np.cos(angles)), ('sin', np.sin(angles))):
            self.register_buffer(name, paddle.to_tensor(table.astype('float32')), persistable=False)

    def forward(self, heads: Tensor) -> Tensor:                 # [B, H, P + N, d]
        x = heads.astype(self.cos.dtype)
        first, second = x.chunk(2, axis=-1)
        return (x * self.cos + paddle.concat([-second, first], -1) * self.sin).astype(heads.dtype)


class AttentionPool(nn.Layer):
    """What one learned query finds in the patches, and an MLP (Zhai et al., 2021; SigLIP)."""

    kernels = ('attention',)
    attention = staticmethod(attention)

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, gelu: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        normal = nn.initializer.Normal(std=embed_dim ** -0.5)
        self.latent = self.create_parameter([1, 1, embed_dim], default_initializer=normal)
        self.q = Linear(embed_dim, embed_dim)
        self.kv = Linear(embed_dim, 2 * embed_dim)
        self.proj = Linear(embed_dim, embed_dim)
        self.norm = LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio), 0., gelu)
        self.attn_dropout = nn.Dropout(0.)

    def forward(self, tokens: Tensor) -> Tensor:                # [B, N, D] -> [B, D]
        q = self.q(self.latent.expand([tokens.shape[0], -1, -1]))
        q, k, v = (heads.reshape([0, 0, self.num_heads, -1]).transpose([0, 2, 1, 3])
                   for heads in (q, *self.kv(tokens).chunk(2, axis=-1)))
        found = self.proj(self.attention(q, k, v, q.shape[3] ** -0.5, self.attn_dropout))
        return (found + self.mlp(self.norm(found)))[:, 0]


class StandardizedConv2D(nn.Conv2D):
    """Convolution without bias whose kernels have mean 0 and deviation 1 (Qiao et al., 2019).

    As in Google's code, 1e-5 is added to the deviation, and padding is TensorFlow's SAME.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding='SAME',
                         bias_attr=False)
        self.strides = stride

    def forward(self, images: Tensor) -> Tensor:
        centered = self.weight - self.weight.mean(axis=[1, 2, 3], keepdim=True)
        deviation = centered.square().mean(axis=[1, 2, 3], keepdim=True).sqrt()
        return F.conv2d(images, centered / (deviation + 1e-5), stride=self.strides, padding='SAME')


GROUPS = 32                     # in the norms of the hybrid's ResNet


class GroupNorm(nn.Layer):
    """Group normalisation in 32 groups, epsilon 1e-6 (Wu and He, 2018).

    Paddle's own layer never gives a gradient to a scale that is 0, as some are at the start.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = self.create_parameter([channels])
        self.bias = self.create_parameter([channels], is_bias=True)

    def forward(self, features: Tensor) -> Tensor:              # [B, channels, h, w]
        channels, height, width = features.shape[1:]
        groups = features.reshape([-1, GROUPS, channels // GROUPS * height * width])
        groups = F.layer_norm(groups, groups.shape[2:], epsilon=1e-6)
        normalized = groups.reshape([-1, channels, height, width])
        return normalized * self.weight.reshape([-1, 1, 1]) + self.bias.reshape([-1, 1, 1])


class ResNetUnit(nn.Layer):
    """Bottleneck of the hybrid's ResNet: 1x1, 3x3 (with the stride) and 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = StandardizedConv2D(in_channels, channels, 1)
        self.gn1 = GroupNorm(channels)
        self.conv2 = StandardizedConv2D(channels, channels, 3, stride)
        self.gn2 = GroupNorm(channels)
        self.conv3 = StandardizedConv2D(channels, out_channels, 1)
        self.gn3 = GroupNorm(out_channels)
        self.has_projection = in_channels != out_channels or stride != 1
        if self.has_projection:
            self.conv_proj = StandardizedConv2D(in_channels, out_channels, 1, stride)
            self.gn_proj = GroupNorm(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        branch = F.relu(self.gn1(self.conv1(features)))
        branch = F.relu(self.gn2(self.conv2(branch)))
        branch = self.gn3(self.conv3(branch))
        if self.has_projection:
            features = self.gn_proj(self.conv_proj(features))
        return F.relu(features + branch)


class ResNetStem(nn.Layer):
    """The ResNet in front of a hybrid's transformer (paper, Sec. 3.1 and Table 6).

    layers: units in each stage, (3, 4, 9) for R50+ViT. width: channels of the root; stage i has
    4 * width * 2**i. [B, 3, h, w] becomes [B, out_channels, h / stride, w / stride].
    """

    def __init__(self, in_channels, layers, width):
        super().__init__()
        self.stride = 4 * 2 ** (len(layers) - 1)
        self.out_channels = 4 * width * 2 ** (len(layers) - 1)
        self.num_stages = len(layers)
        self.conv_root = StandardizedConv2D(in_channels, width, 7, stride=2)
        self.gn_root = GroupNorm(width)
        in_channels = width
        for i, num_units in enumerate(layers):
            channels = width * 2 ** i
            stage = nn.Sequential()
            for unit in range(num_units):
                stride = 2 if i > 0 and unit == 0 else 1
                stage.add_sublayer(f'unit{unit + 1}', ResNetUnit(in_channels, channels, stride))
                in_channels = 4 * channels
            self.add_sublayer(f'block{i + 1}', stage)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.gn_root(self.conv_root(images)))
        features = F.max_pool2d(features, kernel_size=3, stride=2, padding='SAME')
        for i in range(self.num_stages):
            features = getattr(self, f'block{i + 1}')(features)
        return features
