"""Mutations of the privacy path: each a fault that some test must notice (see `mutants.py`)."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """One change of one place.

    Attributes:
        name: In words.
        file: Path from the root of the repository.
        old: The text that is there once.
        new: What stands in its place.
        tests: Tests of which one fails on it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple


def _named(file, *names):
    return tuple(f"tests/privacy/test_{file}.py::test_{name}" for name in names)


def _accounted(*names):
    return _named("accounted", *names)


def _once(*names):
    return _named("noise_once", *names)


def _killed(*names):
    return _named("mutants_killed", *names)


def _of(file, *rows):
    return [Mutation(name, f"tffed/{file}.py", old, new, tests) for name, old, new, tests in rows]


_SEEDS = _once("bound_seeds_differ_for_any_bit_and_known_ones_stay")
_FAILS = _once("a_callback_that_fails_does_not_bring_a_round_back")
_BACK = _once("a_state_put_back_counts_twice_and_its_cohorts_are_no_secret_any_more")
_KILLED = _once("a_killed_round_that_was_seen_is_counted_once_where_it_is_the_same")
_OTHER = _once("what_was_seen_of_other_data_before_a_kill_is_counted_too")
_PASSES = _accounted("every_pass_over_an_example_counts")
_DROPS = _accounted("dropped_clients_stay_in_the_divisor_of_noise_on_the_weights")
_OWN = _accounted("a_sampler_of_ones_own_is_counted_and_not_believed")
_TREES = _accounted("trees_of_several_compiles_are_several_and_of_orders_that_change_refused")
_BESIDE = _accounted("what_travels_beside_the_noised_sum_is_named")
_ALL_SEEDS = "one_secret_gives_one_release_one_noise_and_any_other_another"
_ON_UPDATE = _once(f"{_ALL_SEEDS}[update]")
_COPIED = "a_copied_checkpoint_directory_has_no_noise_in_common_with_other_data"
_ROUND = _killed("the_seed_of_a_round_depends_on_all_that_it_computes_on")
_LEDGER = _killed("a_ledger_goes_on_from_json_with_all_that_it_knew")
_STDDEV = _named("stages", "noise_has_its_standard_deviation[gaussian]")

_PAYS = "sampled_steps_cost_what_they_cost_the_client_that_pays_most"
_TREE_NOISE = "adaptive_and_tree"

MUTATIONS = [
    *_of(
        "random",
        (
            "random.bound without its key",
            "hashlib.blake2b(digest_size=16, key=secret.numpy().tobytes())",
            "hashlib.blake2b(digest_size=16)",
            _killed("bound_and_cohort_seeds_follow_from_the_secret_and_are_not_it"),
        ),
        (
            "random.bound without types and shapes",
            'digest.update(f"{array.dtype.str}{array.shape}{len(content)}:".encode())',
            "pass",
            _SEEDS,
        ),
        (
            "random.bound runs texts together",
            "content = repr(array.tolist()).encode()",
            'content = b"".join(array.tolist())',
            _SEEDS,
        ),
        (
            "random.bound without what it is bound to",
            "        digest.update(content)\n",
            "        pass\n",
            _SEEDS,
        ),
        (
            "random.known knows nothing",
            "return bool(np.all(np.asarray(secret) >> 31 == 0))",
            "return False",
            _SEEDS,
        ),
        (
            "cohort_seed is the noise's secret",
            'words = bound(secret, "cohorts").numpy()',
            "words = secret.numpy()",
            _killed("bound_and_cohort_seeds_follow_from_the_secret_and_are_not_it"),
        ),
        (
            "cohort_seed is public",
            'words = bound(secret, "cohorts").numpy()',
            'words = bound(tf.zeros([2], tf.int64), "cohorts").numpy()',
            _once("the_seed_of_cohorts_is_another_than_that_of_the_noise"),
        ),
    ),
    *_of(
        "engines/round_noise",
        (
            "RoundNoise.begin without the context",
            "self._bound(state.noise, self._context, rest)",
            "self._bound(state.noise, rest)",
            _ON_UPDATE,
        ),
        (
            "RoundNoise.begin without the state",
            "self._bound(state.noise, self._context, rest)",
            "self._bound(state.noise, self._context)",
            _ROUND,
        ),
        (
            "RoundNoise.of_clients without their data",
            "self._bound(bc.noise, *things)",
            "self._bound(bc.noise)",
            _once(f"{_COPIED}[update]"),
        ),
        (
            "RoundNoise.of_server without the sum",
            "self._bound(state.noise, total)",
            "self._bound(state.noise)",
            _once(f"{_COPIED}[sum]"),
        ),
        (
            "RoundNoise.end keeps the seed of the round",
            "return state._replace(noise=self._secret)",
            "return state",
            _ROUND,
        ),
        (
            "RoundNoise.release is the same for all rounds",
            "random.bound(self._secret, *sorted(self._drawn))",
            "random.bound(self._secret)",
            _PASSES,
        ),
        (
            "RoundNoise binds nothing",
            "self._binds = tf.is_tensor(state.noise) and not random.known(state.noise)",
            "self._binds = False",
            _once(f"{_COPIED}[sum]"),
        ),
    ),
    *_of(
        "engines/embedded",
        (
            "clients' own states are not bound to",
            "noise.of_clients(bc, () if clients.resident else read, states)",
            "noise.of_clients(bc, () if clients.resident else read)",
            _killed("noise_in_steps_depends_on_what_clients_have_kept"),
        ),
    ),
    *_of(
        "privacy/ledger",
        (
            "ledger counts repetitions",
            "if release in self._releases:",
            "if False:",
            _KILLED,
        ),
        (
            "ledger takes every round for a repetition",
            "if release in self._releases:",
            "if self._releases:",
            _PASSES,
        ),
        (
            "ledger joins rounds that do not follow each other",
            "return last.terms == terms and number == last.first + last.rounds",
            "return last.terms == terms",
            _killed("rounds_that_do_not_follow_each_other_are_entries_of_their_own"),
        ),
        (
            "ledger amplifies a cohort that was used twice",
            "if terms.scheme in AMPLIFIED and self._reveal(number):",
            "if False:",
            _BACK,
        ),
        (
            "ledger leaves the first use of a cohort amplified",
            "self.entries[place : place + 1] = [part for part in parts if part.rounds]",
            "pass",
            _BACK,
        ),
        (
            "ledger takes cohorts of other runs for the same",
            "if entry.run != self._number or before < 0 or after < 0:",
            "if before < 0 or after < 0:",
            _killed("cohorts_of_another_run_are_other_cohorts"),
        ),
        (
            "ledger's runs have no numbers",
            "        self._number += 1\n",
            "",
            _killed("cohorts_of_another_run_are_other_cohorts"),
        ),
        (
            "ledger forgets the leaves of a tree",
            "return {} if number % period == 0 else dict(self._tree)",
            "return {}",
            _TREES,
        ),
        (
            "ledger does not note the leaves of a tree",
            "            self._tree |= dict.fromkeys(cohort, number)\n",
            "",
            _TREES,
        ),
        (
            "ledger forgets leaves when it goes on",
            'other._tree = {_hashable(cid): number for cid, number in found.get("tree", ())}',
            "other._tree = {}",
            _LEDGER,
        ),
        (
            "ledger forgets exposure when it goes on",
            'Exposure((_hashable(cid), count) for cid, count in found["exposure"])',
            "Exposure()",
            _LEDGER,
        ),
        (
            "ledger goes back to a checkpoint",
            "if self.rounds >= other.rounds and self._begins_as(other):",
            "if False:",
            _LEDGER,
        ),
        (
            "ledger forgets a branch",
            "if other._begins_as(self):",
            "if True:",
            _named("claims", "of_two_branches_of_a_run_both_count"),
        ),
        (
            "ledger forgets another run's rounds",
            "other.entries = [entry._replace(run=-1) for entry in self.entries] + other.entries",
            "pass",
            _LEDGER,
        ),
    ),
    *_of(
        "privacy/accounts",
        (
            "cohorts follow from the public seed",
            "secret = plan.terms.scheme in AMPLIFIED and not random.known(state.noise)",
            "secret = False",
            _once("cohorts_under_a_claim_follow_from_no_public_seed"),
        ),
        (
            "accounts do not check exposures",
            "if found > planned:",
            "if False:",
            _accounted("a_budget_is_not_exceeded_by_a_sampler_that_changes_its_mind"),
        ),
        (
            "accounts do not check trees",
            "plan.ledger.check_tree(mechanism.period, number, self.cohorts.of(number))",
            "pass",
            _TREES,
        ),
        (
            "accounts do not look whether the server's rate keeps to the budget",
            "self._dearer |= rate > self._terms.server_rate",
            "self._dearer |= False",
            _killed("a_budget_holds_where_the_servers_rate_rises"),
        ),
        (
            "accounts count nobody",
            "cohort = tuple(self.cohorts.of(number)) if counted else ()",
            "cohort = ()",
            _accounted("the_sampling_of_clients_hides_no_example"),
        ),
        (
            "accounts do not look at the server's rate",
            "terms = terms.at(float(state.optimizer.learning_rate))",
            "pass",
            _killed("noise_on_weights_is_accounted_at_the_servers_rate_of_each_round"),
        ),
        (
            "accounts write nothing to the disk",
            "            self._plan.files.note(record)\n",
            "            pass\n",
            _OTHER,
        ),
    ),
    *_of(
        "fitting",
        (
            "callbacks see a round before it is kept",
            'logs["dropped"], engine.release)\n        keep(state, plan.files.store)\n',
            'logs["dropped"], engine.release)\n',
            _FAILS,
        ),
        (
            "callbacks see a round before it is written",
            'accounts.write(state, number, logs["dropped"], engine.release)\n'
            "        keep(state, plan.files.store)\n",
            "plan.all_callbacks.on_epoch_end(epoch, logs)\n"
            '        accounts.write(state, number, logs["dropped"], engine.release)\n'
            "        keep(state, plan.files.store)\n",
            _FAILS,
        ),
        (
            "no checkpoint before the first round",
            "if plan.terms.mechanism is not None and plan.files.empty:",
            "if False:",
            _KILLED,
        ),
        (
            "accounts are not asked before a round",
            "        accounts.check(state)\n",
            "",
            _accounted("a_budget_is_not_exceeded_by_a_sampler_that_changes_its_mind"),
        ),
    ),
    *_of(
        "federated",
        (
            "noise is bound to no context",
            "context=json.dumps(identity, sort_keys=True).encode(),",
            'context=b"",',
            _ON_UPDATE,
        ),
        (
            "rounds that were noted are not counted",
            'self.ledger.record(Record.from_json(record))',
            "pass",
            _OTHER,
        ),
        (
            "a budget ends with its fit",
            "budget = self._budget = self._budget if budget is None else budget",
            "self._budget = self._budget if budget is None else budget",
            _accounted("a_budget_goes_on_after_the_fit_that_gave_it"),
        ),
        (
            "runs of one Federated share cohorts",
            "            self.ledger.close()\n",
            "",
            _killed("cohorts_of_another_run_are_other_cohorts"),
        ),
        (
            "models of other ledgers go unnoticed",
            "            mark(self.model, self.ledger)\n",
            "            pass\n",
            _accounted("a_model_with_rounds_in_another_ledger_is_noticed"),
        ),
    ),
    *_of(
        "identity",
        (
            "a run's identity is without its data",
            '"data": data(clients),',
            '"data": None,',
            _ON_UPDATE,
        ),
    ),
    *_of(
        "journal",
        (
            "journal drops the notes of the present",
            'if record["number"] >= number]',
            'if record["number"] > number]',
            _killed("a_journal_keeps_whole_lines_of_rounds_that_a_checkpoint_does_not_hold"),
        ),
        (
            "journal is readable by all",
            "descriptor = private_files.opener(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)",
            "descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)",
            _killed("a_journal_keeps_whole_lines_of_rounds_that_a_checkpoint_does_not_hold"),
        ),
        (
            "journal reads half a line",
            'self._path.read_bytes().split(b"\\n")[:-1]',
            'self._path.read_bytes().split(b"\\n")',
            _killed("a_journal_keeps_whole_lines_of_rounds_that_a_checkpoint_does_not_hold"),
        ),
    ),
    *_of(
        "resume",
        (
            "notes of the checkpoint's round are passed over",
            'if r["number"] >= found["round"]]',
            'if r["number"] > found["round"]]',
            _OTHER,
        ),
    ),
    *_of(
        "privacy/terms",
        (
            "examples hide in the sampling of clients",
            "if mechanism.place in (CLIENT_STEPS, CLIENT_UPDATE):",
            "if mechanism.place == CLIENT_UPDATE:",
            _killed("the_draw_of_a_cohort_hides_no_example"),
        ),
        (
            "passes over an example are not counted",
            "((uses.passes, None),)",
            "((1, None),)",
            _PASSES,
        ),
        (
            "noise on weights is for half of what a client moves",
            'moved = built.aggregator.moves(built.aggregator.bound, facts.get("size"))',
            'moved = built.aggregator.moves(built.aggregator.bound, facts.get("size")) / 2',
            _DROPS,
        ),
        (
            "noise on weights is without the server's rate",
            "clip = built.server.learning_rate * moved",
            "clip = moved",
            _killed("noise_on_weights_is_accounted_at_the_servers_rate_of_each_round"),
        ),
        (
            "a sampler's word is believed",
            "type(sampler) in own",
            "isinstance(sampler, own)",
            _OWN,
        ),
        (
            "cohorts of own samplers may have any divisor",
            'if facts["scheme"] in (POISSON, "custom"):',
            'if facts["scheme"] == POISSON:',
            _OWN,
        ),
        (
            "sizes may be given as weights",
            "return np.allclose(",
            "return False and np.allclose(",
            _accounted("weights_by_numbers_of_examples_are_seen_through"),
        ),
        (
            "the client that takes part least counts",
            "self.most = max([self.most, *(self._counts[cid] for cid in cohort)])",
            "self.most = min(self._counts[cid] for cid in cohort)",
            _killed("the_client_that_takes_part_most_often_counts"),
        ),
    ),
    *_of(
        "algorithms/arguments",
        (
            "sampled steps cost what they cost the largest client",
            "in worst))",
            "in worst[:1]))",
            _accounted(f"{_PAYS}[sizes2]"),
        ),
    ),
    *_of(
        "privacy/claims",
        (
            "known noise counts",
            " or terms.fixed_noise and not believed",
            "",
            _accounted("known_noise_is_an_infinite_epsilon_in_every_form"),
        ),
        (
            "noise for another unit counts",
            " or mechanism.unit != unit",
            "",
            _killed("noise_for_examples_hides_no_client_and_the_other_way_round"),
        ),
        (
            "a tree that goes on is taken for a new one",
            "rounds += entry.first % mechanism.period",
            "rounds += 0",
            _killed("a_tree_that_goes_on_counts_the_leaves_before"),
        ),
        (
            "the strongest adversary is claimed",
            "_WHO[max(places, key=_PLACES.index)]",
            "_WHO[min(places, key=_PLACES.index)]",
            _accounted("the_weakest_adversary_of_all_rounds_is_claimed"),
        ),
        (
            "clients are added where it shows",
            "        _check_hidden(entry.terms, relation)\n",
            "        pass\n",
            _accounted("no_client_is_added_or_removed_where_its_presence_shows[stages1-None]"),
        ),
        (
            "any delta will do",
            "delta >= 1 / terms.population",
            "delta > 1",
            _accounted("what_one_id_means_and_deltas_that_mean_nothing_are_said"),
        ),
        (
            "of many kinds of clients the largest rate is not taken",
            "max(r or 1.0 for _, r in one)",
            "min(r or 1.0 for _, r in one)",
            _killed("too_many_kinds_of_clients_are_bounded_by_the_worst_of_each"),
        ),
        (
            "rounds count, not those of the busiest client",
            "rounds = entry.exposure if terms.scheme == SCHEDULE else entry.rounds",
            "rounds = entry.rounds",
            _accounted("the_sampling_of_clients_hides_no_example"),
        ),
    ),
    *_of(
        "privacy/accounting",
        (
            "the best of alternatives counts",
            "if found is None or here.epsilon > found.epsilon:",
            "if found is None or here.epsilon < found.epsilon:",
            _killed("the_worst_of_alternatives_counts_by_each_accountant"),
        ),
        (
            "the first alternative is the last one looked at",
            "if found is not None and bound.epsilon <= found.epsilon:",
            "if found is not None:",
            _killed("the_worst_of_alternatives_counts_by_each_accountant"),
        ),
        (
            "several releases a round cost one",
            "z / math.sqrt(release.per_round)",
            "z",
            _PASSES,
        ),
        (
            "a tree that has just begun costs nothing",
            "(rest, 1)]",
            "(rest, 0)]",
            _named("accounting", "trees"),
        ),
    ),
    *_of(
        "privacy/budget",
        (
            "a budget forgets what was spent",
            "entries = [*ledger.entries, Entry(here, count,",
            "entries = [Entry(here, count,",
            _accounted("a_budget_goes_on_after_the_fit_that_gave_it"),
        ),
        (
            "a budget plans no exposure",
            "entries = [*ledger.entries, Entry(here, count, most[count], 0, first)]",
            "entries = [*ledger.entries, Entry(here, count, min(1, count), 0, first)]",
            _killed("a_budget_holds_where_clients_take_part_by_a_schedule"),
        ),
        (
            "a budget does not believe known noise",
            "budget.relation, believed=True)",
            "budget.relation)",
            _accounted("known_noise_is_an_infinite_epsilon_in_every_form"),
        ),
    ),
    *_of(
        "privacy/releases",
        (
            "cohorts of fixed size have the sensitivity of coins",
            " or sampling.scheme == FIXED_SIZE else left_out",
            " else left_out",
            _named("accounting", "releases_of_mechanisms"),
        ),
        (
            "another's update in a unit's place costs one",
            "return 2.0 if relation == REPLACE_ONE or",
            "return 2.0 if",
            _named("accounting", "releases_of_mechanisms"),
        ),
        (
            "sensitivity is left out",
            "mechanism.noise_multiplier / change,",
            "mechanism.noise_multiplier,",
            _named("accounting", "releases_of_mechanisms"),
        ),
    ),
    *_of(
        "composition",
        (
            "what is sent beside noised updates is accepted",
            "if aggregator.mechanisms and tf.nest.flatten(extra):",
            "if aggregator.private and tf.nest.flatten(extra):",
            _accounted("what_clients_send_beside_a_noised_update_is_refused[scaffold-noise0]"),
        ),
        (
            "dropped clients leave the divisor",
            "if self._aggregator.private:  # what is divided by",
            "if False:  # what is divided by",
            _DROPS,
        ),
    ),
    *_of(
        "aggregation/chain",
        (
            "noise on weights is not private",
            "m.place in (SERVER_SUM, AVERAGED_WEIGHTS)",
            "m.place == SERVER_SUM",
            _DROPS,
        ),
        (
            "clients choose their weight",
            "tf.clip_by_value(weight, 0.0, 1.0)",
            "weight",
            _named("stages", "what_enters_the_sum_is_bounded_whatever_is_sent[gaussian]"),
        ),
    ),
    *_of(
        "privacy/ghost",
        (
            "layers from elsewhere have ghost norms",
            "return keras_own and not isinstance(layer, keras.layers.Lambda)",
            "return not isinstance(layer, keras.layers.Lambda)",
            _accounted("layers_that_may_couple_large_batches_go_the_safe_way[Compete]"),
        ),
        (
            "lambdas have ghost norms",
            "return keras_own and not isinstance(layer, keras.layers.Lambda)",
            "return keras_own",
            _accounted("layers_that_may_couple_large_batches_go_the_safe_way[<lambda>]"),
        ),
    ),
    *_of(
        "privacy/unprotected",
        (
            "what stages report is not named",
            "stats else []",
            "False else []",
            _BESIDE,
        ),
        (
            "lengths that vary are not named",
            "if varies else []",
            "if False else []",
            _BESIDE,
        ),
        (
            "metrics of validation are not named",
            'if watched.validation == "clients that train":',
            "if False:",
            _BESIDE,
        ),
        (
            "metrics without noise may be acted on",
            'else f"NOT MET: {name} acts',
            'else f"{name} acts',
            _accounted("callbacks_that_act_on_metrics_without_noise_are_named"),
        ),
    ),
    *_of(
        "privacy/queries",
        (
            "what is not finite enters the sum",
            "return tree.select(tree.all_finite(found), found, tree.zeros_like(found))",
            "return found",
            _named("stages", "what_enters_the_sum_is_bounded_whatever_is_sent[gaussian]"),
        ),
        (
            "half of the noise",
            "stddev * random.normal(list(leaf.shape), own)",
            "0.5 * stddev * random.normal(list(leaf.shape), own)",
            _STDDEV,
        ),
        (
            "variables share their noise",
            "seeds = [random.fold_in(seed, i) for i in range(len(leaves))]",
            "seeds = [seed for _ in leaves]",
            _STDDEV,
        ),
        (
            "a public seed makes noise",
            'if getattr(seed, "dtype", None) != tf.int64:',
            "if False:",
            _named("stage_refusals", "a_public_seed_is_refused"),
        ),
        (
            "the count costs nothing",
            "return (noise_multiplier**-2 - (2 * count_stddev) ** -2) ** -0.5",
            "return noise_multiplier",
            _named(_TREE_NOISE, "sum_and_count_together_cost_what_the_multiplier_says"),
        ),
        (
            "each layer is clipped to the whole norm",
            "share = clip / number**0.5",
            "share = clip",
            _named("stages", "noise_0_equals_the_sum_of_clipped_updates[per layer]"),
        ),
    ),
    *_of(
        "privacy/stages",
        (
            "the server does not clip again",
            "return encode, lambda shared, payload, like: queries.bounded(query(payload), payload)",
            "return encode, lambda shared, payload, like: payload",
            _named("stages", "what_enters_the_sum_is_bounded_whatever_is_sent[tree]"),
        ),
        (
            "an adaptive clip is taken twice",
            "queries.bounded(queries.gaussian(bound, 0.0), payload)",
            "queries.bounded(queries.gaussian(2 * bound, 0.0), payload)",
            _named("stages", "what_enters_the_sum_is_bounded_whatever_is_sent[adaptive]"),
        ),
        (
            "counts of hostile clients are trusted",
            '{"below": tf.clip_by_value(stats["below"], -0.5, 0.5)}',
            "stats",
            _named("stages", "what_enters_the_sum_is_bounded_whatever_is_sent[adaptive]"),
        ),
        (
            "a client that diverges sends no noise",
            "record = queries.bounded(query(value), value)",
            "record = queries.clip(query(value), value)",
            _killed("a_client_that_diverges_sends_noise_like_any_other"),
        ),
        (
            "half of the noise on the weights",
            "queries.noise(weights, stddev, seed)",
            "queries.noise(weights, stddev / 2, seed)",
            _named("stages", "noise_on_weights_has_its_standard_deviation"),
        ),
    ),
    *_of(
        "privacy/dp_optimizer",
        (
            "noise of steps without the clip",
            "_query_class()(clip, clip * noise_multiplier)",
            "_query_class()(clip, noise_multiplier)",
            _named("example_level", "noise_has_its_standard_deviation_and_is_fresh[None-False]"),
        ),
        (
            "noise of steps is divided twice",
            "random.normal([sum(sizes)], state.seed) * state.stddev",
            "random.normal([sum(sizes)], state.seed) * state.stddev / 2",
            _named("example_level", "noise_has_its_standard_deviation_and_is_fresh[None-False]"),
        ),
    ),
    *_of(
        "privacy/example_level",
        (
            "two microbatch means differ by one clip",
            "sensitivity=1.0 if self.microbatches is None else 2.0",
            "sensitivity=1.0",
            _named("example_level", "calibration_and_mechanism"),
        ),
    ),
    *_of(
        "privacy/tree_noise",
        (
            "nodes of a round share a seed",
            "random.fold_in(seed, number))",
            "seed)",
            _named(_TREE_NOISE, "cumulative_tree_noise_has_honakers_covariance_and_restarts"),
        ),
        (
            "a louder tree goes on with soft nodes",
            "same = (state.stddev == stddev) & (state.rounds % period != 0)",
            "same = (state.stddev >= 0) & (state.rounds % period != 0)",
            _named(_TREE_NOISE, "another_multiplier_begins_another_tree"),
        ),
        (
            "a tree never begins again",
            "same = (state.stddev == stddev) & (state.rounds % period != 0)",
            "same = state.stddev == stddev",
            _named(_TREE_NOISE, "cumulative_tree_noise_has_honakers_covariance_and_restarts"),
        ),
        (
            "a leaf is drawn in the round before its own",
            "_padded(here.level_buffer_idx, state.levels, -1),",
            "_padded(after.tree_state.level_buffer_idx, state.levels, -1),",
            _named(_TREE_NOISE, "cumulative_tree_noise_has_honakers_covariance_and_restarts"),
        ),
    ),
]
