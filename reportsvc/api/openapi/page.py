"""The document as a page: plain HTML, made once, with a style and without scripts.

It works on a phone, in light and dark, with the keyboard and a screen reader: headings in order, tables with headers,
what scrolls can be focused, and what is long folds away.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final
from urllib.parse import quote

import orjson

STYLE: Final = """
:root{color-scheme:light dark;--back:#fff;--soft:#f3f4f6;--line:#d5d9df;--text:#1b1f24;--faint:#515a66;--link:#0a58b8;
--get:#0a58b8;--post:#14693a;--put:#8a4b00;--delete:#a8201a;--options:#5c4a8a}
@media(prefers-color-scheme:dark){:root{--back:#14171b;--soft:#1e2329;--line:#39414b;--text:#e4e8ec;--faint:#a7b0bb;
--link:#7db5ff;--get:#7db5ff;--post:#6fcf97;--put:#f0b35e;--delete:#ff938c;--options:#b9a6f2}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1rem}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:1rem;background:var(--back);padding:.5rem}
header,main,nav{padding:1rem}
h1{margin:0;font-size:1.6rem}
h2{margin:2.5rem 0 .5rem;font-size:1.35rem;border-bottom:1px solid var(--line)}
h3{margin:0 0 .25rem;font-size:1.05rem}
h4{margin:1rem 0 .25rem;font-size:.95rem}
p{margin:.4rem 0}
nav ul{margin:.25rem 0;padding-left:1.1rem}
nav li{padding:.15rem 0}
code,pre,.path{font:.875rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{background:var(--soft);padding:.05rem .25rem;border-radius:3px}
pre{background:var(--soft);padding:.6rem .75rem;border-radius:6px;overflow-x:auto;margin:.35rem 0;overflow-wrap:normal}
pre code{padding:0;background:none}
article{border:1px solid var(--line);border-radius:8px;padding:.9rem 1rem;margin:1rem 0}
.path{display:block;font-size:.9rem}
.method{font-weight:700;margin-right:.4rem}
.get{color:var(--get)}.post{color:var(--post)}.put{color:var(--put)}.delete{color:var(--delete)}
.options{color:var(--options)}
.faint{color:var(--faint)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
caption{text-align:left;color:var(--faint);padding:.25rem 0}
th,td{text-align:left;vertical-align:top;border-top:1px solid var(--line);padding:.35rem .6rem .35rem 0}
th{white-space:nowrap}
thead th{border-top:0;color:var(--faint);font-weight:600}
tbody th{font-weight:400}
td{min-width:9rem}
summary{cursor:pointer;padding:.25rem 0;font-weight:600;font-size:.95rem}
@media(min-width:70rem){
body{display:grid;grid-template-columns:19rem minmax(0,60rem);grid-template-rows:auto 1fr;
column-gap:1rem}
header{grid-column:2}
nav{grid-column:1;grid-row:1/3;position:sticky;top:0;height:100vh;overflow-y:auto;border-right:1px solid var(--line)}
main{grid-column:2}
}
"""

_SETUP: Final = """\
URL=http://localhost:8080   # where this service is
KEY=…                       # app_key            (reportsvc apps create NAME prints them)
SECRET=…                    # master_secret
API_KEY=…                   # pushy_api_key
TOKEN=…                     # a user's token, or beams_secret_key"""
_CREDENTIALS: Final = {
    "basic": "HTTP Basic, app_key and master_secret", "pushyKey": "the parameter api_key",
    "metricsToken": "none, or Bearer, REPORTSVC_METRICS_TOKEN if it is set",
    "beamsUserToken": "Bearer, a user's token", "beamsSecretKey": "Bearer, beams_secret_key",
}


def render(document: Mapping[str, Any]) -> str:
    """The page."""
    return "".join(_page(document))


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    info = document["info"]
    grouped = operations_by_tag(document)
    yield ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
           '<meta name="viewport" content="width=device-width, initial-scale=1">'
           f"<title>{escape(info['title'])} API</title><style>{STYLE}</style></head><body>"
           '<a class="skip" href="#content">Skip to the content</a>')
    yield f"<header><h1>{escape(info['title'])} API <span class=\"faint\">{escape(info['version'])}</span></h1>"
    yield prose(info["description"])
    yield '<p><a href="openapi.json">The same as OpenAPI 3.1</a></p></header>'
    yield f'<nav aria-label="Operations">{"".join(_contents(grouped))}</nav><main id="content">'
    yield "<h2>To paste the examples</h2><p>Set these in your shell first; you need those of the paths you call.</p>"
    yield code(_SETUP)
    for tag in document["tags"]:
        yield from _tag(document, tag, grouped[tag["name"]])
    yield "</main></body></html>"


#: Path, method and operation, and the other paths of the same.
Entry = tuple[str, str, Mapping[str, Any], list[str]]


def operations_by_tag(document: Mapping[str, Any]) -> dict[str, list[Entry]]:
    """The operations of each tag; those that are the same under another path stand with the first."""
    grouped: dict[str, list[Entry]] = {tag["name"]: [] for tag in document["tags"]}
    seen: dict[tuple[str, ...], Entry] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation["tags"][0]
            same = tag, method, operation["summary"]
            if same in seen:
                seen[same][3].append(path)
            else:
                seen[same] = path, method, operation, []
                grouped[tag].append(seen[same])
    return grouped


def _contents(grouped: Mapping[str, Iterable[Entry]]) -> Iterator[str]:
    for tag, entries in grouped.items():
        items = "".join(f'<li><a href="#{operation["operationId"]}">{escape(operation["summary"])}</a></li>'
                        for _, _, operation, _ in entries)
        about = f'<li><a href="#{anchor(tag)}">About {escape(tag)}</a></li>'
        yield f"<details open><summary>{escape(tag)}</summary><ul>{about}{items}</ul></details>"


def _tag(document: Mapping[str, Any], tag: Mapping[str, Any], entries: Iterable[Entry]) -> Iterator[str]:
    yield f'<section aria-labelledby="{anchor(tag["name"])}"><h2 id="{anchor(tag["name"])}">{escape(tag["name"])}</h2>'
    yield prose(tag["description"])
    if "externalDocs" in tag:
        yield f'<p><a href="{escape(tag["externalDocs"]["url"])}" rel="noreferrer">The vendor\'s page</a></p>'
    for entry in entries:
        yield from _article(document, entry)
    yield "</section>"


def _article(document: Mapping[str, Any], entry: Entry) -> Iterator[str]:
    path, method, operation, others = entry
    name = operation["operationId"]
    yield f'<article aria-labelledby="{name}"><h3 id="{name}">{escape(operation["summary"])}</h3>'
    yield (f'<p class="path"><span class="method {method}">{method.upper()}</span>{escape(path)}</p>'
           + "".join(f'<p class="path faint">also {escape(other)}</p>' for other in others))
    yield prose(operation.get("description", ""))
    credentials = [_CREDENTIALS[scheme] for one in operation["security"] for scheme in one]
    yield f'<p class="faint">Credentials: {escape(", ".join(credentials) or "none")}</p>'
    yield from _parameters(document, operation["parameters"])
    if "requestBody" in operation:
        yield from _body(document, operation["requestBody"]["content"])
    if method != "options":
        yield "<h4>Example</h4>" + code(curl(path, method, operation))
    yield from _answers(document, operation["responses"])
    yield "</article>"


def _parameters(document: Mapping[str, Any], parameters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if parameters:
        yield table("Parameters", ("Name", "Where", "What", "Meaning"), (
            (f"<code>{escape(one['name'])}</code>" + (" <b>required</b>" if one["required"] else ""), one["in"],
             type_of(document, one["schema"]), inline(one["description"])) for one in parameters))


def _body(document: Mapping[str, Any], contents: Mapping[str, Any]) -> Iterator[str]:
    yield "<h4>Body</h4><p>" + ", ".join(f"<code>{escape(media)}</code>" for media in contents) + "</p>"
    first = next(iter(contents.values()))
    for schema in alternatives(document, first["schema"]):
        yield from _properties(document, schema)
    for media, content in _distinct(contents):
        yield from _examples(media, content)


def _distinct(contents: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each sort of content under the first of its names."""
    shown: list[Any] = []
    for media, content in contents.items():
        if content not in shown:
            shown.append(content)
            yield media, content


def _properties(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    rows = list(property_rows(document, schema))
    if rows:
        yield table(plain(schema.get("description", "Keys")), ("Key", "What", "Meaning"), rows)


def _answers(document: Mapping[str, Any], responses: Mapping[str, Any]) -> Iterator[str]:
    errors = {status: response for status, response in responses.items()
              if int(status) >= 400 and "$ref" in str(response.get("content", ""))}
    for status, response in responses.items():
        if int(status) < 400 or status not in errors:
            yield f"<h4>{status} {inline(response['description'])}</h4>"
            for media, content in response.get("content", {}).items():
                for schema in alternatives(document, content["schema"]):
                    yield from _properties(document, schema)
                yield from _examples(media, content)
    rows = [row for status, response in errors.items() for row in _error_rows(status, response)]
    if rows:
        yield (f"<details><summary>Errors ({len(rows)})</summary>"
               + table("What may be wrong, and how it is told", ("Status", "Body"), rows) + "</details>")


def _error_rows(status: str, response: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for example in response["content"]["application/json"].get("examples", {}).values():
        yield status, f"<code>{escape(orjson.dumps(example['value']).decode())}</code>"


def _examples(media: str, content: Mapping[str, Any]) -> Iterator[str]:
    for example in content.get("examples", {}).values():
        value = example["value"]
        text = value if isinstance(value, str) and media != "application/json" else orjson.dumps(
            value, option=orjson.OPT_INDENT_2).decode()
        yield f"<details><summary>{escape(example['summary'].capitalize())}</summary>{code(text)}</details>"


# ------------------------------------------------------------------------------------------------------------- schemas
def resolve(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference stands for."""
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] = document["components"]["schemas"][name] if name else schema
    return found


def alternatives(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The objects that a value may be, or be a list of."""
    schema = resolve(document, schema)
    if "anyOf" in schema:
        shown: list[Any] = []
        for one in schema["anyOf"]:
            for found in alternatives(document, one):
                if found not in shown:
                    shown.append(found)
                    yield found
    elif schema.get("type") == "array":
        yield from alternatives(document, schema["items"])
    elif "properties" in schema:
        yield schema


def property_rows(document: Mapping[str, Any], schema: Mapping[str, Any],
                  prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """The keys of an object, and those of the objects in it, as rows of a table."""
    for name, given in schema["properties"].items():
        part = resolve(document, given)
        needed = " <b>required</b>" if name in schema.get("required", ()) and not is_closed(schema) else ""
        yield (f"<code>{escape(prefix + name)}</code>{needed}", type_of(document, given),
               inline(part.get("description", "")))
        for inner in alternatives(document, part):
            yield from property_rows(document, inner, f"{prefix}{name}{'[]' if part.get('type') == 'array' else ''}.")


def is_closed(schema: Mapping[str, Any]) -> bool:
    """Whether an object has just the keys that are named, as answers have."""
    return schema.get("additionalProperties") is False


def type_of(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a value may be, in a few words, as HTML."""
    schema = resolve(document, schema)
    if "const" in schema:
        return f"<code>{escape(_word(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(_word(word))}</code>" for word in schema["enum"])
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(type_of(document, one) for one in schema["anyOf"]))
    types = schema.get("type", "any JSON")
    words = " or ".join([types] if isinstance(types, str) else types)
    if types == "array":
        words = f"array of {type_of(document, schema['items'])}"
    return words + _limits(schema)


def _limits(schema: Mapping[str, Any]) -> str:
    found = []
    for low, high, unit in (("minLength", "maxLength", " characters"), ("minimum", "maximum", ""),
                            ("minItems", "maxItems", " items")):
        if low in schema and high in schema:
            found.append(f"{schema[low]} to {schema[high]}{unit}")
        elif high in schema:
            found.append(f"at most {schema[high]}{unit}")
        elif schema.get(low):
            found.append(f"at least {schema[low]}{unit}")
    if "default" in schema:
        found.append(f"default {escape(str(schema['default']))}")
    return "".join(f", {text}" for text in found)


# ------------------------------------------------------------------------------------------------------------- examples
def curl(path: str, method: str, operation: Mapping[str, Any]) -> str:
    """A call with the first example of everything, for a shell."""
    query = []
    for parameter in operation["parameters"]:
        shown = _shown(parameter)
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(str(shown), safe=""))
        elif shown is not None:
            text = ",".join(shown) if isinstance(shown, list) else str(shown)
            query.append(f"{parameter['name']}={quote(text, safe=',')}")
    schemes = [scheme for one in operation["security"] for scheme in one]
    parts = ["curl"] + (["-X", method.upper()] if method not in ("get", "post") else [])
    if "basic" in schemes:
        parts.append('-u "$KEY:$SECRET"')
    if {"beamsUserToken", "beamsSecretKey"} & set(schemes):
        parts.append('-H "Authorization: Bearer $TOKEN"')
    if "pushyKey" in schemes:
        query.append("api_key=$API_KEY")
    parts.append(f'"$URL{path}{"?" if query else ""}{"&".join(query)}"')
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        body = orjson.dumps(next(iter(content["examples"].values()))["value"]).decode()
        parts += ["-H 'Content-Type: application/json'", "-d " + shlex.quote(body)]
    elif method == "post":
        parts.insert(1, "-X POST")
    return " ".join(parts)


def _shown(parameter: Mapping[str, Any]) -> Any:
    if "examples" in parameter:
        return next(iter(parameter["examples"].values()))["value"]
    return parameter.get("example")


def _word(value: Any) -> str:
    return value if isinstance(value, str) and value else orjson.dumps(value).decode()


# ----------------------------------------------------------------------------------------------------------------- html
def inline(text: str) -> str:
    """A text with `code` in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def prose(text: str) -> str:
    """Paragraphs."""
    return "".join(f"<p>{inline(part)}</p>" for part in text.split("\n\n") if part)


def plain(text: str) -> str:
    """A text for a caption."""
    return escape(text.rstrip("."))


def code(text: str) -> str:
    """Lines of code; they can be focused, so that the keyboard can scroll them."""
    return f'<pre tabindex="0"><code>{escape(text, quote=False)}</code></pre>'


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first cell of a row says what the row is about."""
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "".join(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in more)}</tr>'
                   for first, *more in rows)
    return (f'<div class="scroll" tabindex="0" role="group" aria-label="{caption}"><table><caption>{caption}</caption>'
            f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>")


def anchor(text: str) -> str:
    """Where a tag is on the page."""
    return "tag-" + re.sub(r"\W+", "-", text.lower())
