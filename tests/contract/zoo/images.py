"""Convolutions, pooling, reshaping and Keras's own applications."""

import keras
from keras import layers as L

from tests.contract.case import case, chain, clients, real, share, whole
from tests.contract.witness import Trial

# Each a case of its own, and branches of one model.
CONVOLUTIONS = {
    "conv_1d": ((6, 2), lambda: [L.Conv1D(3, 3, padding="causal", dilation_rate=2)]),
    "conv_2d": ((5, 5, 2), lambda: [L.Conv2D(3, 3, activation="relu"), L.Conv2D(2, 2)]),
    "conv_2d_grouped": ((5, 5, 2), lambda: [L.Conv2D(4, 3, strides=2, groups=2)]),
    "conv_3d": ((4, 4, 4, 1), lambda: [L.Conv3D(2, 3)]),
    "conv_transposed_1d": ((4, 2), lambda: [L.Conv1DTranspose(3, 3, strides=2)]),
    "conv_transposed_2d": ((4, 4, 2), lambda: [L.Conv2DTranspose(3, 3, strides=2)]),
    "conv_depthwise": ((5, 5, 2), lambda: [L.DepthwiseConv2D(3, depth_multiplier=2)]),
    "conv_depthwise_1d": ((5, 2), lambda: [L.DepthwiseConv1D(3)]),
    "conv_separable": ((5, 5, 2), lambda: [L.SeparableConv2D(3, 3)]),
    "conv_separable_1d": ((5, 2), lambda: [L.SeparableConv1D(3, 3)]),
}
POOLING = {
    "pooling_2d": ((4, 4, 2), lambda: [L.Conv2D(3, 1), L.MaxPooling2D(), L.Flatten()]),
    "pooling_average": ((4, 4, 2), lambda: [L.Conv2D(3, 1), L.AveragePooling2D()]),
    "pooling_1d": ((6, 2), lambda: [L.Conv1D(3, 1), L.MaxPooling1D(2), L.AveragePooling1D(2)]),
    "pooling_3d": ((4, 4, 4, 1), lambda: [L.Conv3D(2, 1), L.MaxPooling3D(2)]),
    "pooling_global": ((4, 4, 2), lambda: [L.Conv2D(3, 1), L.GlobalMaxPooling2D()]),
    "pooling_global_average": ((4, 4, 2), lambda: [L.Conv2D(3, 1), L.GlobalAveragePooling2D()]),
    "pooling_adaptive": ((4, 4, 2), lambda: [L.Conv2D(3, 1), L.AdaptiveAveragePooling2D(2)]),
}
RESHAPING = {
    "upsampling": (
        (3, 3, 2),
        lambda: [L.Conv2D(2, 1), L.UpSampling2D(2, interpolation="bilinear")],
    ),
    "cropping_padding": ((4, 4, 2), lambda: [L.Conv2D(2, 1), L.Cropping2D(1), L.ZeroPadding2D(2)]),
    "reshape_permute": ((4, 6), lambda: [L.Dense(3), L.Permute((2, 1)), L.Reshape((6, 2))]),
    "repeat": ((4,), lambda: [L.Dense(3), L.RepeatVector(2), L.Cropping1D(1), L.UpSampling1D(2)]),
    "resizing": ((4, 4, 1), lambda: [L.Conv2D(2, 1), L.Resizing(3, 3), L.CenterCrop(2, 2)]),
    "normalisation_of_channels": ((4, 4, 4), lambda: [L.Conv2D(4, 1), L.GroupNormalization(2)]),
    "dropped_channels_at_rate_0": ((4, 4, 2), lambda: [L.Conv2D(2, 1), L.SpatialDropout2D(0.0)]),
}


def _alone(shape, layers):
    return lambda: Trial(
        chain(shape, *layers(), L.Flatten(), L.Dense(1)), clients(real(*shape), real(1))
    )


def _together(branches):
    """One model with an input and an output for each of the branches."""

    def make():
        inputs = [keras.Input(shape, name=name) for name, (shape, _) in branches.items()]
        outputs = []
        for x, (name, (_, layers)) in zip(inputs, branches.items(), strict=True):
            y = x
            for layer in layers():
                y = layer(y)
            outputs.append(L.Dense(1, name=f"{name}_out")(L.Flatten()(y)))
        x = {name: real(*shape) for name, (shape, _) in branches.items()}
        return Trial(keras.Model(inputs, outputs), clients(x, tuple(real(1) for _ in outputs)))

    return make


for group in (CONVOLUTIONS, POOLING, RESHAPING):
    for key, branch in group.items():
        case(name=key)(_alone(*branch))
case(name="convolutions_together")(_together(CONVOLUTIONS))
case(name="pooling_and_reshaping_together")(_together(POOLING | RESHAPING))


@case
def batch_normalisation():
    layers = [L.Conv2D(3, 3), L.BatchNormalization(momentum=0.7), L.ReLU(), L.Flatten()]
    model = chain((5, 5, 2), *layers, L.Dense(1))
    return Trial(model, clients(real(5, 5, 2), real(1)), rounds=2)


@case
def batch_normalisation_of_constant_momentum_0():
    model = chain((6,), L.Dense(4), L.BatchNormalization(momentum=0.0), L.Dense(1))
    return Trial(model, clients(real(6), real(1)))


@case
def batch_normalisation_frozen_and_nested():
    norm = L.BatchNormalization()
    inner = chain((6,), L.Dense(4), norm, L.Dense(4), L.BatchNormalization(scale=False))
    norm.trainable = False
    return Trial(chain((6,), inner, L.Dense(1)), clients(real(6), real(1)))


@case
def batch_normalisation_with_a_mask():
    layers = [L.Masking(), L.BatchNormalization(), L.LSTM(3), L.Dense(1)]
    return Trial(chain((4, 2), *layers), clients(_rows_of_zeros, real(1)))


def _rows_of_zeros(rng, n):
    x = real(4, 2)(rng, n)
    x[::2, 2:] = 0
    return x


@case
def activity_regularizer_of_a_convolution():
    conv = L.Conv2D(3, 3, activity_regularizer=keras.regularizers.L2(0.01))
    return Trial(chain((5, 5, 2), conv, L.Flatten(), L.Dense(1)), clients(real(5, 5, 2), real(1)))


@case
def augmentation_of_no_effect():
    """Layers that draw random numbers and change nothing by them."""
    layers = [L.RandomTranslation(0.0, 0.0), L.RandomContrast(0.0), L.RandomRotation(0.0)]
    model = chain((4, 4, 1), *layers, L.Flatten(), L.Dense(1))
    return Trial(model, clients(share(4, 4, 1), real(1)))


@case
def segmentation():
    model = chain((4, 4, 2), L.Conv2D(3, 3, padding="same", activation="softmax"))
    data = clients(real(4, 4, 2), whole(3, 4, 4))
    compiled = {"metrics": ["accuracy"]}
    return Trial(model, data, "sparse_categorical_crossentropy", compiled=compiled)


# Keras's applications, small and in double precision: through so many layers that are normalised
# by the statistics of a few examples, rounding is multiplied a million times. Keras's own weights
# in single precision move by half of their movement when inputs are changed by their last bit.


def _application(build, **options):
    def make():
        shape = (32, 32, 3)
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float64")
        try:
            model = build(input_shape=shape, weights=None, classes=3, **options)
        finally:
            keras.config.set_dtype_policy(before)
        data = clients(real(*shape), whole(3), sizes=(6, 4))
        loss = keras.losses.SparseCategoricalCrossentropy(dtype="float64")
        gentle = lambda: keras.optimizers.SGD(0.01)  # noqa: E731
        return Trial(model, data, loss, optimizer=gentle)

    return make


APPLICATIONS = {
    "mobilenet": (keras.applications.MobileNet, {"alpha": 0.25, "dropout": 0.0}),
    "mobilenet_v2": (keras.applications.MobileNetV2, {"alpha": 0.35}),
    "mobilenet_v3": (keras.applications.MobileNetV3Small, {"alpha": 0.75, "dropout_rate": 0.0}),
    "efficientnet": (keras.applications.EfficientNetB0, {"drop_connect_rate": 0.0}),
    "resnet_v2": (keras.applications.ResNet50V2, {}),
    "densenet": (keras.applications.DenseNet121, {}),
}
for key, (build, options) in APPLICATIONS.items():
    case(name=f"application_{key}")(_application(build, **options))
