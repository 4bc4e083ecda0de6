package caddymodule

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
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
	{"domain", func(a *App, d *caddyfile.Dispenser) (err error) {
		a.Domain, err = oneValue(d, "domain", "a domain name")
		return err
	}},
	{"visitors", (*App).parseVisitors},
	{"registry", (*App).parseRegistry},
	{"auth", (*App).parseAuth},
	{"lease", func(a *App, d *caddyfile.Dispenser) error { return durationValue(d, "lease", &a.Lease) }},
	{"hostname", func(a *App, d *caddyfile.Dispenser) (err error) {
		a.Hostname, err = wordValue(d, "hostname", "random", "device")
		return err
	}},
	{"tcp_ports", (*App).parseTCPPorts},
	{"node", (*App).parseNode},
	{"heartbeat", func(a *App, d *caddyfile.Dispenser) error { return durationValue(d, "heartbeat", &a.Heartbeat) }},
	{"allow_plaintext", func(a *App, d *caddyfile.Dispenser) error {
		a.AllowPlaintext = true
		return noValue(d, "allow_plaintext")
	}},
	{"wait", func(a *App, d *caddyfile.Dispenser) error {
		a.Wait = new(caddy.Duration)
		return durationValue(d, "wait", a.Wait)
	}},
	{"answer_timeout", func(a *App, d *caddyfile.Dispenser) error {
		return durationValue(d, "answer_timeout", &a.AnswerTimeout)
	}},
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
//		wait            <duration>
//		answer_timeout  <duration>
//		limits {
//			tunnels                     <number>
//			new_tunnels                 <number>
//			streams_per_device          <number>
//			streams_per_address         <number>
//			buffer_per_device           <size>
//			handshake_timeout           <duration>
//			header_bytes                <size>
//			unauthenticated_per_address <number>
//		}
//	}
//
// domain and auth are required; auth may repeat.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() {
		return d.Errf("iottunnel: the global option takes a block, given %q", d.Val())
	}
	return parseBlock(d, "iottunnel", a, appSettings, "auth")
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
	{"bind", func(p *TCPPorts, d *caddyfile.Dispenser) (err error) {
		p.Bind, err = someValues(d, "tcp_ports: bind", "addresses")
		return err
	}},
	{"host", func(p *TCPPorts, d *caddyfile.Dispenser) (err error) {
		p.Host, err = oneValue(d, "tcp_ports: host", "a hostname")
		return err
	}},
	{"listen", func(p *TCPPorts, d *caddyfile.Dispenser) (err error) {
		p.Listen, err = wordValue(d, "tcp_ports: listen", "all", "owner")
		return err
	}},
	{"allow", func(p *TCPPorts, d *caddyfile.Dispenser) (err error) {
		p.Allow, err = someValues(d, "tcp_ports: allow", "ranges of addresses")
		return err
	}},
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
	{"tunnels", func(l *Limits, d *caddyfile.Dispenser) error {
		return countValue(d, "limits: tunnels", &l.Tunnels)
	}},
	{"new_tunnels", func(l *Limits, d *caddyfile.Dispenser) error {
		return countValue(d, "limits: new_tunnels", &l.NewTunnels)
	}},
	{"streams_per_device", func(l *Limits, d *caddyfile.Dispenser) error {
		return countValue(d, "limits: streams_per_device", &l.StreamsPerDevice)
	}},
	{"streams_per_address", func(l *Limits, d *caddyfile.Dispenser) error {
		return countValue(d, "limits: streams_per_address", &l.StreamsPerAddress)
	}},
	{"buffer_per_device", func(l *Limits, d *caddyfile.Dispenser) error {
		return sizeValue(d, "limits: buffer_per_device", &l.BufferPerDevice)
	}},
	{"handshake_timeout", func(l *Limits, d *caddyfile.Dispenser) error {
		return durationValue(d, "limits: handshake_timeout", &l.HandshakeTimeout)
	}},
	{"header_bytes", func(l *Limits, d *caddyfile.Dispenser) error {
		var n int64
		err := sizeValue(d, "limits: header_bytes", &n)
		l.HeaderBytes = int(n)
		return err
	}},
	{"unauthenticated_per_address", func(l *Limits, d *caddyfile.Dispenser) error {
		return countValue(d, "limits: unauthenticated_per_address", &l.UnauthenticatedPerAddress)
	}},
}

func (a *App) parseLimits(d *caddyfile.Dispenser) error {
	a.Limits = new(Limits)
	if err := noValue(d, "limits"); err != nil {
		return err
	}
	return parseBlock(d, "limits", a.Limits, limitSettings)
}

var handlerSettings = []setting[*Handler]{
	{"keep_headers", func(h *Handler, d *caddyfile.Dispenser) (err error) {
		h.KeepHeaders, err = someValues(d, "keep_headers", "names of headers")
		return err
	}},
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	iottunnel [<matcher>] [agents|devices|internal] {
//		keep_headers <names...>
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

// setting is a word in a block, and what reads its values into a T.
type setting[T any] struct {
	name  string
	parse func(T, *caddyfile.Dispenser) error
}

// parseBlock reads a block of settings. None but those in repeatable may be given
// twice. A block that is not there is an empty one.
func parseBlock[T any](d *caddyfile.Dispenser, block string, to T, settings []setting[T], repeatable ...string) error {
	given := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		i := slices.IndexFunc(settings, func(s setting[T]) bool { return s.name == name })
		if i < 0 {
			known := make([]string, len(settings))
			for i, s := range settings {
				known[i] = s.name
			}
			return d.Errf("%s: unknown setting %q: it takes %s", block, name, list(known))
		}
		if given[name] && !slices.Contains(repeatable, name) {
			return repeated(d, block+": "+name)
		}
		given[name] = true
		if err := settings[i].parse(to, d); err != nil {
			return err
		}
	}
	return nil
}

func repeated(d *caddyfile.Dispenser, setting string) error {
	return d.Errf("%s: is given more than once", setting)
}

// list writes words for an error.
func list(words []string) string {
	switch n := len(words); n {
	case 0:
		return "none"
	case 1:
		return words[0]
	default:
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
}

func oneValue(d *caddyfile.Dispenser, setting, what string) (string, error) {
	args := d.RemainingArgs()
	if len(args) != 1 || args[0] == "" {
		return "", d.Errf("%s: takes %s, given %d values", setting, what, len(args))
	}
	return args[0], nil
}

func someValues(d *caddyfile.Dispenser, setting, what string) ([]string, error) {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return nil, d.Errf("%s: takes %s, given none", setting, what)
	}
	return args, nil
}

func noValue(d *caddyfile.Dispenser, setting string) error {
	if d.NextArg() {
		return d.Errf("%s: takes no value, given %q", setting, d.Val())
	}
	return nil
}

func wordValue(d *caddyfile.Dispenser, setting string, words ...string) (string, error) {
	value, err := oneValue(d, setting, strings.Join(words, " or "))
	if err != nil {
		return "", err
	}
	if !slices.Contains(words, value) {
		return "", d.Errf("%s: %q is not %s", setting, value, strings.Join(words, " or "))
	}
	return value, nil
}

func durationValue(d *caddyfile.Dispenser, setting string, to *caddy.Duration) error {
	value, err := oneValue(d, setting, "a duration such as 30s")
	if err != nil {
		return err
	}
	duration, err := caddy.ParseDuration(value)
	if err != nil || duration < 0 {
		return d.Errf("%s: %q is not a duration such as 500ms, 30s, 12h or 30d", setting, value)
	}
	if duration == 0 && setting != "wait" {
		return d.Errf("%s: %q: must be more than zero", setting, value)
	}
	*to = caddy.Duration(duration)
	return nil
}

func countValue(d *caddyfile.Dispenser, setting string, to *int) error {
	value, err := oneValue(d, setting, "a number")
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 1 {
		return d.Errf("%s: %q is not a number from 1 on", setting, value)
	}
	*to = int(n)
	return nil
}

func sizeValue(d *caddyfile.Dispenser, setting string, to *int64) error {
	value, err := oneValue(d, setting, "a size such as 2MiB")
	if err != nil {
		return err
	}
	n, err := humanize.ParseBytes(value)
	if err != nil || n < 1 || n > 1<<40 {
		return d.Errf("%s: %q is not a size such as 512KiB or 2MiB, up to 1TiB", setting, value)
	}
	*to = int64(n)
	return nil
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
)
