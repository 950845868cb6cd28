"""Values against the model: what TensorFlow would change, or take wrongly, without a word."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers

import tffed
from tffed import data
from tffed.checks import DataCheck, as_arrays, check_rounds
from tffed.targets import loss_name

SPARSE = keras.losses.SparseCategoricalCrossentropy


def one_layer(units=3, inputs=2, loss="mse", dtype="float32", **layer):
    model = keras.Sequential([keras.Input((inputs,), dtype=dtype), layers.Dense(units, **layer)])
    model.compile(loss=loss)
    return model


def two_outputs(loss):
    x = keras.Input((2,))
    model = keras.Model(x, [layers.Dense(3, name="kind")(x), layers.Dense(1, name="age")(x)])
    model.compile(loss=loss)
    return model


X, KIND, AGE = np.ones((2, 2), "f4"), np.array([0, 2]), np.array([[50.0], [3.0]], "f4")


@pytest.mark.parametrize("loss", [{"kind": SPARSE(), "age": "mse"}, [SPARSE(), "mse"]])
@pytest.mark.parametrize("targets", [{"age": AGE, "kind": KIND}, [KIND, AGE], (KIND, AGE)])
def test_losses_meet_targets_by_name_or_place(loss, targets):
    check = DataCheck(two_outputs(loss))
    check((X, targets))
    wrong = KIND + 1
    bad = {"age": AGE, "kind": wrong} if isinstance(targets, dict) else [wrong, AGE]
    with pytest.raises(ValueError, match="3 output units.*labels from 1 to 3 of client 'a'"):
        check((X, bad), "client 'a'")


@pytest.mark.parametrize("ignored", [-1, 255])
def test_an_ignored_class_is_a_label(ignored):
    check = DataCheck(one_layer(loss=SPARSE(ignore_class=ignored)))
    check((X, np.array([0, ignored])))
    with pytest.raises(ValueError, match=f"0 to 2 \\(or {ignored}, which is ignored"):
        check((X, np.array([3, ignored])))


@pytest.mark.parametrize(
    "loss, good, bad",
    [
        ("binary_crossentropy", [0.0, 0.3, 1.0], -1),
        (keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1), [0, 1], 2),
        (keras.losses.binary_crossentropy, [0, 1], 2),
        ("categorical_crossentropy", [0.2, 0.8], 255),
        ("hinge", [-1, 1, 0], 0.5),
        (keras.losses.SquaredHinge(), [-1, 1], 3),
        ("poisson", [0, 7.5], -0.1),
        ("mean_squared_logarithmic_error", [0, 7.5], -3),
        ("mse", [-1e9, 3, 0.5], None),
        (lambda y, p: keras.ops.mean(y - p, -1), [-5, 255], None),
    ],
)
def test_targets_that_a_loss_cannot_take(loss, good, bad):
    check = DataCheck(one_layer(1, loss=loss))
    check((X, np.array(good, "f4")))
    if bad is not None:
        with pytest.raises(ValueError, match=f"The loss {loss_name(loss)} takes targets"):
            check((X, np.array([*good, bad], "f4")))


def test_an_own_loss_is_left_alone():
    class Own(keras.losses.BinaryCrossentropy):
        def call(self, y_true, y_pred):
            return keras.ops.mean(keras.ops.square(y_true - y_pred), -1)

    DataCheck(one_layer(loss=Own()))((X, np.array([5.0, -7.0])))


def graph(*, dtype="int32"):
    """An Embedding of 10 rows on the first of two columns, one of 4 in a nested model."""
    both, other = keras.Input((2,), dtype=dtype, name="both"), keras.Input((3,), name="other")
    inner = keras.Sequential(
        [keras.Input((3,)), layers.Reshape((3, 1)), layers.Embedding(4, 2), layers.Flatten()]
    )
    first = layers.Flatten()(layers.Embedding(10, 2)(both[:, :1]))
    out = layers.Dense(1)(layers.Concatenate()([first, inner(other)]))
    model = keras.Model([both, other], out)
    model.compile(loss="mse")
    return model


def test_ids_beyond_a_table_are_refused_as_far_as_the_graph_tells():
    check = DataCheck(graph())
    both, other, y = np.array([[9, 900], [0, -5]]), np.zeros((2, 3), "f4"), np.zeros(2)
    check(({"other": other, "both": both}, y))
    with pytest.raises(ValueError, match=r"10 rows.*ids from 0 to 10 in x\['both'\] of client 1"):
        check(({"other": other, "both": both + [[1, 0], [0, 0]]}, y), "client 1")
    for wrong, message in ((other + 4, "4 rows.*ids from 4 to 4"), (other - 1, "from -1 to -1")):
        with pytest.raises(ValueError, match=message):
            check(([both, wrong], y))
    # Keras itself refuses these ids, where XLA takes the last row.
    with pytest.raises(Exception, match="is not in"):
        graph().predict([both, other + 4], verbose=0)


def test_ids_that_the_model_computes_are_not_looked_at():
    x = keras.Input((1,), dtype="int32")
    model = keras.Model(x, layers.Flatten()(layers.Embedding(3, 1)(x % 3)))
    model.compile(loss="mse")
    DataCheck(model)((np.array([[12]]), np.zeros(1)))


@pytest.mark.parametrize(
    "dtype, x, message",
    [
        ("float32", [[2**24 + 1, 0]], "takes float32.*16777217 at row 0"),
        ("int32", [[0, 0], [2**31, 0]], "takes int32.*2147483648 at row 1"),
        ("int32", [[0.5, 0]], "takes int32.*0.5 at row 0"),
        ("uint8", [[-1, 0]], "takes uint8.*-1 at row 0"),
    ],
)
def test_numbers_that_the_inputs_dtype_cannot_hold(dtype, x, message):
    model = keras.Sequential([keras.Input((2,), dtype=dtype), layers.Rescaling(1.0)])
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=message):
        DataCheck(model)((np.array(x), np.zeros((len(x), 1))))
    DataCheck(model)((np.array([[2.0, 3.0]]), np.zeros((1, 1))))
    with pytest.raises(ValueError, match="computes in float32.*16777217"):
        DataCheck(model)((np.ones((1, 2)), np.array([[2**24 + 1]])))


def test_the_client_is_named_and_lazy_ones_are_checked_too():
    check = DataCheck(one_layer(loss=SPARSE()))
    held = {"a": (X, KIND), "b": (X, KIND + 1)}
    with pytest.raises(ValueError, match="labels from 1 to 3 of client 'b'"):
        check.population(held)
    lazy = check.population(data.from_function(held, held.__getitem__))
    assert lazy["a"][1].tolist() == [0, 2]
    with pytest.raises(ValueError, match="labels from 1 to 3 of client 'b'"):
        lazy.examples(["b"])


def test_validation_data_are_checked_likewise():
    check = DataCheck(one_layer(loss=SPARSE()))
    assert as_arrays((X, KIND, None), check)[0].shape == (2, 2)
    for wrong, message in (
        ((X, KIND + 1), "labels from 1 to 3 of the validation data"),
        ((np.ones((2, 5)), KIND), r"expects examples of shape \(2,\)"),
        ((X[:0], KIND[:0]), "at least one example"),
    ):
        with pytest.raises(ValueError, match=message):
            as_arrays(wrong, check)


def test_targets_of_lazy_clients_have_the_dtype_of_the_loss():
    data_of = {0: (X, np.array([3, 4])), 1: (X, np.array([3.5, 4]))}
    for loss, units, dtype in (("mse", 1, "float32"), (SPARSE(), 9, "int64")):
        check = DataCheck(one_layer(units, loss=loss))
        clients = check.population(data.from_function(data_of, data_of.__getitem__))
        assert clients[0][1].dtype == dtype
        assert clients.spec[1].dtype == dtype


@pytest.mark.parametrize("strings_in_model", [False, True])
def test_strings_need_a_model_that_takes_them(strings_in_model):
    words = np.array([["a", "b"]])
    x = keras.Input((2,), dtype="string" if strings_in_model else "float32")
    hidden = layers.StringLookup(vocabulary=["a", "b"])(x) if strings_in_model else x
    model = keras.Model(x, hidden)
    model.compile(loss="mse")
    good, bad = ((words, X[:1]) if strings_in_model else (X[:1], words))
    y = np.zeros((1, 2))
    DataCheck(model).population({0: (good, y)})
    with pytest.raises(ValueError, match="both strings or both numbers.*clients.map"):
        DataCheck(model).population({0: (bad, y)})


def test_columns_of_validation_data_are_those_of_training():
    train = pd.DataFrame({"age": [30.0], "income": [1.0]})
    other = pd.DataFrame({"income": [2.0], "age": [35.0]})
    y = np.zeros((1, 3))
    for read in (data.from_dict, lambda held: data.from_function(held, held.__getitem__)):
        check = DataCheck(one_layer())
        check.population(read({0: (train, y)}))
        for made in (data.from_dict, lambda held: data.from_function(held, held.__getitem__)):
            got = check.population(made({7: (other, y)}))
            np.testing.assert_array_equal(got.examples([7]).arrays[0], [[35, 2]])
            with pytest.raises(ValueError, match=r"\['age'\] are missing"):
                renamed = other.rename(columns={"age": "size"})
                check.population(made({7: (renamed, y)})).examples([7])
        np.testing.assert_array_equal(as_arrays((other, y), check)[0], [[35, 2]])


def test_mapped_tables_come_in_the_order_of_training(tmp_path):
    for name, text in (("train", "age,income,y\n30,1,0\n"), ("test", "income,age,y\n2,35,0\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").write_text(text)
    train, test = (data.from_folder(tmp_path / k, "*.csv", label="y") for k in ("train", "test"))

    def scale(x, y):
        return x / np.array([10.0, 1.0]), y

    def plain(x, y):
        return np.asarray(x), y

    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(loss="mse")
    for first, second, want in (
        (train.map(scale), test.map(scale), [[3.5, 2]]),
        (train.map(plain).map(scale), test.map(plain).map(scale), [[3.5, 2]]),
        (train, test.map(scale), [[3.5, 2]]),
        (train.map(plain), test, [[35, 2]]),
    ):
        check = DataCheck(model)
        check.population(first)
        got = check.population(second)
        np.testing.assert_array_equal(got.examples(["a"]).arrays[0], np.float32(want))
        again = DataCheck(model, before=check).population(second)  # after another compile
        np.testing.assert_array_equal(again["a"][0], np.float32(want))
    check = DataCheck(model)
    check.population(train.map(scale))
    other = data.from_dict({0: (pd.DataFrame({"size": [1.0], "age": [2.0]}), np.zeros(1))})
    with pytest.raises(ValueError, match=r"\['income'\] are missing"):
        check.population(other.map(scale)).examples([0])


def test_columns_stay_known_after_another_compile():
    table = pd.DataFrame({"age": [3.0, 4.0], "income": [1.0, 2.0]})
    y = np.array([[1.0], [2.0]])
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    fed = tffed.Federated(model, tffed.fed_avg(), seed=1)
    for _ in range(2):
        fed.compile(keras.optimizers.SGD(0.01), loss="mse", jit_compile=False)
        if fed.history is None:
            fed.fit({0: (table, y)}, verbose=0)
    want = model.evaluate(table.to_numpy(), y, verbose=0)
    assert fed.evaluate(table[["income", "age"]], y)["loss"] == pytest.approx(want, rel=1e-5)


def test_numbers_of_numpy_are_numbers():
    check_rounds(np.int64(2), np.int32(1), np.uint8(1), 1)
    for wrong in (np.float32(2), True, np.int64(0)):
        with pytest.raises(ValueError, match="`rounds` must be an integer of at least 1"):
            check_rounds(wrong, 0, 1, 1)


def test_shapes_of_targets_are_those_that_keras_takes():
    """The witness is Keras's own loss of as many examples as no layer has units."""
    losses = ["mse", "mae", "huber", "log_cosh", "binary_crossentropy", "kl_divergence", "hinge"]
    losses += ["categorical_crossentropy", "poisson", SPARSE(), keras.losses.MeanSquaredError()]
    for loss in losses:
        refused = 0
        for units in (1, 3):
            model = one_layer(units, loss=loss)
            check = DataCheck(model)
            for shape in ((), (1,), (2,), (3,), (3, 1)):
                x, y = np.ones((7, 2), "f4"), np.zeros((7, *shape), "f4")
                try:
                    model.compute_loss(x, tf.constant(y), model(x))
                except (ValueError, tf.errors.InvalidArgumentError):
                    with pytest.raises(ValueError, match="takes targets.*Received.*client 'b'"):
                        check((x, y), "client 'b'")
                    refused += 1
                else:
                    check((x, y))
        assert 2 <= refused <= 9, loss


def test_a_shape_that_fits_by_chance_is_refused():
    with pytest.raises(ValueError, match=r"mean_squared_error .* \[n, 3\].*Received: .* \[n\] of"):
        DataCheck(one_layer()).population({"a": (np.ones((3, 2)), np.zeros(3))})


def test_one_hot_labels_have_a_loss_of_their_own():
    with pytest.raises(ValueError, match=r"integer labels.*\[n, 3\] of client 'a'.*np.argmax"):
        DataCheck(one_layer(loss=SPARSE())).population({"a": (X, np.eye(3)[KIND])})


def test_targets_of_open_lengths_fit():
    model = keras.Sequential([keras.Input((None, 2)), layers.Dense(3)])
    model.compile(loss=SPARSE())
    check = DataCheck(model)
    for steps in (4, 5):
        check((np.ones((2, steps, 2)), np.zeros((2, steps), int)))
    with pytest.raises(ValueError, match=r"\[n, any\], integer labels.*Received: .*\[n, 4, 3\]"):
        check((np.ones((2, 4, 2)), np.zeros((2, 4, 3), int)))


def named_outputs(kind):
    x = keras.Input((2,))
    a, b = layers.Dense(1, name="a")(x), layers.Dense(1, name="b")(x)
    outputs = {"dict": {"p": a, "q": b}, "list": [a, b], "one": a, "one in a dict": {"p": a}}
    if kind == "sequential":
        return keras.Sequential([keras.Input((2,)), layers.Dense(1, name="a")])
    return keras.Model(x, outputs[kind])


@pytest.mark.parametrize("kind", ["dict", "list", "one", "one in a dict", "sequential"])
@pytest.mark.parametrize("loss", ["mse", {"p": "mse", "q": None}], ids=["mse", "of p alone"])
def test_names_of_targets_are_those_that_keras_takes(kind, loss):
    if loss != "mse" and kind != "dict":
        loss = "mae"
    x, y = np.ones((7, 2), "f4"), np.zeros((7, 1), "f4")
    nests = [y, [y], [y, y], (y, y), [y, y, y], {"p": y}, {"a": y}, {"u": y}]
    nests += [{"p": y, "q": y}, {"a": y, "b": y}, {"p": y, "u": y}]
    for nest in nests:
        model = named_outputs(kind)
        model.compile(loss=loss)
        check = DataCheck(model)
        try:
            model.compute_loss(x, tf.nest.map_structure(tf.constant, nest), model(x))
        except (ValueError, KeyError, TypeError):
            with pytest.raises(ValueError, match="has the outputs.*Received: y with.*client 'b'"):
                check((x, nest), "client 'b'")
        else:
            check((x, nest))


def test_names_of_inputs_are_those_that_keras_takes():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    out = layers.Dense(1)(layers.Concatenate()([a, b]))
    two, three = np.ones((2, 2)), np.ones((2, 3))
    for inputs, good, bad in (
        ([a, b], {"a": two, "b": three}, {"a": two, "u": three}),
        ({"b": a, "a": b}, {"b": two, "a": three}, {"p": two, "q": three}),
    ):
        model = keras.Model(inputs, out)
        model.compile(loss="mse")
        y = np.zeros(2)
        DataCheck(model).population({0: (good, y)})
        with pytest.raises(ValueError, match=r"keys \['a', 'b'\]. Received: .*Rename"):
            DataCheck(model).population({0: (bad, y)})
