// What both the list and the dialog write.

// at is where a path of the dashboard is. The page's own address may hold a password,
// with which nothing may be fetched; the browser sends it by itself.
export const at = (path) => new URL(path, location.origin + location.pathname).href;

export async function getJSON(path, options) {
  const answer = await fetch(at(path), { signal: AbortSignal.timeout(20000), headers: { Accept: "application/json" }, ...options })
    .catch(() => { throw new Error("the edge does not answer"); });
  if (!answer.ok) throw new Error((await answer.text()).trim().slice(0, 300) || answer.statusText);
  return answer.json();
}

export function element(name, kind, text) {
  const e = document.createElement(name);
  if (kind) e.className = kind;
  if (text !== undefined) e.textContent = text;
  return e;
}

// link leads to a page of a device. Only http and https become links.
export function link(url, text, kind) {
  if (!/^https?:\/\//.test(url || "")) return element("span", kind, text);
  const a = element("a", kind, text);
  a.href = url;
  a.target = "_blank";
  a.rel = "noopener noreferrer";
  return a;
}

// moment is a time as people here write it.
export function moment(at) {
  const t = element("time", "", new Date(at).toLocaleString());
  t.dateTime = at;
  return t;
}

// since is how long a device has been in its state, in one unit.
export function since(d) {
  const at = d.state === "online" ? d.since : d.last_seen;
  return at ? roughly(Date.now() - Date.parse(at)) : "";
}

export function roughly(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min";
  if (s < 172800) return Math.floor(s / 3600) + " h";
  return Math.floor(s / 86400) + " d";
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return (i ? n.toFixed(1) : n) + " " + units[i];
}
