"""Small exported folders, and protobuf messages to change them with."""

import os

from common.deploy import engine as engines
from common.deploy.export import save_program
from common.deploy.predict import make_dynamic_predictor
from common.deploy.program import read_fields
from tests.support.recipe import fill_by_recipe
from ViT.vit import VisionTransformer


def export_small_vit(folder, **options):
    """Write program, parameters and check of a ViT with random weights, without a record."""
    os.makedirs(folder, exist_ok=True)
    model = VisionTransformer(**{'image_size': 16, 'patch_size': 8, 'num_classes': 3,
                                 'embed_dim': 16, 'depth': 1, 'num_heads': 2, **options})
    fill_by_recipe(model)
    model.eval()
    images = engines.make_check_images(16)
    engines.write_check(folder, make_dynamic_predictor(model)(images), 16)
    save_program(model, 16, folder)
    return folder


def encode(fields):
    """Return the protobuf message of [(number, int, text or bytes)]."""
    message = bytearray()
    for number, value in fields:
        is_number = isinstance(value, int)
        message += encode_varint(number << 3 | (0 if is_number else 2))
        if is_number:
            message += encode_varint(value)
        else:
            content = value.encode() if isinstance(value, str) else bytes(value)
            message += encode_varint(len(content)) + content
    return bytes(message)


def encode_varint(value):
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes(parts) + bytes([value])


def list_fields(message):
    """Return [(number, int or bytes)] of a message without fixed-size numbers."""
    return [(number, value if wire == 0 else bytes(value))
            for number, wire, value in read_fields(memoryview(message))]


def make_onnx(nodes, domain='', initializer=None, graph=(), model=()):
    """Return an ONNX model. nodes: dicts with op_type, inputs, outputs, domain, attribute.

    graph, model: [(number, value)] of further fields.
    """
    initializer = initializer or encode([(1, 1), (2, 1), (8, 'weight'), (9, bytes(4))])
    parts = [(1, encode([*((1, name) for name in node['inputs']),
                         *((2, name) for name in node['outputs']), (4, node['op_type']),
                         (7, node.get('domain', '')),
                         *((5, node[key]) for key in ('attribute',) if key in node)]))
             for node in nodes]
    content = encode([*parts, (2, 'graph'), (5, initializer), *graph])
    return encode([(1, 8), (7, content), (8, encode([(1, domain), (2, 17)])), *model])
