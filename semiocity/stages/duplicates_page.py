"""The contact sheet of duplicates: one HTML file that holds its pictures. What comes from data is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from PIL import Image

SIDE = 168
"""Pixels of a thumbnail's longer side."""


class Card(NamedTuple):
    """One picture."""

    key: str
    image: str
    """data: URI"""
    split: str
    moved: bool
    likeness: str


class Group(NamedTuple):
    """One cluster, the kept picture first; `size` also counts members that are not shown."""

    cluster: int
    size: int
    cards: list[Card]


Section = tuple[str, str, list[Group]]
"""Title, text, clusters."""


def thumbnail(data: bytes) -> str:
    """A payload of base.image as a small JPEG in a data: URI."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (SIDE, SIDE))
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode('ascii')}"


def page(facts: dict[str, Any], sections: Sequence[Section]) -> str:
    """The page for what `duplicates_report.count` counted and the clusters to show."""
    args = facts["args"]
    dropped = facts["not_kept"]
    figures = [
        ("rows", facts["rows"]),
        ("kept, one a cluster", facts["clusters"]),
        ("same pixels as a kept row", dropped["exact"]),
        ("near a kept row", dropped["near"]),
        ("clusters of several rows", facts["clusters_of_several"]),
        ("rows of the largest", facts["largest"]),
        ("rows that change split", sum(item["rows"] for item in facts["moved"])),
    ]
    body = [
        f"<h1>Duplicates in {escape(facts['dataset'])}</h1>",
        f"<p>Column <code>{escape(facts['column'])}</code>, revision <code>{escape(facts['revision'])}</code>. "
        f"Pictures are near when at most {args['distance']} of 64 bits of their hash and {args['gradients']} of 64 "
        f"gradients differ; {escape(', '.join(args['held_out']) or 'no split')} win a cluster.</p>",
        '<dl class="figures">',
        *(f"<div><dt>{escape(name)}</dt><dd>{value:,}</dd></div>" for name, value in figures),
        "</dl>",
        *_splits(facts),
    ]
    for title, text, groups in sections:
        body += [f"<h2>{escape(title)}</h2>", f"<p>{escape(text)}</p>" if groups else "<p>None.</p>"]
        for group in groups:
            body += _group(group)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>Duplicates in {escape(facts["dataset"])}</title><style>{STYLE}</style>'
        f"</head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _splits(facts: dict[str, Any]) -> list[str]:
    """A table of rows in each split, before, after and kept."""
    counts = [facts[name] for name in ("splits_before", "splits_after", "splits_kept")]
    names = sorted(set().union(*counts))
    lines = [
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{count.get(name, 0):,}</td>' for count in counts)}</tr>"
        for name in names
    ]
    moved = [f"{escape(str(m['from']))} → {escape(str(m['to']))}: {m['rows']:,} rows" for m in facts["moved"]]
    return [
        "<table><thead><tr><th>split</th><td>before</td><td>after</td><td>kept</td></tr></thead><tbody>",
        *lines,
        "</tbody></table>",
        f"<p>Moved: {'; '.join(moved)}.</p>" if moved else "<p>No row changes its split.</p>",
    ]


def _group(group: Group) -> list[str]:
    hidden = group.size - len(group.cards)
    return [
        f"<section><h3>{group.size:,} rows <small>cluster {group.cluster}</small></h3><ul>",
        *(_card(card) for card in group.cards),
        f'<li class="more">and {hidden:,} more</li>' if hidden else "",
        "</ul></section>",
    ]


def _card(card: Card) -> str:
    kept = ' class="kept"' if card.likeness == "kept" else ""
    moved = ' class="moved"' if card.moved else ""
    picture = f'<img src="{card.image}" alt="{escape(card.key)}" loading="lazy">' if card.image else ""
    return (
        f"<li{kept}><figure>{picture}<figcaption><b>{escape(card.likeness)}</b> "
        f"<span{moved}>{escape(card.split)}</span><code>{escape(card.key)}</code></figcaption></figure></li>"
    )


STYLE = """
:root{color-scheme:light dark;--line:#8884;--kept:#2a8f5b;--moved:#c2571a}
body{font:15px/1.45 system-ui,sans-serif;margin:0}main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:26px;margin:0 0 4px}h2{margin:40px 0 4px;font-size:20px}h3{margin:0 0 8px;font-size:15px}
small{font-weight:400;opacity:.6;margin-left:8px}p{margin:4px 0 14px;max-width:75ch}
.figures{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0}.figures div{border:1px solid var(--line);border-radius:8px;
padding:8px 14px;min-width:110px}.figures dt{opacity:.7;font-size:13px}.figures dd{margin:0;font-size:22px;
font-variant-numeric:tabular-nums}
table{border-collapse:collapse;margin:8px 0}td,th{padding:4px 14px 4px 0;text-align:right;
font-variant-numeric:tabular-nums}th{text-align:left}thead{opacity:.7}
section{border-top:1px solid var(--line);padding:14px 0}
ul{list-style:none;display:flex;flex-wrap:wrap;gap:12px;margin:0;padding:0}li{width:168px}figure{margin:0}img{width:168px;height:126px;object-fit:contain;border-radius:6px;
background:#8882;border:2px solid transparent;box-sizing:border-box}.kept img{border-color:var(--kept)}
.kept b{color:var(--kept)}.moved{color:var(--moved)}figcaption{font-size:13px}
code{font-size:11.5px;opacity:.75;overflow-wrap:anywhere}figcaption code{display:block}
.more{align-self:center;opacity:.7}
"""
