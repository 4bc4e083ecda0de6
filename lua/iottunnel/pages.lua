-- Written by `go test ./tunnelcore/answers -run TestLua -update`: do not edit.

local _M = {}


_M.refresh_min, _M.refresh_max = 5, 120
_M.content_security_policy = "default-src 'none'; style-src 'sha256-dJeKnVRRhZmkaSMKFwBc7A3r1pMX0MxwySqnR0J1hB4='; base-uri 'none'; form-action 'none'"
_M.fragments = {
    refresh = "<meta http-equiv=\"refresh\" content=\"{{}}\">\n",
    again = "<p class=\"again\"><a href=\"\">Try now</a></p>\n",
    seen = "<div><dt>Last seen</dt><dd>{{}}</dd></div>\n",
    detail = "<div><dt>Detail</dt><dd>{{}}</dd></div>\n",
    refresh_sentence = "This page tries again by itself every {{}} seconds.",
}
_M.codes = {
    unknown_device = {
        status = 404,
        fault = "visitor",
        refresh = 0,
        message = "no device has this address",
        title = "No device at this address",
        text = "The address may be mistyped, or it may be an old one: a device that stays away for long gets a new address.",
        next = "Please check the address, or ask for the device’s current link.",
    },
    device_offline = {
        status = 503,
        fault = "device",
        refresh = 15,
        message = "the device is not connected",
        title = "This device is offline",
        text = "The address is right, but the device is not connected at the moment. It may be switched off, restarting or without a network.",
        next = "Please try again when the device is back.",
    },
    device_refused = {
        status = 502,
        fault = "local",
        refresh = 0,
        message = "the device is connected, but its service did not answer",
        title = "The device did not answer",
        text = "The device is connected, but the service behind this address is not. It may be starting, or switched off in the device’s settings.",
        next = "Please try again in a moment.",
    },
    device_timeout = {
        status = 504,
        fault = "local",
        refresh = 15,
        message = "the device did not answer in time",
        title = "The device is taking too long",
        text = "The device is connected, but it did not answer in time. Its network may be slow, or it may have much to do.",
        next = "Please try again in a moment.",
    },
    device_busy = {
        status = 503,
        fault = "local",
        refresh = 10,
        message = "the device serves as many connections as it can",
        title = "The device is busy",
        text = "The device is connected and serves as many visitors as it can at once. A place is usually free soon.",
        next = "Please try again in a moment.",
    },
    unauthorized = {
        status = 401,
        fault = "visitor",
        refresh = 0,
        message = "the credential is missing or not valid",
        title = "Not signed in",
        text = "The credential for this address is missing, or it is not valid any more.",
        next = "Please ask whoever runs this service for access.",
    },
    forbidden = {
        status = 403,
        fault = "visitor",
        refresh = 0,
        message = "this is not allowed",
        title = "Not allowed",
        text = "What you asked for is not open to you, or not any more.",
        next = "Please ask whoever runs this service for access.",
    },
    device_connected = {
        status = 409,
        fault = "visitor",
        refresh = 0,
        message = "a device with this id is already connected",
        title = "Already connected",
        text = "A device with this id is connected and answering, so a second one is not let in.",
        next = "Every device needs an id of its own: please check whether one was copied.",
    },
    bad_request = {
        status = 400,
        fault = "visitor",
        refresh = 0,
        message = "the request was not understood",
        title = "The request was not understood",
        text = "Something in the request is missing or malformed.",
        next = "Please check the address.",
    },
    not_here = {
        status = 421,
        fault = "edge",
        refresh = 0,
        message = "this node does not hold the device",
        title = "Asked at the wrong place",
        text = "The device has just moved to another node of this service.",
        next = "Please try again in a moment.",
    },
    unknown_stream = {
        status = 404,
        fault = "visitor",
        refresh = 0,
        message = "no stream waits under this id",
        title = "No such stream",
        text = "The stream has ended, was taken already, or never was.",
        next = "Agents open the next one when they are asked to.",
    },
    upgrade_required = {
        status = 426,
        fault = "visitor",
        refresh = 0,
        message = "this address takes WebSocket connections of protocol version 1 over HTTP/1.1",
        title = "This address is for agents",
        text = "It takes WebSocket connections of protocol version 1, over HTTP/1.1. There is nothing to see in a browser.",
        next = "If this is an agent, please update it.",
    },
    too_many = {
        status = 429,
        fault = "visitor",
        refresh = 0,
        message = "too many requests or connections",
        title = "Too many at once",
        text = "More requests or connections have come from your address than this service takes at once.",
        next = "Please close what you do not need, and try again in a moment.",
    },
    unavailable = {
        status = 503,
        fault = "edge",
        refresh = 10,
        message = "the service cannot do this at the moment",
        title = "Not available right now",
        text = "The service in front of the device cannot pass on your request at the moment. The device itself may well be fine.",
        next = "Please try again in a moment.",
    },
    redirect = {
        status = 302,
        fault = "edge",
        refresh = 0,
        message = "another node has more room",
        title = "Another node has more room",
        text = "Agents are asked to connect to the node that this answer names.",
        next = "There is nothing to do in a browser.",
    },
}
_M.page = [==[
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<meta name="color-scheme" content="light dark">
{{refresh}}<title>{{title}}</title>
<style>
:root {
	color-scheme: light dark;
	--back: #eef1f5; --card: #ffffff; --edge: #dde3ea;
	--ink: #16202c; --soft: #55626f; --line: #9aa7b4;
	--good: #1d7f5f; --bad: #b4372b; --link: #0b5cad;
}
@media (prefers-color-scheme: dark) {
	:root {
		--back: #0e141b; --card: #17202a; --edge: #263340;
		--ink: #e9eef3; --soft: #a5b2be; --line: #5d6c7a;
		--good: #5fd0a6; --bad: #ff9b8f; --link: #83bdff;
	}
}
* { box-sizing: border-box }
body {
	margin: 0; min-height: 100vh; padding: 1.5rem 1rem;
	display: flex; align-items: center; justify-content: center;
	background: var(--back); color: var(--ink);
	font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
	overflow-wrap: break-word;
}
main {
	width: 100%; max-width: 34rem; padding: 2.25rem 2.25rem 1.75rem;
	background: var(--card); border: 1px solid var(--edge); border-radius: 1rem;
	box-shadow: 0 1px 2px rgba(10, 20, 30, .05), 0 14px 40px rgba(10, 20, 30, .08);
}
svg { display: block; width: 100%; height: auto; margin-bottom: 1.5rem; fill: none; stroke: var(--good); stroke-width: 2; stroke-linecap: round; stroke-linejoin: round }
svg text { fill: var(--soft); stroke: none; font-size: 13px; text-anchor: middle }
svg .cross { display: none; stroke: var(--bad); stroke-width: 2.5 }
.visitor .bc, .edge .bc, .device .bc { stroke: var(--line); stroke-dasharray: 1 7 }
.visitor .c, .edge .c { stroke: var(--line) }
.edge .b, .device .c, .local .c { stroke: var(--bad) }
.edge .at-b, .visitor .at-bc, .device .at-bc, .local .at-c { display: inline }
h1 { margin: 0 0 .6rem; font-size: 1.55rem; line-height: 1.25; letter-spacing: -.01em }
p { margin: 0 0 .9rem; color: var(--soft) }
p.next { color: var(--ink) }
a {
	display: inline-block; padding: .55rem 1.1rem; border-radius: .6rem; border: 1px solid var(--edge);
	color: var(--link); font-weight: 600; text-decoration: none;
}
a:hover { border-color: var(--link) }
a:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
dl { margin: 1.6rem 0 0; padding-top: 1rem; border-top: 1px solid var(--edge); font-size: .875rem }
dl div { display: flex; gap: 1rem; padding: .15rem 0 }
dt { flex: 0 0 5.5rem; color: var(--soft) }
dd { margin: 0; min-width: 0 }
code { font: .95em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
@media (max-width: 30rem) {
	body { align-items: flex-start }
	main { padding: 1.5rem 1.25rem 1.25rem }
	h1 { font-size: 1.35rem }
	dt { flex-basis: 4.5rem }
	svg text { font-size: 16px }
}
@media print { body { background: none } main { box-shadow: none } }
</style>
</head>
<body>
<main class="{{fault}}">
<svg viewBox="0 0 400 84" aria-hidden="true">
<path class="ab" d="M82 28h76"/>
<path class="bc" d="M242 28h76"/>
<g class="a"><rect x="28" y="8" width="44" height="32" rx="4"/><path d="M28 17h44M40 48h20M50 40v8"/></g>
<g class="b"><path d="M184 44a12 12 0 0 1-1-24 18 18 0 0 1 34-3 13.5 13.5 0 0 1 1 27z"/></g>
<g class="c"><rect x="332" y="16" width="36" height="28" rx="5"/><path d="M341 51v-7m18 7v-7"/><path d="M342 9a11 11 0 0 1 16 0"/></g>
<path class="cross at-b" d="M194 23l12 12m0-12l-12 12"/>
<path class="cross at-bc" d="M274 22l12 12m0-12l-12 12"/>
<path class="cross at-c" d="M345 26l10 10m0-10l-10 10"/>
<text x="50" y="74">You</text><text x="200" y="74">Service</text><text x="350" y="74">Device</text>
</svg>
<h1>{{title}}</h1>
<p>{{text}}</p>
<p class="next">{{next}}</p>
{{again}}<dl>
{{seen}}{{detail}}<div><dt>Code</dt><dd><code>{{code}}</code> (HTTP&nbsp;{{status}})</dd></div>
</dl>
</main>
</body>
</html>
]==]


return _M
