// The dialog of one device: what is known of it, and what can be done to it.
import { at, bytes, element, getJSON, link, moment, since } from "./text.js";
import { chart, rate } from "./traffic.js";

const byId = (id) => document.getElementById(id);
const dialog = byId("details");
let open = null; // the device
let changed = () => {}; // whom to tell of what was done
let session = null;

const api = (device, more) => "api/devices/" + encodeURIComponent(device) + (more || "");

// show puts up a device, and all that is known of it, once that has come.
export async function show(d, tell) {
  open = d;
  changed = tell;
  say("");
  byId("detail-past").hidden = true;
  byId("detail-chart").replaceChildren();
  fill(d);
  dialog.showModal();
  try {
    session = session || (await getJSON("api/session"));
    await reload();
  } catch (err) {
    say("Not up to date: " + err.message);
  }
}

export function close() {
  if (dialog.open) dialog.close();
}

// reload asks for the device anew.
async function reload() {
  const device = open.device;
  const d = await getJSON(api(device));
  if (!dialog.open || open.device !== device) return;
  open = d;
  fill(d);
  actions(d);
  changed(d);
}

// told draws a device anew that has changed, if it is the open one.
export function told(d) {
  if (dialog.open && open.device === d.device) {
    open = d;
    fill(d);
  }
}

// refreshOpen draws what goes on now.
export function refreshOpen() {
  if (!dialog.open || !open) return;
  const line = chart(open.device, bytes);
  const now = rate(open.device);
  byId("detail-chart").replaceChildren(...(line ? [line, element("span", "", bytes(Math.round(now)) + "/s")] : []));
}

function fill(d) {
  byId("detail-name").textContent = d.device;
  byId("detail-tags").replaceChildren(...d.tags.map((tag) => element("span", "tag", tag)));
  const to = byId("detail-list");
  to.replaceChildren();
  const line = (name, ...what) => {
    if (what.every((w) => w === undefined || w === null || w === "")) return;
    const dd = element("dd");
    dd.append(...what);
    to.append(element("dt", "", name), dd);
  };
  const long = since(d);
  line("State", d.state === "online" ? "online for " + long : "offline" + (long ? ", seen " + long + " ago" : ""));
  line("Why", d.summary);
  line("Hostname", d.hostname);
  for (const p of d.ports) line("Port " + p.port, (p.kind || "tcp") + " ", p.url ? link(p.url, p.url) : p.addr || "not public");
  line("From", d.remote);
  line("Agent", d.agent);
  line("Node", d.node);
  if (d.rtt_ms) line("Round trip", d.rtt_ms.toFixed(1) + " ms");
  if (d.streams !== undefined) line("Streams", String(d.streams));
  if (d.bytes_in !== undefined) line("Bytes", bytes(d.bytes_in) + " in, " + bytes(d.bytes_out) + " out");
  line("Connects", d.connects_24h + " in 24 h");
  line("Secret", d.secret);
  if (d.lease_until) line("Lease until", moment(d.lease_until));
  if (d.last_close) line("Last end", d.last_close.reason + (d.last_close.code ? " (" + d.last_close.code + ")" : "") + ", ", moment(d.last_close.at));
  const refusal = d.last_refusal;
  if (refusal) line("Last refusal", [refusal.code, refusal.message, "from " + refusal.remote].filter(Boolean).join(" · ") + ", ", moment(refusal.at));
  const code = byId("detail-code");
  const url = d.ports.find((p) => p.url)?.url;
  code.hidden = !url;
  if (url && code.dataset.url !== url) {
    code.dataset.url = url;
    code.alt = "QR code of " + url;
    code.src = at(api(d.device, "/qr.svg"));
  }
  const past = d.history || [];
  byId("detail-past").hidden = past.length === 0;
  byId("detail-history").replaceChildren(...past.map((e) => {
    const item = element("li");
    item.append(moment(e.at), " ", element("b", "", e.event), " " + [e.node, e.detail].filter(Boolean).join(" · "));
    return item;
  }));
}

function say(text, ...more) {
  const to = byId("detail-said");
  to.hidden = !text && more.length === 0;
  to.replaceChildren(text, ...more);
}

function button(text, kind, press) {
  const b = element("button", kind, text);
  b.type = "button";
  b.addEventListener("click", press);
  return b;
}

// actions offers what can be done to d by whoever has the page open.
function actions(d) {
  const to = byId("detail-actions");
  if (!session?.manage) {
    to.replaceChildren(element("p", "why", session ? "Nothing can be changed here: " + session.why + "." : ""));
    return;
  }
  const has = d.secret && d.secret !== "revoked";
  const buttons = [button("Tags…", "", () => askTags(d))];
  if (d.state === "online") buttons.push(button("Disconnect…", "", () => confirm(d, "disconnect", "Cut the connection of " + d.device + "? Its agent connects again.")));
  if (has) {
    buttons.push(
      button("Rotate secret…", "", () => confirm(d, "rotate", "Make another secret for " + d.device + "? The old one ends when the device first uses the new one.")),
      button("Revoke…", "bad", () => confirm(d, "revoke", "Take the secret of " + d.device + " away? It is cut off within 5 seconds, and stays so until it is enrolled again.")),
    );
  }
  to.replaceChildren(...buttons);
}

// confirm asks in place of the buttons, and does it when told so.
function confirm(d, action, question) {
  const yes = button({ disconnect: "Disconnect", rotate: "Rotate", revoke: "Revoke" }[action], action === "revoke" ? "bad" : "good", () => act(d, action));
  byId("detail-actions").replaceChildren(element("p", "", question), yes, button("Cancel", "", () => actions(d)));
  yes.focus();
}

function askTags(d) {
  const form = element("form");
  const input = element("input");
  input.value = d.tags.join(" ");
  input.setAttribute("aria-label", "Tags, with spaces between");
  input.placeholder = "lyon fw=1.2";
  const save = element("button", "good", "Save");
  form.append(input, save, button("Cancel", "", () => actions(d)));
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    act(d, "tags", { tags: input.value.split(/[\s,]+/).filter(Boolean) });
  });
  byId("detail-actions").replaceChildren(form);
  input.focus();
}

async function act(d, action, body) {
  say("…");
  try {
    const answer = await getJSON(api(d.device, "/" + action), {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body || {}),
    });
    if (answer.token) {
      const secret = element("code", "secret", answer.token);
      say("The new secret, shown only now: ", secret, button("Copy", "", () => navigator.clipboard?.writeText(answer.token)));
    } else {
      say({ disconnect: "Disconnected.", revoke: "Revoked.", tags: "Saved." }[action]);
    }
    await reload();
  } catch (err) {
    say("That did not work: " + err.message);
    actions(d);
  }
}

// What is known of the open device, such as its streams, goes on.
setInterval(() => {
  if (!dialog.open || document.hidden) return;
  getJSON(api(open.device)).then(told, () => {}); // the list says what is wrong
}, 10000);
