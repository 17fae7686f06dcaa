// Addresses inside the page: `#/messages/17?platform=ios`. Each can be kept as a bookmark and sent to somebody.

/** @typedef {{view: string, id: string, query: URLSearchParams}} Route */

/** @returns {Route} where the page is */
export function here() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, ...rest] = path.split("/");
  return { view: view || "messages", id: decode(rest.join("/")), query: new URLSearchParams(query) };
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/**
 * @param {string} view
 * @param {string} [id]
 * @param {Record<string, string | number | null | undefined>} [query] empty values are left out
 * @returns {string} the address
 */
export function address(view, id = "", query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const search = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return `#/${view}${id && `/${encodeURIComponent(id)}`}${search && `?${search}`}`;
}

/** @param {string} hash go there without a new step in the browser's history */
export function replace(hash) {
  history.replaceState(null, "", hash);
  dispatchEvent(new HashChangeEvent("hashchange"));
}
