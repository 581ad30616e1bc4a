"""The house: how far a call goes down, how many things it carries, and how much code the core has."""

import ast
import inspect
import io
import tokenize
import traceback
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax.random as jr
import pytest

import jflow as jf

PACKAGE = Path(jf.__file__).parent
VERBS = (jf.sample, jf.decode, jf.encode, jf.log_prob, jf.solve, jf.generate, jf.matching_loss)
# what is read apart: methods are a file each, and wings are not the core
APART = {"_solver", "_guidance", "nn", "train", "data", "distributions", "testing", "search", "recipes"}
APART |= {"few_step", "samplers.py", "processes.py", "metrics", "plot.py", "cli.py", "__main__.py"}


class Noted(eqx.Module):
    """A network that notes the frames above it."""

    frames: list = eqx.field(static=True)

    def __call__(self, t, x, args):
        own = [f.name for f in traceback.extract_stack() if Path(f.filename).is_relative_to(PACKAGE)]
        self.frames.append(own[own.index("sample") + 1 :])
        return -x


@pytest.mark.parametrize("solver", [None, dfx.Heun(), jf.Adams(3, corrector=True)], ids=["Euler", "Heun", "Adams"])
def test_at_most_ten_frames_lie_between_sample_and_the_network(solver):
    net = Noted([])
    jf.sample(jf.Field(net, jf.CondOT(), "velocity"), jr.key(0), (2,), jf.FixedSteps(jf.UniformGrid(4), solver))
    # run-time type checking adds a frame to each function
    assert net.frames and all(len(set(names)) <= 10 for names in net.frames)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_verb_has_at_most_ten_parameters_beside_saveat_and_dtype(verb):
    parameters = inspect.signature(verb).parameters
    assert len(set(parameters) - {"saveat", "dtype"}) <= 10
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())
    with pytest.raises(TypeError, match="solvr"):
        inspect.signature(verb).bind_partial(solvr=dfx.Heun())


def code_lines(file: Path) -> int:
    """Lines of code: neither blank, comment nor docstring."""
    source = file.read_text()
    strings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for child in node.body:
                if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                    strings |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - strings)


def test_the_core_does_not_grow():
    """A reader is to hold the core in an afternoon, so this bound only falls."""
    files = [f for f in PACKAGE.rglob("*.py") if f.relative_to(PACKAGE).parts[0] not in APART]
    assert sum(map(code_lines, files)) <= 5059
