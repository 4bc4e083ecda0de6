"use strict";

// All devices are held here; only the rows in sight are in the document. Text of
// devices enters through textContent alone.
const devices = new Map();
let order = []; // ids, sorted
let shown = []; // those that match
let loadedAt = 0;
let live = false;

const byId = (id) => document.getElementById(id);
const viewport = byId("viewport");
const list = byId("list");

async function getJSON(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(20000), headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 200) || answer.statusText);
  return answer.json();
}

// load reads the whole list, page by page, and shows what there is of it meanwhile.
let loading = false;
async function load() {
  if (loading) return;
  loading = true;
  try {
    const seen = new Set();
    let after = "";
    do {
      const page = await getJSON("api/devices?limit=1000&after=" + encodeURIComponent(after));
      for (const d of page.devices) {
        seen.add(d.device);
        keep(d);
      }
      after = page.next || "";
      if (loadedAt === 0) refresh();
    } while (after);
    for (const id of devices.keys()) if (!seen.has(id)) devices.delete(id);
    loadedAt = Date.now();
    const { nodes } = await getJSON("api/nodes");
    showNodes(nodes);
    refresh();
  } catch (err) {
    live = false;
    summarise(String(err.message || err));
  } finally {
    loading = false;
  }
}

function keep(d) {
  d.text = [d.device, d.hostname, d.remote, d.node, d.agent, ...d.ports.map((p) => p.addr || "")].join(" ").toLowerCase();
  devices.set(d.device, d);
}

// refresh finds out which devices match, and draws.
function refresh() {
  order = [...devices.keys()].sort();
  const text = byId("search").value.trim().toLowerCase();
  const state = document.querySelector("input[name=state]:checked").value;
  shown = order.filter((id) => {
    const d = devices.get(id);
    return (!state || d.state === state) && (!text || d.text.includes(text));
  });
  const empty = byId("empty");
  empty.hidden = shown.length > 0;
  viewport.hidden = shown.length === 0;
  empty.textContent = devices.size === 0
    ? "No device yet. “caddy iottunnel enroll ID” gives one its secret; it is listed here from then on."
    : "No device matches.";
  summarise();
  draw(true);
}

function summarise(problem) {
  const to = byId("summary");
  to.replaceChildren();
  if (problem) {
    to.textContent = "Not up to date: " + problem;
    return;
  }
  let online = 0;
  for (const d of devices.values()) if (d.state === "online") online++;
  const bold = document.createElement("b");
  bold.textContent = online.toLocaleString();
  to.append(bold, " of " + devices.size.toLocaleString() + " online");
  if (shown.length !== devices.size) to.append(" · " + shown.length.toLocaleString() + " shown");
  to.append(!loadedAt ? " · loading" : live ? " · live" : " · as of " + new Date(loadedAt).toLocaleTimeString());
}

// showNodes shows how full each node is, where there are several.
function showNodes(nodes) {
  byId("nodes").replaceChildren(...(nodes.length < 2 ? [] : nodes.map((n) => {
    const silent = n.heartbeat_age_ms > 6000;
    const item = element("li", n.draining || silent ? "away" : "");
    const meter = element("meter");
    meter.max = Math.max(1, n.capacity);
    meter.high = n.capacity * 0.9;
    meter.value = n.clients;
    meter.setAttribute("aria-label", "load of " + n.node);
    item.append(element("b", "", n.node), meter, n.clients.toLocaleString() + " of " + n.capacity.toLocaleString()
      + (n.draining ? ", draining" : silent ? ", silent for " + roughly(n.heartbeat_age_ms) : ""));
    item.title = "its share is " + n.share.toLocaleString() + (n.url ? " · " + n.url : "") + (n.internal ? " · " + n.internal : "");
    return item;
  })));
}

// draw puts the rows in sight into the document.
const rows = new Map(); // id → element
function draw(again) {
  const height = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row")) * parseFloat(getComputedStyle(document.documentElement).fontSize);
  list.style.height = shown.length * height + "px";
  const first = Math.max(0, Math.floor(viewport.scrollTop / height) - 8);
  const last = Math.min(shown.length, Math.ceil((viewport.scrollTop + viewport.clientHeight) / height) + 8);
  const want = new Set(shown.slice(first, last));
  for (const [id, row] of rows) {
    if (want.has(id)) continue;
    row.remove();
    rows.delete(id);
  }
  for (let i = first; i < last; i++) {
    let row = rows.get(shown[i]);
    if (!row) {
      row = document.createElement("li");
      rows.set(shown[i], row);
      fill(row, devices.get(shown[i]));
      list.append(row);
    } else if (again) {
      fill(row, devices.get(shown[i]));
    }
    row.style.top = i * height + "px";
    row.setAttribute("aria-posinset", i + 1);
    row.setAttribute("aria-setsize", shown.length);
  }
}

function element(name, kind, text) {
  const e = document.createElement(name);
  if (kind) e.className = kind;
  if (text !== undefined) e.textContent = text;
  return e;
}

// link leads to a page of a device. Only http and https become links.
function link(url, text, kind) {
  if (!/^https?:\/\//.test(url || "")) return element("span", kind, text);
  const a = element("a", kind, text);
  a.href = url;
  a.target = "_blank";
  a.rel = "noopener noreferrer";
  return a;
}

function fill(row, d) {
  if (row.device === d) {
    row.querySelector(".for").textContent = since(d);
    return;
  }
  row.device = d;
  row.className = "row " + d.state + (d.secret === "revoked" ? " revoked" : "");
  const dot = element("span", "dot");
  dot.title = d.secret === "revoked" ? "revoked" : d.state;
  dot.setAttribute("role", "img");
  dot.setAttribute("aria-label", dot.title);
  const name = element("button", "name", d.device);
  name.type = "button";
  const page = d.ports.find((p) => p.url);
  const host = link(page && page.url, d.hostname || (d.secret === "revoked" ? "revoked" : "was never connected"), "host");
  const ports = element("span", "ports");
  for (const p of d.ports) {
    const port = link(p.url, String(p.port), "port");
    port.title = [p.kind, p.url || p.addr || "not public"].filter(Boolean).join(" ");
    ports.append(port);
  }
  row.replaceChildren(dot, name, host, ports, element("span", "for", since(d)), element("span", "from", d.remote || ""), element("span", "node", d.node || ""));
}

// since is how long a device has been in its state, in one unit.
function since(d) {
  const at = d.state === "online" ? d.since : d.last_seen;
  return at ? roughly(Date.now() - Date.parse(at)) : "";
}

function roughly(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min";
  if (s < 172800) return Math.floor(s / 3600) + " h";
  return Math.floor(s / 86400) + " d";
}

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return (i ? n.toFixed(1) : n) + " " + units[i];
}

// show puts up a device, and what the node knows that it is connected to, once that has
// answered.
function show(d) {
  details(d);
  byId("details").showModal();
  if (d.state !== "online" || d.remote !== undefined) return;
  getJSON("api/devices/" + encodeURIComponent(d.device)).then((more) => {
    if (byId("details").open && byId("detail-name").textContent === d.device) details(more);
  }, () => {}); // what is there stays
}

function details(d) {
  byId("detail-name").textContent = d.device;
  const to = byId("detail-list");
  to.replaceChildren();
  const line = (name, ...what) => {
    if (what.every((w) => w === undefined || w === null || w === "")) return;
    const dd = element("dd");
    dd.append(...what);
    to.append(element("dt", "", name), dd);
  };
  const moment = (at) => {
    const t = element("time", "", new Date(at).toLocaleString());
    t.dateTime = at;
    return t;
  };
  line("State", d.state + (since(d) ? (d.state === "online" ? " for " : ", seen ") + since(d) + (d.state === "online" ? "" : " ago") : ""));
  line("Hostname", d.hostname);
  for (const p of d.ports) line("Port " + p.port, (p.kind || "tcp") + " ", p.url ? link(p.url, p.url) : p.addr || "not public");
  line("From", d.remote);
  line("Agent", d.agent);
  line("Node", d.node);
  if (d.rtt_ms) line("Round trip", d.rtt_ms.toFixed(1) + " ms");
  if (d.streams !== undefined) line("Streams", String(d.streams));
  if (d.bytes_in !== undefined) line("Bytes", bytes(d.bytes_in) + " in, " + bytes(d.bytes_out) + " out");
  line("Secret", d.secret);
  if (d.lease_until) line("Lease until", moment(d.lease_until));
  if (d.last_close) line("Last end", d.last_close.reason + ", ", moment(d.last_close.at));
  if (d.last_refusal) line("Last refusal", [d.last_refusal.code, d.last_refusal.message, "from " + d.last_refusal.remote].filter(Boolean).join(" · ") + ", ", moment(d.last_refusal.at));
}

// follow takes changes as they come, while the page is seen.
let source = null;
let pending = false;
function follow() {
  if (source) source.close();
  source = null;
  live = false;
  if (document.hidden) return;
  source = new EventSource("api/events");
  source.onopen = () => {
    live = true;
    load();
  };
  source.onerror = () => {
    live = false;
    summarise();
  };
  source.addEventListener("device", (e) => {
    const d = JSON.parse(e.data);
    keep(d);
    if (!pending) { // a fleet that comes back is drawn a few times a second
      pending = true;
      setTimeout(() => {
        pending = false;
        refresh();
        const row = rows.get(d.device);
        if (row) {
          row.classList.remove("fresh");
          void row.offsetWidth;
          row.classList.add("fresh");
        }
      }, 150);
    }
  });
  source.addEventListener("missed", load);
}

list.addEventListener("click", (e) => {
  const row = e.target.closest("li");
  if (row && e.target.closest("button")) show(row.device);
});
byId("search").addEventListener("input", () => {
  viewport.scrollTop = 0;
  refresh();
});
for (const radio of document.querySelectorAll("input[name=state]")) {
  radio.addEventListener("change", () => {
    viewport.scrollTop = 0;
    refresh();
  });
}
viewport.addEventListener("scroll", () => requestAnimationFrame(() => draw(false)), { passive: true });
addEventListener("resize", () => draw(false));
document.addEventListener("visibilitychange", follow);
setInterval(() => { if (!document.hidden) draw(true); }, 10000);
setInterval(() => { if (!document.hidden) load(); }, 30000); // what other nodes' devices do
load();
follow();
