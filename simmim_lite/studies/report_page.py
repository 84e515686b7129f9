"""The report's HTML: page, tables, claims with their intervals. Every text that comes in is escaped here."""

import re
from html import escape

from ..evidence.rules import HOLDS, OPEN, UNTESTED, Claim

STYLE = """
:root { --ink:#1f2430; --soft:#5f6672; --rule:#dfe2e8; --paper:#fff; --wash:#f6f7f9; --accent:#0072b2;
  --yes:#00704f; --yes-wash:#e3f4ee; --no:#b34700; --no-wash:#fdeee3; --open:#5f6672; --open-wash:#eef0f3; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e8ed; --soft:#a3a9b5; --rule:#343a46; --paper:#171a21;
  --wash:#1f232c; --accent:#6db7e8; --yes:#5fd0aa; --yes-wash:#17362d; --no:#f4a26b; --no-wash:#3d2617;
  --open:#a3a9b5; --open-wash:#2a2f39; } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink); line-height:1.6; font-size:17px;
  font-family:Inter,"Segoe UI","Helvetica Neue","DejaVu Sans",sans-serif; -webkit-text-size-adjust:100% }
main { max-width:1080px; margin:0 auto; padding:56px 24px 80px }
section { margin-top:56px }
h1 { font-size:clamp(30px,4.6vw,46px); line-height:1.12; letter-spacing:-.02em; margin:6px 0 18px; max-width:20ch }
h2 { font-size:26px; line-height:1.25; letter-spacing:-.01em; margin:4px 0 12px }
p { max-width:72ch; margin:0 0 16px }
.lede { font-size:20px; line-height:1.5; color:var(--soft); max-width:62ch }
.kicker { font-size:13px; letter-spacing:.04em; color:var(--accent); font-weight:600; margin:0; overflow-wrap:anywhere }
.note, figcaption { font-size:14px; color:var(--soft); max-width:80ch }
.note { margin-top:14px }
figure { margin:20px 0 24px }
.plot { overflow-x:auto; background:#fff; border:1px solid var(--rule); border-radius:10px; padding:10px 8px 4px }
.plot > div { min-width:760px }
figcaption { margin-top:8px }
.badge { display:inline-block; font-size:13px; font-weight:600; padding:2px 10px; border-radius:99px;
  white-space:nowrap }
.yes { color:var(--yes); background:var(--yes-wash) } .no { color:var(--no); background:var(--no-wash) }
.open { color:var(--open); background:var(--open-wash) }
.card { border-left:4px solid currentColor; background:var(--wash); border-radius:0 10px 10px 0; padding:14px 18px;
  margin:12px 0; display:grid; grid-template-columns:minmax(0,1fr) 250px; gap:4px 28px; align-items:center }
.card.yes, .card.no, .card.open { background:var(--wash) }
.card p { color:var(--ink); margin:6px 0 0; font-size:15.5px; line-height:1.5 } .card h3 { color:var(--ink) }
.card h3 { font-size:17px; margin:0; display:flex; flex-wrap:wrap; gap:4px 12px; align-items:center }
.glance { border-top:1px solid var(--rule) }
.glance div { display:grid; grid-template-columns:36px minmax(0,1fr) 240px 150px; gap:16px; align-items:center;
  padding:9px 0; border-bottom:1px solid var(--rule) }
.glance span:last-child { text-align:right } .glance b { color:var(--soft) }
.glance svg, .card svg { display:block; width:100%; max-height:44px; overflow:visible; font-size:11px }
.facts { display:grid; grid-template-columns:repeat(auto-fill,minmax(240px,1fr)); gap:14px 28px; margin:14px 0 20px }
.facts dt { font-size:13px; color:var(--soft) } .facts dd { margin:0; overflow-wrap:anywhere; line-height:1.4 }
.mono { grid-template-columns:repeat(auto-fill,minmax(150px,1fr)) }
.mono dt, .mono dd { font-family:ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace; font-size:13px }
.scroll { overflow:auto; border:1px solid var(--rule); border-radius:10px } .tall { max-height:520px }
table { border-collapse:collapse; width:100%; font-size:13px; font-variant-numeric:tabular-nums }
th, td { padding:5px 10px; text-align:right; white-space:nowrap; border-bottom:1px solid var(--rule) }
th { position:sticky; top:0; background:var(--wash); font-weight:600; color:var(--soft) }
tr:last-child td { border-bottom:0 }
.text { text-align:left } td.text:last-child { white-space:normal }
@media (max-width:760px) { main { padding:32px 16px 56px } body { font-size:16px } section { margin-top:44px }
  .card { grid-template-columns:1fr } .glance div { grid-template-columns:30px minmax(0,1fr) auto; gap:4px 10px }
  .glance .strip { grid-column:1 / -1; grid-row:2; max-width:320px } }
"""


def page(title: str, body: str) -> str:
    """A whole page, plotly.js inside: it asks the network for nothing."""
    from plotly.offline import get_plotlyjs

    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n'
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body><main>{body}</main></body>\n</html>\n"
    )


def html_table(
    columns: list[str], lines: list[list[str]], *, text_columns: tuple[int, ...] = (), scroll: bool = False
) -> str:
    """A table of texts; numbers to the right, `text_columns` to the left; `scroll` limits its height."""
    kind = ['class="text"' if k in text_columns else "" for k in range(len(columns))]
    head = "".join(f"<th {kind[k]}>{escape(name)}</th>" for k, name in enumerate(columns))
    rows = "".join(
        "<tr>" + "".join(f"<td {kind[k]}>{_text(v)}</td>" for k, v in enumerate(row)) + "</tr>" for row in lines
    )
    tall = " tall" if scroll else ""
    return f'<div class="scroll{tall}"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def facts(said: dict[str, str], *, mono: bool = False) -> str:
    """Names and values as a grid of definitions."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in said.items())
    return f'<dl class="facts{" mono" if mono else ""}">{items}</dl>'


def badge(verdict: str) -> str:
    """A verdict with its colour and a sign, for who does not see the colour."""
    sign = {HOLDS: "✓", OPEN: "?", UNTESTED: "–"}.get(verdict, "✗")
    return f'<span class="badge {_tone(verdict)}">{sign} {escape(verdict)}</span>'


def claim_rows(claims: list[Claim]) -> str:
    """One line a claim: statement, interval, verdict."""
    rows = "".join(
        f'<div><b>{escape(c.id)}</b><span>{escape(c.statement)}</span><span class="strip">{strip(c)}</span>'
        f"<span>{badge(c.verdict)}</span></div>"
        for c in claims
    )
    return f'<div class="glance">{rows}</div>'


def claim_card(claim: Claim) -> str:
    """A claim with its evidence sentence and its interval."""
    return (
        f'<article class="card {_tone(claim.verdict)}"><div><h3>{escape(claim.id)} · {escape(claim.statement)} '
        f"{badge(claim.verdict)}</h3><p>{_text(claim.evidence)}.</p></div><div>{strip(claim)}</div></article>"
    )


def strip(claim: Claim) -> str:
    """A claim's effect (dot), 95 % interval (bar) and margin (dashed) as a drawing; nothing without an interval."""
    if claim.effect is None or claim.low is None or claim.high is None:
        return ""
    margins = [-claim.margin, claim.margin] if claim.id == "C6" else [claim.margin]
    ends = [claim.low, claim.high, 0.0, *margins]
    low, high = min(ends), max(ends)
    form = {"C5a": "+.2f", "C5b": "+.2f", "C7": "+.3f", "C8": "+.3f", "C9": "+.2f"}.get(claim.id, "+.4f")

    def x(value: float) -> float:
        return round(16 + 208 * (value - low) / (high - low), 1)

    marks = '<line x1="16" x2="224" y1="15" y2="15" stroke="var(--rule)"/>'
    marks += f'<line x1="{x(0)}" x2="{x(0)}" y1="6" y2="24" stroke="var(--soft)"/>'
    for margin in margins:
        marks += f'<line x1="{x(margin)}" x2="{x(margin)}" y1="4" y2="26" stroke="var(--no)" stroke-dasharray="3 2"/>'
    ink = f"var(--{_tone(claim.verdict)})"
    marks += f'<line x1="{x(claim.low)}" x2="{x(claim.high)}" y1="15" y2="15" stroke="{ink}" stroke-width="6"'
    marks += f' stroke-linecap="round" opacity=".45"/><circle cx="{x(claim.effect)}" cy="15" r="5" fill="{ink}"/>'
    text = _text(f"{claim.effect:{form}} [{claim.low:{form}}, {claim.high:{form}}]")
    marks += f'<text x="120" y="40" text-anchor="middle" fill="var(--soft)">{text}</text>'
    return f'<svg viewBox="0 0 240 44" role="img" aria-label="{text}">{marks}</svg>'


def _tone(verdict: str) -> str:
    return {HOLDS: "yes", OPEN: "open", UNTESTED: "open"}.get(verdict, "no")


def _text(value: str) -> str:
    """Escaped, with true minus signs before numbers."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", escape(value))
