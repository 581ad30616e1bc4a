"""A masked flow of letters: its law in N steps is the product of its matrices, its loss the entropy, CFG of logits."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jflow as jf

# The extension -------------------------------------------------------------------------------------------------------


class Constant(jf.AbstractSource):
    letter: int
    coupled = False

    def sample(self, key, like, args=None):
        return jnp.full(like.shape, self.letter, like.dtype)


class Masked(jf.AbstractPath):
    source: Constant
    letters = True

    def latent(self, key, like, args=None):
        return jr.uniform(key, like.shape)

    def interpolate(self, t, x0, x1, z=None):
        return jnp.where(z < t, x1, x0)

    def recommended(self, field, nfe, args=None):
        return jf.FixedSteps(jf.UniformGrid(nfe // field.evaluations(args)), Unmask())


class Unmask(jf.AbstractStepRule):
    noisy = True

    def draw(self, key, n, like):
        return jr.uniform(key, (n, *like.shape))

    def step(self, field, row, x, state, noise, args):
        (logits,) = field.predict(("logits",), row.t0, x, args)
        leaves = (row.t1 - row.t0) / (1 - row.t0)  # the probability that a mask goes in this step
        below = jnp.cumsum(jax.nn.softmax(logits), axis=-1) * leaves  # the distribution function of the letters
        letter = jnp.sum(noise[..., None] >= below, axis=-1)
        moves = (x == field.path.source.letter) & (noise < leaves)
        return jnp.where(moves, jnp.minimum(letter, logits.shape[-1] - 1), x).astype(x.dtype), state

    def check(self, field, sampler):
        if not isinstance(field.path, Masked):
            raise ValueError(f"Unmask() must have a masked path. Got {type(field.path).__name__}.")


# The law -------------------------------------------------------------------------------------------------------------

A, D = 3, 4
PATH = Masked(Constant(A))
WORDS = np.array(list(itertools.product(range(A), repeat=D)))
TABLE = np.random.default_rng(0).gamma(0.5, size=len(WORDS))
TABLE /= TABLE.sum()
STATES = np.array(list(itertools.product(range(A + 1), repeat=D)))
NUMBER = (A + 1) ** np.arange(D)[::-1]  # a state's number


class Posterior(jf.Noun):
    """The exact network: `p(letter i | the letters seen)`; a condition tilts the table."""

    table: jax.Array

    def __call__(self, t, x, args):
        words = jnp.asarray(WORDS)
        weights = self.table * jnp.all((x[None] == A) | (x[None] == words), axis=-1)
        if args is not None:
            weights = weights * jnp.exp(args * words[:, 0])
        weights = weights / jnp.sum(weights)
        return jnp.log(jnp.maximum(jnp.einsum("w,wia->ia", weights, jax.nn.one_hot(words, A)), 1e-30))


FIELD = jf.Field(Posterior(jnp.asarray(TABLE, jnp.float32)), PATH, "logits")


def letter_rates(leaves):
    """`(states, positions, A + 1)`: the law of each letter after a step, written down from the table."""
    rates = np.zeros((len(STATES), D, A + 1))
    for s, state in enumerate(STATES):
        seen = ((state == A) | (state == WORDS)).all(1) * TABLE
        for i in range(D):
            if state[i] < A:
                rates[s, i, state[i]] = 1
                continue
            for a in range(A):
                rates[s, i, a] = leaves * seen[WORDS[:, i] == a].sum() / seen.sum()
            rates[s, i, A] = 1 - leaves
    return rates


def law(n):
    """The product of the stochastic matrices of `n` steps, applied to the word of masks."""
    p = np.eye(len(STATES))[-1]
    for k in range(n):
        rates = letter_rates(1 / (n - k))
        matrix = np.ones((len(STATES), 1))
        for i in range(D):
            matrix = (matrix[:, :, None] * rates[:, i, None]).reshape(len(STATES), -1)
        p = p @ matrix
    return p[(STATES < A).all(1)]  # after the last step nothing is masked


def test_a_step_has_the_rates_of_the_table():
    """Letters move independently in a step: each one's law is the share of the uniform noise that leads there."""
    st = jf.stepper(FIELD, jf.FixedSteps(jf.UniformGrid(3), Unmask()))
    levels = (jnp.arange(400) + 0.5) / 400

    @jax.jit
    @jax.vmap
    def shares(x):
        after = jax.vmap(lambda u: st.step(st.row(1), x, None, jnp.full(D, u))[0])(levels)
        return jnp.mean(jax.nn.one_hot(after, A + 1), axis=0)

    np.testing.assert_allclose(shares(jnp.asarray(STATES)), letter_rates(1 / 2), atol=1.01 / 400)


def test_samples_have_the_law_of_the_product_of_matrices():
    n, number = 4, 20000
    exact = law(n)
    np.testing.assert_allclose(exact.sum(), 1)
    sampler = jf.FixedSteps(jf.UniformGrid(n), Unmask())
    sol = jf.generate(FIELD, jr.key(n), number, (D,), sampler, batch_size=number)
    assert sol.x.dtype == np.int32 and (sol.nfe == n).all() and (sol.x < A).all()
    found = np.bincount(sol.x @ A ** np.arange(D)[::-1], minlength=A**D) / number
    assert (np.abs(found - exact) < 4 * np.sqrt(exact * (1 - exact) / number) + 1e-9).all()


def test_the_law_tends_to_the_table():
    far = [np.abs(law(n) - TABLE).sum() for n in (4, 8, 16)]
    assert far[0] > 1.8 * far[1] > 1.8**2 * far[2]


@pytest.mark.slow
def test_the_loss_is_the_entropy_of_the_table():
    """`E[d loss(t) / (1 - t)]` over uniform times is the mean code length in a random order: the entropy, at best."""

    def one(key):
        key_word, key_time, key_loss = jr.split(key, 3)
        x1 = jnp.asarray(WORDS)[jr.choice(key_word, len(WORDS), p=jnp.asarray(TABLE, jnp.float32))]
        t = jr.uniform(key_time)
        return D * jf.matching_loss(FIELD, key_loss, x1, t=t) / (1 - t)

    losses = np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(5), 40000)))
    entropy = -np.sum(TABLE * np.log(TABLE))
    assert abs(losses.mean() - entropy) < 4 * losses.std() / np.sqrt(len(losses)) < 0.15


@pytest.mark.slow
def test_guidance_of_logits():
    guided, x = jf.Guided(FIELD, null=0.0), jnp.array([A, 1, A, A])
    (weak,), (strong,) = (FIELD.predict(("logits",), 0.5, x, c) for c in (0.0, 1.0))
    args = jf.Args(1.0, scale=2.5)
    (found,) = guided.predict(("logits",), 0.5, x, args)
    np.testing.assert_allclose(found, weak + 2.5 * (strong - weak), rtol=1e-5, atol=1e-5)
    sol = jf.generate(guided, jr.key(0), 10, (D,), args=args)  # the path's own sampler
    assert (sol.nfe == 32).all() and (sol.x < A).all()


def test_what_has_no_letters_raises():
    with pytest.raises(ValueError, match="masked path"):
        jf.stepper(jf.Field(lambda t, x, args: x, jf.CondOT(), "velocity"), jf.FixedSteps(jf.UniformGrid(2), Unmask()))
    with pytest.raises(ValueError, match="has no velocity"):
        jf.log_prob(FIELD, jnp.zeros(D))
