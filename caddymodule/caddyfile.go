package caddymodule

import (
	"encoding/json"
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("iottunnel", parseGlobal)
	httpcaddyfile.RegisterHandlerDirective("iottunnel", parseHandler)
	httpcaddyfile.RegisterDirectiveOrder("iottunnel", httpcaddyfile.Before, "reverse_proxy")
}

func parseGlobal(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		return nil, d.Err("iottunnel: the global option is given more than once: write all settings into one block")
	}
	app := new(App)
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "iottunnel", Value: caddyconfig.JSON(app, nil)}, nil
}

func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	err := handler.UnmarshalCaddyfile(h.Dispenser)
	return handler, err
}

// settings of the global option, in the order in which errors list them.
var appSettings = []setting[*App]{
	textSetting("domain", func(a *App) *string { return &a.Domain }, "a domain name"),
	{"visitors", (*App).parseVisitors},
	{"registry", (*App).parseRegistry},
	{"auth", (*App).parseAuth},
	durationSetting("lease", func(a *App) *caddy.Duration { return &a.Lease }),
	wordSetting("hostname", func(a *App) *string { return &a.Hostname }, "random", "device"),
	{"tcp_ports", (*App).parseTCPPorts},
	{"node", (*App).parseNode},
	durationSetting("heartbeat", func(a *App) *caddy.Duration { return &a.Heartbeat }),
	flagSetting("allow_plaintext", func(a *App) *bool { return &a.AllowPlaintext }),
	flagSetting("connect", func(a *App) *bool { return &a.Connect }),
	durationSetting("grant_trust", func(a *App) *caddy.Duration { return &a.GrantTrust }),
	{"wait", func(a *App, d *caddyfile.Dispenser) error {
		a.Wait = new(caddy.Duration)
		return durationValue(d, "wait", a.Wait)
	}},
	durationSetting("answer_timeout", func(a *App) *caddy.Duration { return &a.AnswerTimeout }),
	{"webhook", (*App).parseWebhook},
	{"limits", (*App).parseLimits},
}

// UnmarshalCaddyfile sets up the app from Caddyfile tokens. Syntax:
//
//	iottunnel {
//		domain          <domain>
//		visitors        https|http [<port>]
//		registry        memory {
//			path <file>
//		}
//		auth            static {
//			device <id> <secret>|sha256:<hex>
//			file   <file>
//		}
//		auth            enrolled
//		auth            jwt { … }
//		auth            mtls { … }
//		auth            none
//		lease           <duration>
//		hostname        random|device
//		tcp_ports       <first>-<last> {
//			bind   <addresses...>
//			host   <hostname>
//			listen all|owner
//			allow  <ranges...>
//		}
//		node {
//			id       <name>
//			url      <url>
//			internal <address>
//			routers  <ranges...>
//			secret   <secret> [<other secret>]
//		}
//		heartbeat       <duration>
//		allow_plaintext
//		connect
//		grant_trust     <duration>
//		wait            <duration>
//		answer_timeout  <duration>
//		webhook         <url> {
//			secret        <secret> [<other secret>]
//			events        <events...>
//			offline_after <duration>
//			batch         <number> <duration>
//			flapping      off|<number> <duration>
//			retry         <duration>
//			allow_plaintext
//		}
//		limits {
//			tunnels                     <number>
//			new_tunnels                 <number>
//			streams_per_device          <number>
//			streams_per_address         <number>
//			requests_per_device         <number>
//			bandwidth_per_device        <size>
//			buffer_per_device           <size>
//			handshake_timeout           <duration>
//			header_bytes                <size>
//			unauthenticated_per_address <number>
//		}
//	}
//
// domain and auth are required; auth and webhook may repeat.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() {
		return d.Errf("iottunnel: the global option takes a block, given %q", d.Val())
	}
	return parseBlock(d, "iottunnel", a, appSettings, "auth", "webhook")
}

func (a *App) parseVisitors(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 && len(args) != 2 {
		return d.Errf("visitors: takes https or http and a port, as in `visitors https 8443`, given %d values", len(args))
	}
	a.Visitors = &Visitors{Scheme: args[0]}
	if a.Visitors.Scheme != "https" && a.Visitors.Scheme != "http" {
		return d.Errf("visitors: %q is neither https nor http", args[0])
	}
	if len(args) == 2 {
		port, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil || port == 0 {
			return d.Errf("visitors: %q is not a port between 1 and 65535", args[1])
		}
		a.Visitors.Port = int(port)
	}
	return nil
}

func (a *App) parseRegistry(d *caddyfile.Dispenser) error {
	raw, err := parseModule(d, "registry", "iottunnel.registries", "driver")
	a.RegistryRaw = raw
	return err
}

func (a *App) parseAuth(d *caddyfile.Dispenser) error {
	raw, err := parseModule(d, "auth", "iottunnel.authenticators", "provider")
	a.AuthRaw = append(a.AuthRaw, raw)
	return err
}

// parseModule reads `setting NAME …`, where the rest is the module's.
func parseModule(d *caddyfile.Dispenser, setting, namespace, inlineKey string) (json.RawMessage, error) {
	var known []string
	for _, info := range caddy.GetModules(namespace) {
		known = append(known, info.ID.Name())
	}
	if !d.NextArg() {
		return nil, d.Errf("%s: takes one of %s", setting, list(known))
	}
	name := d.Val()
	if !slices.Contains(known, name) {
		return nil, d.Errf("%s: %q is not in this build, which has %s", setting, name, list(known))
	}
	unmarshaler, err := caddyfile.UnmarshalModule(d, namespace+"."+name)
	if err != nil {
		return nil, err
	}
	return caddyconfig.JSONModuleObject(unmarshaler, inlineKey, name, nil), nil
}

var tcpPortsSettings = []setting[*TCPPorts]{
	textsSetting("tcp_ports: bind", func(p *TCPPorts) *[]string { return &p.Bind }, "addresses"),
	textSetting("tcp_ports: host", func(p *TCPPorts) *string { return &p.Host }, "a hostname"),
	wordSetting("tcp_ports: listen", func(p *TCPPorts) *string { return &p.Listen }, "all", "owner"),
	textsSetting("tcp_ports: allow", func(p *TCPPorts) *[]string { return &p.Allow }, "ranges of addresses"),
}

func (a *App) parseTCPPorts(d *caddyfile.Dispenser) (err error) {
	a.TCPPorts = new(TCPPorts)
	a.TCPPorts.Range, err = oneValue(d, "tcp_ports", "a range such as 20000-29999")
	if err != nil {
		return err
	}
	if _, _, err := parseRange(a.TCPPorts.Range); err != nil {
		return d.Errf("tcp_ports: %v", err)
	}
	return parseBlock(d, "tcp_ports", a.TCPPorts, tcpPortsSettings)
}

var limitSettings = []setting[*Limits]{
	countSetting("limits: tunnels", func(l *Limits) *int { return &l.Tunnels }),
	countSetting("limits: new_tunnels", func(l *Limits) *int { return &l.NewTunnels }),
	countSetting("limits: streams_per_device", func(l *Limits) *int { return &l.StreamsPerDevice }),
	countSetting("limits: streams_per_address", func(l *Limits) *int { return &l.StreamsPerAddress }),
	countSetting("limits: requests_per_device", func(l *Limits) *int { return &l.RequestsPerDevice }),
	sizeSetting("limits: bandwidth_per_device", func(l *Limits) *int64 { return &l.BandwidthPerDevice }),
	sizeSetting("limits: buffer_per_device", func(l *Limits) *int64 { return &l.BufferPerDevice }),
	durationSetting("limits: handshake_timeout", func(l *Limits) *caddy.Duration { return &l.HandshakeTimeout }),
	{"header_bytes", func(l *Limits, d *caddyfile.Dispenser) error {
		var n int64
		err := sizeValue(d, "limits: header_bytes", &n)
		l.HeaderBytes = int(n)
		return err
	}},
	countSetting("limits: unauthenticated_per_address", func(l *Limits) *int { return &l.UnauthenticatedPerAddress }),
}

func (a *App) parseLimits(d *caddyfile.Dispenser) error {
	a.Limits = new(Limits)
	if err := noValue(d, "limits"); err != nil {
		return err
	}
	return parseBlock(d, "limits", a.Limits, limitSettings)
}

var handlerSettings = []setting[*Handler]{
	textsSetting("keep_headers", func(h *Handler) *[]string { return &h.KeepHeaders }, "names of headers"),
	wordSetting("access", func(h *Handler) *string { return &h.Access }, accessShared),
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	iottunnel [<matcher>] [agents|devices|internal] {
//		keep_headers <names...>
//		access       shared
//	}
//
// Its place in the order of directives is before reverse_proxy, and so after
// respond: a `respond` for what is no device's belongs behind it in a `route`.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	args := d.RemainingArgs()
	if len(args) > 1 {
		return d.Errf("iottunnel: takes one mode at most, given %s", list(args))
	}
	if len(args) == 1 {
		if modes := []string{modeAgents, modeDevices, modeInternal}; !slices.Contains(modes, args[0]) {
			return d.Errf("iottunnel: %q is not a mode: %s, or none for agents and devices", args[0], list(modes))
		}
		h.Mode = args[0]
	}
	return parseBlock(d, "iottunnel", h, handlerSettings)
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
)
