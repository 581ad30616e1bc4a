"""Couplings: which x0 goes with which data of a batch."""

import abc
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num, PyTree

from .._event import as_state, state_dtype
from .._field import AbstractField
from .._kinds import check_kinds
from .._source import AbstractSource, Normal
from .._trainable import frozen
from .._types import Noun, PRNGKey, Time
from .._validate import as_array, check_count, parameter, stream, streams


class Pairs(NamedTuple):
    """What `couple` returns: `x0[i0]` goes with `x1[i1]`, row by row, and so do their labels.

    - `i0`, `i1`: rows of x0 and of x1. The rows of x1 come in their order, each exactly once.
    - `converged`: whether the plan was found. Where a cost is not finite, or above 1e30, it was not, and the rows are
      paired without regard to it.
    - `partners`: with how many rows of x0 a row of x1 may be paired, counted as `exp` of the mean entropy of the draw:
      1 for an assignment, n for independent pairs. A plan of Sinkhorn's near n is hardly better than none.

    ```python
    pairs = jf.train.couple(jr.key(0), jnp.array([[0.0], [5.0]]), jnp.array([[5.5], [0.5]]))
    assert pairs.i0.tolist() == [1, 0] and pairs.i1.tolist() == [0, 1] and pairs.converged and pairs.partners == 1
    ```
    """

    i0: Int[Array, " n"]
    i1: Int[Array, " n"]
    converged: Bool[Array, ""]
    partners: Float[Array, ""]


class AbstractPlan(Noun):
    """How the rows of x0 and x1 are paired, from the costs of their pairs.

    ```python
    class Nearest(jf.train.AbstractPlan):  # not a coupling: a row of x0 may come twice
        penalty = None

        def rows(self, key, cost):
            return jnp.argmin(cost, axis=0), jnp.array(True), jnp.array(1.0)

    x = jnp.arange(4.0)[:, None]
    assert (jf.train.couple(jr.key(0), x, x[::-1] + 0.1, Nearest()).i0 == jnp.arange(4)[::-1]).all()
    ```
    """

    penalty: eqx.AbstractVar[Array | None]
    """What a pair of unequal labels costs, in the unit of costs; `None` for plans that see no labels."""
    balanced: ClassVar[bool] = False
    """Whether all rows weigh the same on both sides, so that costs of one row alone change no plan. They are left out
    then, for the digits of the rest: far from each other, two batches would have none left."""

    @abc.abstractmethod
    def rows(
        self, key: PRNGKey, cost: Float[Array, "n n"]
    ) -> tuple[Int[Array, " n"], Bool[Array, ""], Float[Array, ""]]:
        """For each row of x1 its row of x0; whether the plan was found; and the number of partners of `Pairs`.

        `cost[i, j]` is that of pairing `x0[i]` with `x1[j]`, finite, in the unit that `couple` says.
        """


class Independent(AbstractPlan):
    """Pairs at random: a permutation of x0 that is uniform over all, whatever the costs.

    ```python
    pairs = jf.train.couple(jr.key(0), jnp.zeros((4, 2)), jnp.ones((4, 2)), jf.train.Independent())
    assert sorted(pairs.i0.tolist()) == [0, 1, 2, 3]
    ```
    """

    penalty: ClassVar[None] = None

    def rows(
        self, key: PRNGKey, cost: Float[Array, "n n"]
    ) -> tuple[Int[Array, " n"], Bool[Array, ""], Float[Array, ""]]:
        n = len(cost)
        return jr.permutation(key, n), jnp.array(True), jnp.asarray(n, cost.dtype)


class Assignment(AbstractPlan):
    """The permutation of least total cost, exact to the rounding of the costs: each row exactly once on both sides.

    It runs on the device, by shortest augmenting paths in O(n^3), from a start that Sinkhorn's iteration finds.

    Source: of the algorithm, Jonker and Volgenant 1987, A shortest augmenting path algorithm for dense and sparse
    linear assignment problems, Computing 38; of its use in a minibatch, Pooladian et al. 2023, arXiv:2304.14772, and
    Tong et al. 2023, arXiv:2302.00482; of the penalty, Cheng and Schwing 2025, arXiv:2503.10636.

    ```python
    x0, x1 = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[7.0], [5.0], [6.0]])
    assert jf.train.couple(jr.key(0), x0, x1, jf.train.Assignment()).i0.tolist() == [2, 0, 1]
    ```
    """

    penalty: Array | None = frozen()
    balanced: ClassVar[bool] = True

    def __init__(self, penalty: Time | None = None):
        """Makes the plan; `penalty` is what a pair of unequal labels costs, in the unit of `couple`.

        Raises `ValueError` for a penalty that is not positive.
        """
        self.penalty = None if penalty is None else parameter(penalty, "penalty")

    def rows(
        self, key: PRNGKey, cost: Float[Array, "n n"]
    ) -> tuple[Int[Array, " n"], Bool[Array, ""], Float[Array, ""]]:
        return _assigned(cost), jnp.array(True), jnp.ones((), cost.dtype)


class Sinkhorn(AbstractPlan):
    """Draws from the entropic plan, `argmin <P, C> - epsilon H(P)` over `P` with uniform marginals.

    Each row j of x1 comes exactly once, with a row of x0 drawn from `P[:, j]`; a row of x0 so comes once on average,
    and may come twice or never. A small `epsilon` approaches the assignment, and takes more iterations; a large one
    approaches independent pairs, which `partners` shows.

    The iteration runs on logarithms, `f_i = -epsilon log sum_j exp((g_j - C_ij)/epsilon)` and alike for `g`, until the
    marginal of x0 is right.

    Source: Cuturi 2013, arXiv:1306.0895; of its use in a minibatch, Tong et al. 2023, arXiv:2302.00482.

    ```python
    x0, x1 = jnp.arange(4.0)[:, None], jnp.arange(4.0)[:, None] + 9
    pairs = jf.train.couple(jr.key(0), x0, x1, jf.train.Sinkhorn(epsilon=0.02))
    assert pairs.converged and pairs.i0.tolist() == [0, 1, 2, 3] and pairs.partners < 1.1
    ```
    """

    max_iterations: int = eqx.field(static=True)
    epsilon: Array = frozen()
    penalty: Array | None = frozen()
    tolerance: Array = frozen()
    balanced: ClassVar[bool] = True

    def __init__(
        self, epsilon: Time = 0.05, penalty: Time | None = None, tolerance: Time = 1e-2, max_iterations: int = 2000
    ):
        """Makes the plan.

        Args:
            epsilon: The weight of the entropy, in the unit of costs that `couple` says.
            penalty: What a pair of unequal labels costs, in the same unit.
            tolerance: The total variation, times 2, by which the marginal of x0 may be off.
            max_iterations: How many updates of both potentials are made at most.

        Raises `ValueError` for numbers that are not positive.
        """
        check_count(max_iterations=max_iterations)
        self.epsilon, self.tolerance = parameter(epsilon, "epsilon"), parameter(tolerance, "tolerance")
        self.penalty = None if penalty is None else parameter(penalty, "penalty")
        self.max_iterations = max_iterations

    def rows(
        self, key: PRNGKey, cost: Float[Array, "n n"]
    ) -> tuple[Int[Array, " n"], Bool[Array, ""], Float[Array, ""]]:
        scores = -cost / self.epsilon.astype(cost.dtype)

        def step(state):
            f, g, _, k = state
            new = -jax.nn.logsumexp(
                scores + g[None], axis=1
            )  # potentials over epsilon; the columns are exact for (f, g)
            error = jnp.mean(jnp.abs(jnp.expm1(f - new)))
            return new, _balanced(scores, new), error, k + 1

        def on(state):
            return (state[2] > self.tolerance.astype(cost.dtype)) & (state[3] < self.max_iterations)

        zero = jnp.zeros(len(cost), cost.dtype)
        start = zero, _balanced(scores, zero), jnp.asarray(jnp.inf, cost.dtype), 0
        f, _, error, _ = jax.lax.while_loop(on, step, start)
        chances = jax.nn.log_softmax(scores + f[:, None], axis=0)
        entropy = -jnp.mean(jnp.sum(jnp.exp(chances) * chances, axis=0))
        return jr.categorical(key, chances, axis=0), error <= self.tolerance.astype(cost.dtype), jnp.exp(entropy)


def _balanced(scores, f):
    """The potentials of the columns, over epsilon, that give each of them the mass 1."""
    return -jax.nn.logsumexp(scores + f[:, None], axis=0)


_HINT, _HINTS = 0.02, 50  # epsilon and iterations of the first discounts: they change the time, not the optimum


def _assigned(cost):
    """For each column its row, in the assignment of least total cost.

    Each column has a discount, and a row that has a column has one whose `cost - discount` is least in that row: so a
    partial assignment is optimal for its rows. Any discounts may begin. Those of Sinkhorn leave few rows to place.
    """
    n, columns, scores = len(cost), jnp.arange(len(cost)), -cost / _HINT

    def balance(_, g):
        return _balanced(scores, -jax.nn.logsumexp(scores + g[None], axis=1))

    discount = _HINT * jax.lax.fori_loop(0, _HINTS, balance, jnp.zeros(n, cost.dtype))
    cheapest = jnp.argmin(cost - discount[None], axis=1)
    row_of = jnp.full(n, n).at[cheapest].min(columns)  # n: nobody has the column
    placed = row_of[cheapest] == columns
    waiting = jnp.argsort(placed)  # the others come first

    def place(k, state):
        return _place(cost, waiting[k], *state)

    return jax.lax.fori_loop(0, n - jnp.sum(placed), place, (discount, row_of, cheapest))[1]


def _place(cost, first, discount, row_of, column_of):
    """Gives the row `first` a column, along the cheapest way of rows that hand theirs on and take another one."""
    n, columns = len(cost), jnp.arange(len(cost))

    def extend(search):
        """Looks from a row at all columns, and goes to the nearest of those that were not visited."""
        way, before, seen, row, so_far, _ = search
        through = so_far + cost[row] - discount
        shorter = ~seen & (through < way)
        way, before = jnp.where(shorter, through, way), jnp.where(shorter, row, before)
        column = jnp.argmin(jnp.where(seen, jnp.inf, way))
        row = jnp.minimum(row_of[column], n - 1)
        so_far = way[column] - cost[row, column] + discount[column]
        return way, before, seen | (columns == column), row, so_far, column

    nowhere = jnp.full(n, jnp.inf, cost.dtype), jnp.zeros(n, int), jnp.zeros(n, bool)
    search = extend((*nowhere, first, jnp.zeros((), cost.dtype), 0))
    search = jax.lax.while_loop(lambda search: row_of[search[-1]] < n, extend, search)
    way, before, seen, _, _, last = search
    discount = discount + jnp.where(seen, way - way[last], 0)

    def hand_on(handed):
        row_of, column_of, column, _ = handed
        row = before[column]
        return row_of.at[column].set(row), column_of.at[row].set(column), column_of[row], row == first

    handed = row_of, column_of, last, jnp.array(False)
    row_of, column_of, _, _ = jax.lax.while_loop(lambda handed: ~handed[-1], hand_on, handed)
    return discount, row_of, column_of


_PLANS: dict[str, Callable[[], AbstractPlan]] = {
    "independent": Independent,
    "assignment": Assignment,
    "sinkhorn": Sinkhorn,
}

Couple = Callable[[PRNGKey, PyTree], PyTree] | Literal["independent", "assignment", "sinkhorn"]
"""`f(key, batch) -> batch` on a whole batch, or the name of a plan for `Coupling(plan)`."""


def couple(
    key: PRNGKey,
    x0: PyTree,
    x1: PyTree,
    plan: AbstractPlan | None = None,
    *,
    labels: tuple[Num[ArrayLike, "n ..."], Num[ArrayLike, "n ..."]] | None = None,
) -> Pairs:
    """Pairs the rows of two batches by a plan: the indices of the pairs, so that labels of any kind follow.

    The cost of a pair is `|x0_i - x1_j|^2 / s`, and `penalty` more where the labels of the two rows differ. The unit
    `s` is the root mean square of `2 (x0_i - mean x0) . (x1_j - mean x1)` over all n^2 pairs. This product is the part
    of the squared distance that depends on both rows. The other part, of one row each, changes no plan; it would be
    nearly the whole unit in many dimensions. With a large penalty (as 1000), and as many rows of each label on both
    sides, no label is mixed. The law of x0 within a label is then unchanged, as conditional sampling needs.

    An assignment takes a time of order n^3.

    Args:
        key: Decides what the plan draws; an assignment draws nothing.
        x0: Events at the noise end, arrays of a leading axis n.
        x1: Events at the data end, as many.
        plan: `Independent()`, `Assignment()`, `Sinkhorn()` or your own; by default `Assignment()`.
        labels: Those of the rows of x0 and those of x1, for a plan with a penalty.

    Raises `ValueError` for batches of other sizes or shapes, labels without a penalty or a penalty without labels.
    Where a cost is not finite, `converged` says so, and nothing raises. Under `jax.jit`, new values of epsilon and
    penalty do not retrace.

    Source: Pooladian et al. 2023, arXiv:2304.14772; Tong et al. 2023, arXiv:2302.00482.

    ```python
    key_0, key_1 = jr.split(jr.key(0))
    x0, x1, label = jr.normal(key_0, (8, 2)), jr.normal(key_1, (8, 2)) + 4, jnp.arange(8)
    pairs = jf.train.couple(jr.key(1), x0, x1)
    x0, x1, label = x0[pairs.i0], x1[pairs.i1], label[pairs.i1]
    assert pairs.converged and sorted(pairs.i0.tolist()) == label.tolist() == list(range(8))
    ```
    """
    check_kinds(couple, locals())
    plan = Assignment() if plan is None else plan
    x0, x1 = as_state(x0, "x0"), as_state(x1, "x1")
    n, shapes = _length(x1), [[leaf.shape for leaf in jtu.tree_leaves(x)] for x in (x0, x1)]
    if jtu.tree_structure(x0) != jtu.tree_structure(x1) or shapes[0] != shapes[1]:
        raise ValueError(
            "Two batches that are coupled must have the same structure and shapes. "
            f"Got {shapes[0]} for x0 and {shapes[1]} for x1."
        )
    if (labels is None) != (plan.penalty is None):
        raise ValueError(
            "Labels must go with a plan that has a penalty for unequal ones, as Assignment(penalty=1000.0). "
            f"Got {plan!r} {'without' if labels is None else 'with'} labels."
        )
    both = None if labels is None else [as_array(label, "A label") for label in labels]
    if both is not None and (len(both) != 2 or any(a.shape[:1] != (n,) or a.shape != both[0].shape for a in both)):
        raise ValueError(
            f"labels must be a pair, those of x0 and those of x1, each of {n} rows. "
            f"Got shapes {', '.join(str(label.shape) for label in both)}."
        )
    return _couple(stream(key, "couple"), x0, x1, plan, both)


_MOST = 1e30  # of a cost, that their sums are finite too


@eqx.filter_jit
def _couple(key, x0, x1, plan, labels):
    x0, x1 = _matrix(x0), _matrix(x1)
    mean_0, mean_1 = (jnp.mean(x, axis=0, keepdims=True) for x in (x0, x1))
    x0, x1 = x0 - mean_0, x1 - mean_1  # the product then loses fewer digits, and rows and columns have no mean
    # What depends on both rows. Distances concentrate where components are many, and this part alone makes the plan.
    both = -2 * jnp.matmul(x0, x1.T, precision=jax.lax.Precision.HIGHEST)
    scale = jnp.sqrt(jnp.mean(both**2))
    cost = both
    if not plan.balanced:
        shift = mean_0 - mean_1
        squares_0, squares_1 = jnp.sum((x0 + shift) ** 2, axis=1), jnp.sum((x1 - shift) ** 2, axis=1)
        cost = squares_0[:, None] + squares_1[None] - jnp.sum(shift**2) + both
    cost = cost / jnp.where(scale > 0, scale, 1)
    if labels is not None:
        unequal = (labels[0][:, None] != labels[1][None]).reshape(*cost.shape, -1).any(axis=-1)
        cost = cost + jnp.asarray(plan.penalty, cost.dtype) * unequal
    finite = jnp.all(jnp.abs(cost) < _MOST) & jnp.isfinite(scale)
    i0, converged, partners = plan.rows(key, jnp.where(finite, cost, 0))  # of NaN an assignment would find no end
    return Pairs(i0, jnp.arange(len(cost)), converged & finite, partners)


def _length(x: PyTree) -> int:
    """The number of rows of a batch."""
    sizes = {leaf.shape[0] if leaf.shape else 0 for leaf in jtu.tree_leaves(x)}
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(leaf.shape) for leaf in jtu.tree_leaves(x))
        raise ValueError(f"A batch that is coupled must have a common leading axis. Got arrays of shapes {shapes}.")
    return sizes.pop()


def _matrix(x):
    """A batch of events as a matrix of their components, a row an event."""
    dtype = state_dtype(x)
    return jnp.concatenate([leaf.reshape(len(leaf), -1).astype(dtype) for leaf in jtu.tree_leaves(x)], axis=1)


class Coupling(Noun):
    """`f(key, batch) -> batch` for `step(..., couple=f)`: pairs the data of a batch with noise, by a plan.

    It draws as many x0 as the batch has rows, from the source of the field's path, or takes those of `batch["x0"]`,
    and adds them as `batch["x0"]`, paired: all else stays where it is. `batch["converged"]` says for each row whether
    the plan was found, so that a loss can report it. A plan with a penalty reads `batch[label]`, and takes the labels
    in their order as those of x0 too.

    A loss takes the pairs as `matching_loss(..., x0=example["x0"])`, and the path's source must say that there are
    pairs: `Normal(coupled=True)`, or `GIVEN` where x0 comes with the batch. Plans see events without padding.

    Called by itself, without a field, it draws x0 from N(0, I).

    ```python
    field = jf.Field(jf.nn.MLP(2, rngs=nnx.Rngs(0)), jf.CondOT(source=jf.Normal(coupled=True)), "velocity")
    state = jf.train.init(field, optax.adam(1e-3))

    def loss(field, key, example):
        return jf.matching_loss(field, key, example["x"], x0=example["x0"])

    batch, coupling = {"x": jr.normal(jr.key(0), (16, 2))}, jf.train.Coupling(jf.train.Assignment())
    state, info = jf.train.step(state, loss, jr.key(1), batch, couple=coupling)
    assert info.finite and coupling(jr.key(2), batch)["x0"].shape == (16, 2)
    ```
    """

    plan: AbstractPlan
    data: str = eqx.field(static=True)
    label: str = eqx.field(static=True)

    def __init__(self, plan: AbstractPlan | None = None, *, data: str = "x", label: str = "label"):
        """Makes the function.

        Args:
            plan: The plan, by default `Assignment()`.
            data: The name of the data in the batch.
            label: The name of the labels in the batch, for a plan with a penalty.
        """
        self.plan, self.data, self.label = Assignment() if plan is None else plan, data, label

    def __call__(self, key: PRNGKey, batch: PyTree, source: AbstractSource | None = None) -> dict[str, PyTree]:
        """The batch with `"x0"` and `"converged"`; `source` draws x0 where the batch has none.

        Raises `ValueError` for a batch that is no dictionary, or has no entry of the names that are needed.
        """
        names = [self.data] if self.plan.penalty is None else [self.data, self.label]
        if not isinstance(batch, dict) or any(name not in batch for name in names):
            got = f"the entries {sorted(batch)}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
            raise ValueError(
                f"A batch that is coupled must be a dictionary with {' and '.join(map(repr, names))}. Got {got}: name "
                "them, as Coupling(plan, data='image'), or write f(key, batch) with jflow.train.couple."
            )
        key_source, key_plan = streams(key, "Coupling", 2)
        x1, x0 = as_state(batch[self.data], "Data"), batch.get("x0")
        n = _length(x1)
        if x0 is None:
            source = Normal(coupled=True) if source is None else source
            x0 = jax.vmap(source.sample)(jr.split(key_source, n), x1)
        labels = None if self.plan.penalty is None else (batch[self.label],) * 2
        pairs = couple(key_plan, x0, x1, self.plan, labels=labels)
        paired = jtu.tree_map(lambda leaf: jnp.asarray(leaf)[pairs.i0], x0)
        return {**batch, "x0": paired, "converged": jnp.broadcast_to(pairs.converged, (n,))}


def paired(couple: Couple, field: PyTree, key: PRNGKey, batch: PyTree, mesh: Mesh | None) -> PyTree:
    """The batch of a step, coupled; raises `ValueError` where the source of the field's path does not allow pairs."""
    source = field.path.source if isinstance(field, AbstractField) else None
    if source is not None and not source.coupled:
        raise ValueError(
            "Pairs must have a source that says so, for with dependent pairs the score is not -noise/sigma. "
            f"Got couple= for a field along a path with the source {type(source).__name__}(): take "
            "jf.CondOT(source=jf.Normal(coupled=True)) where x0 is Gaussian, or source=jf.GIVEN."
        )

    def spread(tree, *axes):
        return (
            tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*axes)))
        )

    couple = Coupling(_PLANS[couple]()) if isinstance(couple, str) else couple
    key = jr.fold_in(key, np.uint32(len(jtu.tree_leaves(batch)[0])))  # that of the example after the last
    batch = spread(batch)  # every device pairs the whole batch
    batch = couple(key, batch, source) if isinstance(couple, Coupling) else couple(key, batch)
    return spread(spread(batch), "data")
