"""Checks of data against a model, made before any training time is spent."""

import keras
import numpy as np

from tffed.arguments import integer_from
from tffed.data import ClientData, from_dict
from tffed.data.checks import checked, in_order, read_examples
from tffed.data.lazy import LazyClientData
from tffed.data.nest import map_leaves
from tffed.data.spec import LeafSpec, named_leaves, num_examples, spec_of, tensor_specs
from tffed.model_inputs import by_input, check_inputs, input_check
from tffed.sequence_padding import padding_is_seen
from tffed.targets import by_output, losses_by_output, target_check

_COMPUTE_LOSS = keras.Model.compute_loss
_DIFFERS = -1  # a length that differs between clients, but not in the model's inputs


class DataCheck:
    """Checks data of one compiled model: what TensorFlow would change or get wrong silently.

    Args:
        model: A compiled `keras.Model`.
        functional: Its `FunctionalModel`, to see whether it ignores padding; None: it is not asked.
        before: The check that was used until now, whose columns stay known.
    """

    def __init__(self, model, functional=None, before=None):
        self.model = model
        self._functional = functional
        # Of the tables that were read first, and of those that were mapped first.
        self._columns = before._columns if before else {}
        self._source_columns = before._source_columns if before else {}
        self._inputs = input_check(model)
        self._targets = target_check(model)

    def __call__(self, arrays, where=""):
        """Checks the values of `(x, y[, sample_weight])`.

        Raises:
            ValueError: A value is outside of what the model, its loss or its tables take.
        """
        where = where and f" of {where}"
        self._inputs(arrays[0], where)
        self._targets(arrays[1], where)

    def read(self, data, where):
        """Returns checked arrays of `(x, y[, sample_weight])`, with columns as in training."""
        reading = read_examples(data, where)
        return checked(in_order(reading, self._known(reading.columns), where), where).parts

    def _known(self, columns):
        """The order of columns to ask for, where it is known: a map may have changed names."""
        if self._columns:
            return self._columns
        source = self._source_columns
        same = all(set(source.get(name, ())) == set(given) for name, given in columns.items())
        return source if same else {}

    def _in_order(self, clients):
        """The population with columns, or the columns that it is mapped from, as known."""
        mapped = clients.source_columns
        if mapped:
            known = self._source_columns or self._columns
            same = all(set(known.get(name, ())) == set(given) for name, given in mapped.items())
            known = known if same or self._source_columns else mapped
            clients = clients.source_in_order(known)
            self._source_columns = known
        if clients.columns and (known := self._known(clients.columns)):
            clients = clients.in_order(known)
        self._columns = self._columns or clients.columns
        return clients

    def population(self, clients) -> ClientData:
        """Returns the population as it is to be trained on: checked, or checked while it is read.

        Raises:
            ValueError: It does not suit the model, or lengths differ and the model sees padding.
        """
        clients = self._in_order(as_clients(clients))
        if isinstance(clients, LazyClientData):
            clients = self._lazy(clients)
        check_inputs(self.model, clients.spec)
        if clients.resident:
            self._all(clients)
        return clients

    def _lazy(self, clients):
        inputs = getattr(self.model, "inputs", None)
        rank = len(inputs[0].shape) - 1 if inputs else None
        clients = clients.view(check=self, rank=rank)
        check_inputs(self.model, clients.spec)
        clients = clients.view(spec=self._settled(clients.leaf_specs()))
        opened = self._opened(clients.leaf_specs())
        lengths = [size for _, leaf in named_leaves(opened) for size in leaf.shape]
        if _DIFFERS in lengths or None not in lengths or self._functional is None:
            if clients.lengths_differ:
                clients.examples(clients.ids)  # raises an error that names the client
            return clients
        padded = clients.view(spec=opened)
        seen = padding_is_seen(self._functional, padded, opened)
        if seen is None:
            return clients.padded(opened)
        if clients.lengths_differ:
            raise ValueError(
                "Expected examples of one length, or a model that ignores the zeros they are "
                f"padded with. Received: several lengths, and {seen}. Give the first layer "
                "mask_zero=True (Embedding), or put keras.layers.Masking before, and use layers "
                "that heed masks; or pad to one length yourself."
            )
        return clients

    def _settled(self, spec):
        """The spec with targets as floats where the loss computes with floats."""
        targets = by_output(self.model, spec[1]) or []
        if type(self.model).compute_loss is not _COMPUTE_LOSS:
            return spec
        floats = {
            id(leaf)
            for leaf, (_, kind, _) in zip(targets, losses_by_output(self.model), strict=False)
            if isinstance(leaf, LeafSpec) and kind != "sparse_categorical_crossentropy"
        }

        def settle(leaf):
            return LeafSpec(leaf.shape, np.dtype(np.float32)) if id(leaf) in floats else leaf

        return map_leaves(settle, spec)

    def _opened(self, spec):
        """The spec with None for the lengths that the model leaves open, and only for those."""
        shapes = {id(leaf): tensor.shape for tensor, _, leaf in by_input(self.model, spec[0])}
        outputs = getattr(self.model, "outputs", None) or []
        for targets in (by_output(self.model, part) for part in spec[1:]):
            for leaf, tensor in zip(targets or [], outputs, strict=False):
                shapes[id(leaf)] = tensor.shape

        def open_leaf(leaf):
            sizes = tuple(_DIFFERS if size is None else size for size in leaf.shape)
            pairs = zip(sizes, shapes.get(id(leaf), ())[1:], strict=False)
            known = tuple(None if free is None else size for size, free in pairs)
            return LeafSpec(known + sizes[len(known) :], leaf.dtype)

        return map_leaves(open_leaf, spec)

    def _all(self, clients):
        try:
            self(clients.examples([]).arrays)
        except ValueError:
            for client_id in clients.ids:  # whose are they?
                if clients.sizes([client_id])[0]:
                    self(clients[client_id], f"client {client_id!r}")
            raise


def check_rounds(rounds, initial_round, validation_freq, checkpoint_freq):
    """The counts that `Federated.fit` takes, as ints, checked."""
    given = (
        ("rounds", rounds, 1),
        ("initial_round", initial_round, 0),
        ("validation_freq", validation_freq, 1),
        ("checkpoint_freq", checkpoint_freq, 1),
    )
    rounds, initial_round, *others = (integer_from(least, *pair) for *pair, least in given)
    if initial_round >= rounds:
        raise ValueError(
            "`initial_round` must be less than `rounds`, which counts from the run's start. "
            f"Received: initial_round={initial_round}, rounds={rounds}"
        )
    return rounds, initial_round, *others


def as_clients(clients):
    """The population that `fit` is given, as a `ClientData`."""
    if isinstance(clients, ClientData):
        return clients
    if isinstance(clients, dict):
        return from_dict(clients)
    raise ValueError(
        "Expected a ClientData (tffed.data.partition, from_dict, from_folder, …) or a dictionary "
        f"{{client id: (x, y)}}. Received: clients of type {type(clients).__name__}"
    )


def is_clients(data):
    """Whether data are given client by client: a `ClientData`, or a dictionary of clients' data."""
    if isinstance(data, dict):
        return bool(data) and all(map(_is_examples, data.values()))
    return isinstance(data, ClientData)


def _is_examples(value):
    pair = isinstance(value, tuple | list) and len(value) in (2, 3)
    return pair or hasattr(value, "as_numpy_iterator")


def as_arrays(data, check):
    """`(x, y[, sample_weight])` as arrays, checked with a `DataCheck`."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise ValueError(
            "Expected validation data as (x, y) or (x, y, sample_weight), or clients: a "
            "ClientData, or a dictionary {client id: (x, y)}. "
            f"Received: {type(data).__name__}"
        )
    where = "the validation data"
    arrays = check.read(tuple(part for part in data if part is not None), where)
    if not num_examples(arrays):
        raise ValueError(
            "Expected validation data with at least one example. Received: none. Leave "
            "validation_data out, or give examples."
        )
    check_inputs(check.model, tensor_specs(spec_of(arrays)))
    check(arrays, where)
    return arrays
