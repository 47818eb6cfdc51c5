"""The search page: one self-contained file for a person's browser, without a build step.

Its policy allows its own script and style, by hash, and calls to this server alone.  What comes back is set as text,
never as markup.  A token is kept for the tab only.
"""

import base64
import hashlib
from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; --line: light-dark(#ccd3da, #3a424b); --quiet: light-dark(#56606b, #a0abb6);
  --accent: light-dark(#0b5cad, #7db7f2); --back: light-dark(#fff, #14181c); --ink: light-dark(#1b2127, #e6eaee) }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 46rem;
  background: var(--back); color: var(--ink) }
h1 { font-size: 1.25rem; margin: 0 0 1rem }
form { display: flex; flex-wrap: wrap; gap: .5rem }
input, button { font: inherit; padding: .5rem .75rem; border: 1px solid var(--line); border-radius: .4rem;
  background: transparent; color: inherit; min-width: 0 }
#q { flex: 1 1 14rem }
#token-line { flex-basis: 100% }
button { border-color: var(--accent); color: var(--accent); cursor: pointer }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px }
#said { color: var(--quiet); margin: 1rem 0; overflow-wrap: anywhere }
ol { list-style: none; padding: 0; margin: 0 }
li { border-top: 1px solid var(--line); padding: .75rem 0 }
li p { margin: .25rem 0 0; overflow-wrap: anywhere; white-space: pre-wrap }
.where { color: var(--quiet); font-size: .875rem; overflow-wrap: anywhere }
"""
_SCRIPT: Final = """
"use strict";
const id = name => document.getElementById(name);
const element = (kind, text, style) => {
  const made = document.createElement(kind);
  made.textContent = text;
  if (style) made.className = style;
  return made;
};
let newest = 0;
async function find(query) {
  const number = ++newest, head = {}, token = id("token").value || sessionStorage.getItem("token");
  if (token) head.Authorization = "Bearer " + token;
  id("said").textContent = "searching ...";
  let found, status;
  try {
    const answer = await fetch("search?" + new URLSearchParams({q: query, k: 10}), {headers: head});
    status = answer.status;
    found = await answer.json();
  } catch (problem) {
    found = {error: {message: "no answer from the server"}};
  }
  if (number !== newest) return;
  id("token-line").hidden = status !== 401;
  if (status === 200 && token) sessionStorage.setItem("token", token);
  if (status === 401) { sessionStorage.removeItem("token"); id("token").focus(); }
  id("hits").replaceChildren(...(found.hits || []).map(hit => {
    const line = document.createElement("li");
    const section = hit.section ? " \\u00b7 " + hit.section : "";
    line.append(element("div", hit.score.toFixed(3) + " \\u00b7 " + hit.file + " line " + hit.line + section, "where"));
    line.append(element("p", hit.text));
    return line;
  }));
  id("said").textContent = found.error ? found.error.message
    : found.hits.length + " passages of " + found.rows + ", found by " + found.model;
}
id("form").addEventListener("submit", event => {
  event.preventDefault();
  const query = id("q").value.trim();
  if (query) find(query);
});
"""
PAGE: Final = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>NEXUS search</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>Search this site's own text</h1>
<form id="form" role="search">
<input id="q" type="search" maxlength="1000" aria-label="Question" placeholder="in your own words" autofocus>
<button>Search</button>
<span id="token-line" hidden><input id="token" type="password" autocomplete="off" aria-label="Access token"
 placeholder="access token of this server"></span>
</form>
<p id="said" role="status">The question goes to this server alone.</p>
<ol id="hits"></ol>
<script>{_SCRIPT}</script>
</body>
</html>
""".encode()


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
