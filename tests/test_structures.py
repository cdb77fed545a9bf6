"""Structures: which weights of a kernel live and die together."""

import math

import numpy as np
import pytest
from cases import LAYERS, STRUCTURES, every_layer, every_structure, groups_of, numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import keras_gibbs as kg
from keras_gibbs.structure.layouts import Layout, layout_of


def counting(shape):
    return np.arange(math.prod(shape), dtype="float32").reshape(shape)


@every_layer
def test_the_layout_of_every_layer_names_its_axes(layer_case):
    layer = layer_case.built()
    positions, inputs, outputs = layer_case.axes
    assert layout_of(layer, len(layer.kernel.shape)) == Layout(positions, inputs, outputs)


@every_layer
@every_structure
def test_restore_undoes_arrange(structure, layer_case):
    kernel = counting(layer_case.built().kernel.shape)
    layout = Layout(*layer_case.axes)
    arranged = structure.arrange(kernel, layout)
    assert len(arranged.shape) == 3
    assert np.array_equal(numpy(structure.restore(arranged, kernel.shape, layout)), kernel)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_restore_undoes_arrange_for_any_layout(data):
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    roles = data.draw(st.lists(st.sampled_from(range(3)), min_size=len(shape), max_size=len(shape)))
    layout = Layout(*(tuple(axis for axis, role in enumerate(roles) if role == wanted) for wanted in range(3)))
    kernel = counting(shape)
    for structure in STRUCTURES.values():
        assert np.array_equal(numpy(structure.restore(structure.arrange(kernel, layout), tuple(shape), layout)), kernel)


@every_layer
@every_structure
def test_the_columns_of_an_arranged_kernel_are_its_groups(structure, layer_case):
    kernel = counting(layer_case.built().kernel.shape)
    if structure.removes_outputs and not layer_case.filters:
        pytest.skip("filters of a depthwise kernel")
    columns = numpy(structure.arrange(kernel, Layout(*layer_case.axes)))
    columns = columns.reshape(-1, columns.shape[-1]).T
    assert np.array_equal(np.sort(columns, axis=1), np.sort(groups_of(kernel, structure, layer_case.axes), axis=1))


@every_layer
@every_structure
def test_expand_gives_every_weight_of_a_group_one_value_and_pool_gets_it_back(structure, layer_case):
    kernel = counting(layer_case.built().kernel.shape)
    layout = Layout(*layer_case.axes)
    groups = np.arange(structure.arrange(kernel, layout).shape[2], dtype="float32")
    expanded = numpy(structure.expand(groups, kernel.shape, layout))
    assert expanded.shape == kernel.shape
    assert np.allclose(numpy(structure.pool(expanded, layout)), groups, rtol=1e-6)


@every_layer
@every_structure
def test_pool_is_the_mean_over_a_group_whatever_the_layout(structure, layer_case):
    kernel = np.random.default_rng(0).normal(size=layer_case.built().kernel.shape).astype("float32")
    if structure.removes_outputs and not layer_case.filters:
        pytest.skip("filters of a depthwise kernel")
    means = groups_of(kernel, structure, layer_case.axes).mean(axis=1)
    assert np.allclose(numpy(structure.pool(kernel, Layout(*layer_case.axes))), means, atol=1e-6)


def test_pool_and_expand_by_hand():
    kernel = np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]], "float32")  # 2 inputs, 3 units
    assert numpy(kg.Unstructured().pool(kernel)).tolist() == [1, 2, 3, 5, 6, 7]
    assert numpy(kg.Kernel().pool(kernel)).tolist() == [1, 2, 3, 5, 6, 7]
    assert numpy(kg.Filter().pool(kernel)).tolist() == [3, 4, 5]
    assert numpy(kg.Filter().expand(np.array([1.0, 0.0, 1.0]), (2, 3))).tolist() == [[1, 0, 1], [1, 0, 1]]


def test_a_convolution_pools_by_hand():
    kernel = np.zeros((2, 2, 2, 3), "float32")
    kernel[:, :, 1, 2] = 4.0
    assert numpy(kg.Kernel().pool(kernel)).tolist() == [0, 0, 0, 0, 0, 4]
    assert numpy(kg.Filter().pool(kernel)).tolist() == [0, 0, 2]


def test_the_filters_of_a_transposed_convolution_are_its_output_channels():
    layer = LAYERS["conv2d-transpose"].built()  # kernel (3, 3, 4 out, 2 in)
    kernel = np.zeros(layer.kernel.shape, "float32")
    kernel[:, :, 1, :] = 1.0
    assert numpy(kg.Filter().pool(kernel, layout_of(layer, 4))).tolist() == [0, 1, 0, 0]


def test_removing_a_filter_silences_exactly_one_output_channel():
    for name in ("conv1d", "conv2d", "conv2d-grouped", "conv2d-transpose", "conv1d-transpose", "dense", "einsum", "einsum-merge"):
        layer = LAYERS[name].built(use_bias=False) if "einsum" not in name else LAYERS[name].built()
        layout = layout_of(layer, len(layer.kernel.shape))
        groups = np.ones(4 if name != "einsum-merge" else 6, "float32")
        groups[2] = 0
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(np.zeros(layer.bias.shape))
        layer.kernel.assign(layer.kernel.value * kg.Filter().expand(groups, tuple(layer.kernel.shape), layout))
        outputs = numpy(layer(LAYERS[name].inputs()))
        silent = np.abs(outputs).reshape(-1, outputs.shape[-1]).max(axis=0) == 0
        assert silent.tolist() == [channel == 2 for channel in range(len(groups))], name


def test_the_heads_of_an_einsum_layer_are_filters_of_their_own():
    layer = LAYERS["einsum-heads"].built()  # kernel (6 in, 2 heads, 4 wide)
    assert kg.Filter().pool(layer.kernel.value, layout_of(layer, 3)).shape == (8,)


def test_filters_of_a_depthwise_kernel_are_refused_with_what_to_use():
    for layer in (layers.DepthwiseConv1D(3, name="deep"), layers.DepthwiseConv2D(3, name="deep")):
        with pytest.raises(ValueError, match=r"Filter.*'deep'.*Kernel\(\)"):
            kg.Filter().check(layer)
        for structure in (kg.Unstructured(), kg.Kernel()):
            structure.check(layer)


def test_structures_are_equal_by_value_and_say_whether_they_remove_outputs():
    assert kg.Kernel() == kg.Kernel() != kg.Filter()
    assert [structure.removes_outputs for structure in STRUCTURES.values()] == [False, False, True]
