"""Evidence: the parts of a condition with their values, so that every number in a message can be traced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainvitals.findings import Term
from trainvitals.rulelang import expr as ex
from trainvitals.rulelang.expr import Expr, Node
from trainvitals.rulelang.kleene import Absent, Value, evaluate

if TYPE_CHECKING:
    from trainvitals.rulelang.compile import Binder, _Context


def explain(expr: Expr, binder: Binder, context: _Context) -> list[Term]:
    """Every `let` name that the expression uses, in the order of their definition, then every comparison in it and in conditions
    that such a name stands for: a rule that hides its evidence behind a name shows it all the same."""
    used: set[str] = set()
    _collect(expr.root, context, used)
    lets = [(name, context.lets[name]) for name in context.lets if name in used]
    terms = [Term(expr=name, means=let.text.strip(), value=_value(let.root, binder, context), unit=let.unit) for name, let in lets]
    seen: set[str] = set()
    for whole in (expr, *(let for _, let in lets if let.kind == "bool")):
        for node in _conditions(whole.root):
            text = whole.text[node.at : node.end]
            if text not in seen:
                seen.add(text)
                terms.append(_condition(text, node, binder, context))
    return terms


def _condition(text: str, node: Node, binder: Binder, context: _Context) -> Term:
    result = _value(node, binder, context)
    shown = result if isinstance(result, bool) else None
    if isinstance(node, ex.Compare):
        limit, origin = _value(node.right, binder, context), _origin(node.right, context)
        return Term(expr=text, value=_value(node.left, binder, context), limit=limit, result=shown, origin=origin)
    return Term(expr=text, value=result, result=shown)


def _value(node: Node, binder: Binder, context: _Context) -> Value:
    tree = binder.resolve(node, context)
    return None if isinstance(tree, Absent) else evaluate(tree)


def _origin(node: Node, context: _Context) -> str | None:
    match node:
        case ex.Name(name):
            if name in context.params and name not in context.lets:
                return context.origins.get(name, f"params.{name}")
            return name if name.startswith(("config.", "run.")) else None
        case _:
            return next((origin for part in ex.children(node) if (origin := _origin(part, context))), None)


def _collect(node: Node, context: _Context, used: set[str]) -> None:
    if isinstance(node, ex.Name) and node.name in context.lets and node.name not in used:
        used.add(node.name)
        _collect(context.lets[node.name].root, context, used)
    for part in ex.children(node):
        _collect(part, context, used)


def _conditions(node: Node) -> list[Node]:
    """Comparisons, and other conditions that stand alone in ``and``/``or``/``not``."""
    match node:
        case ex.Logic(_, terms):
            return [found for term in terms for found in _conditions(term)]
        case ex.Not(operand):
            return _conditions(operand)
        case ex.Compare():
            return [node]
        case ex.Call() if node.function in ("has", "is_finite", "firing", "fired_within", "ordered"):
            return [node]
        case ex.Name() | ex.Flag() | ex.Num() | ex.Text():
            return []
        case _:
            return [found for part in ex.children(node) for found in _conditions(part)]
