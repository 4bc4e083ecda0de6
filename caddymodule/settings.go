package caddymodule

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// expand replaces placeholders ({env.X}, {file.X}) where configurations hold
// what differs from host to host.
func (a *App) expand(repl *caddy.Replacer) error {
	domain, err := repl.ReplaceOrErr(a.Domain, true, true)
	if err != nil {
		return fmt.Errorf("domain: %w", err)
	}
	a.Domain = domain
	if domain := names.Normal(a.Domain); !strings.Contains(a.Domain, ":") {
		a.Domain = domain
	}
	if err := a.expandWebhooks(repl); err != nil {
		return err
	}
	if a.Node != nil {
		if err := a.Node.expand(repl); err != nil {
			return err
		}
		a.nodeID = a.Node.ID
	}
	if a.nodeID == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node id: the host's name is not known (%w): write `node { id … }`", err)
		}
		a.nodeID = host
	}
	return nil
}

// Validate refuses what can never work.
func (a *App) Validate() error {
	for _, check := range []func() error{
		a.validateDomain, a.validateAuth, a.validateTimes, a.validateTCPPorts, a.validateLimits, a.validateNode, a.validateWebhooks,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (a *App) validateDomain() error {
	if a.Domain == "" {
		return errors.New("domain is missing: write `domain devices.example.net`, the domain under which devices get their hostnames")
	}
	if err := checkDomain(a.Domain); err != nil {
		return fmt.Errorf("domain: %q %w", a.Domain, err)
	}
	switch tunnelcore.HostnameMode(a.Hostname) {
	case "", tunnelcore.HostnameRandom, tunnelcore.HostnameDevice:
	default:
		return fmt.Errorf("hostname: %q is neither random nor device", a.Hostname)
	}
	if v := a.Visitors; v != nil {
		if v.Scheme != "https" && v.Scheme != "http" {
			return fmt.Errorf("visitors: %q is neither https nor http", v.Scheme)
		}
		if v.Port < 0 || v.Port > 65535 {
			return fmt.Errorf("visitors: %d is not a port between 1 and 65535", v.Port)
		}
	}
	return nil
}

// checkDomain wants the normal form of a name that can stand behind a label.
func checkDomain(domain string) error {
	if strings.HasPrefix(domain, "*.") {
		return errors.New("begins with *.: write it without, labels are put in front of it")
	}
	if strings.Contains(domain, ":") {
		return errors.New("holds a port: the port that visitors use is the setting visitors")
	}
	if len(domain) > 253-1-63 {
		return errors.New("is longer than 189 characters: no room for a label in front of it")
	}
	if _, err := netip.ParseAddr(domain); err == nil {
		return errors.New("is an address: labels need a domain name")
	}
	for label := range strings.SplitSeq(domain, ".") {
		if !validLabel(label) {
			return errors.New("is not a domain name: labels of 1 to 63 letters a-z, digits and inner hyphens (others as xn--…)")
		}
	}
	return nil
}

func validLabel(label string) bool {
	if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	for i := range len(label) {
		c := label[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func (a *App) validateAuth() error {
	if len(a.authenticators) == 0 {
		return errors.New("auth is missing: say which devices may connect, for example `auth enrolled`, or `auth static { device cam-17 {env.CAM17_TOKEN} }`; `auth none` lets in everybody who reaches this edge, as any device")
	}
	for _, auth := range a.authenticators {
		if _, ok := auth.(*NoAuth); ok && len(a.authenticators) > 1 {
			return errors.New("auth none: stands beside other authenticators, which would be in vain: remove it, or them")
		}
	}
	return a.compilePolicies()
}

func (a *App) validateTimes() error {
	if lease := time.Duration(a.Lease); lease != 0 && lease < time.Second {
		return fmt.Errorf("lease: %v is too short: at least 1s", lease)
	}
	const least, most = wire.MinHeartbeat * time.Second, wire.MaxHeartbeat * time.Second
	if h := time.Duration(a.Heartbeat); h != 0 && (h < least || h > most) {
		return fmt.Errorf("heartbeat: %v is out of range: 1s to 15m", h)
	}
	if a.Wait != nil && *a.Wait < 0 {
		return fmt.Errorf("wait: %v is negative: 0s or more", time.Duration(*a.Wait))
	}
	if t := time.Duration(a.GrantTrust); t != 0 && (t < 10*time.Second || t > registry.GrantTime) {
		return fmt.Errorf("grant_trust: %v is out of range: 10s to 90d", t)
	}
	if a.AnswerTimeout < 0 {
		return fmt.Errorf("answer_timeout: %v is negative", time.Duration(a.AnswerTimeout))
	}
	return nil
}

func (a *App) validateLimits() error {
	if a.Limits == nil {
		return nil
	}
	for _, l := range []struct {
		name  string
		value int64
	}{
		{"tunnels", int64(a.Limits.Tunnels)},
		{"new_tunnels", int64(a.Limits.NewTunnels)},
		{"streams_per_device", int64(a.Limits.StreamsPerDevice)},
		{"streams_per_address", int64(a.Limits.StreamsPerAddress)},
		{"requests_per_device", int64(a.Limits.RequestsPerDevice)},
		{"bandwidth_per_device", a.Limits.BandwidthPerDevice},
		{"buffer_per_device", a.Limits.BufferPerDevice},
		{"handshake_timeout", int64(a.Limits.HandshakeTimeout)},
		{"header_bytes", int64(a.Limits.HeaderBytes)},
		{"unauthenticated_per_address", int64(a.Limits.UnauthenticatedPerAddress)},
	} {
		if l.value < 0 {
			return fmt.Errorf("limits: %s: %d is negative", l.name, l.value)
		}
	}
	if b := a.Limits.BandwidthPerDevice; b != 0 && b < minBandwidth {
		return fmt.Errorf("limits: bandwidth_per_device: %d bytes per second would not do for a page: at least 16KiB", b)
	}
	return nil
}

// minBandwidth is the least that a device may be bounded to, in bytes per second.
const minBandwidth = 16 << 10

func (a *App) validateNode() (err error) {
	a.node, err = a.Node.check(a.Domain, a.AllowPlaintext)
	return err
}

func (a *App) validateTCPPorts() error {
	if a.TCPPorts == nil {
		return nil
	}
	if _, err := a.TCPPorts.core(); err != nil {
		return fmt.Errorf("tcp_ports: %w", err)
	}
	return nil
}

// core is what the hub is told of p.
func (p *TCPPorts) core() (*tunnelcore.TCPPorts, error) {
	c := &tunnelcore.TCPPorts{Bind: p.Bind, Host: p.Host}
	var err error
	if c.First, c.Last, err = parseRange(p.Range); err != nil {
		return nil, err
	}
	for _, addr := range p.Bind {
		if _, err := netip.ParseAddr(addr); err != nil {
			return nil, fmt.Errorf("bind: %q is not an IP address", addr)
		}
	}
	switch p.Listen {
	case "", "all":
		c.Listen = tunnelcore.ListenAll
	case "owner":
		c.Listen = tunnelcore.ListenOwner
	default:
		return nil, fmt.Errorf("listen: %q is neither all nor owner", p.Listen)
	}
	if c.Allow, err = prefixes(p.Allow); err != nil {
		return nil, fmt.Errorf("allow: %w", err)
	}
	return c, nil
}

// parseRange reads `first-last`.
func parseRange(s string) (first, last uint16, err error) {
	low, high, _ := strings.Cut(s, "-")
	f, errLow := strconv.ParseUint(low, 10, 16)
	l, errHigh := strconv.ParseUint(high, 10, 16)
	if errLow != nil || errHigh != nil || f == 0 || f > l {
		return 0, 0, fmt.Errorf("%q is not a range of ports such as 20000-29999", s)
	}
	return uint16(f), uint16(l), nil
}

// settings are what the hub is told. It is called in Start: by then the sites
// are known.
func (a *App) settings() tunnelcore.Settings {
	s := tunnelcore.Defaults()
	s.Domain = a.Domain
	s.Scheme, s.Port = a.visitorsURL()
	s.Hostname = cmp.Or(tunnelcore.HostnameMode(a.Hostname), s.Hostname)
	s.Lease = cmp.Or(time.Duration(a.Lease), s.Lease)
	s.Heartbeat = cmp.Or(time.Duration(a.Heartbeat), s.Heartbeat)
	if a.Wait != nil {
		s.Wait = time.Duration(*a.Wait)
	}
	s.AllowPlaintext = a.AllowPlaintext
	if a.TCPPorts != nil {
		s.TCP, _ = a.TCPPorts.core() // Validate has seen the error
	}
	s.Node = a.node.settings
	s.Authenticators = asked(a.authenticators)
	s.Enrollment = a.enrolls()
	s.Connect = a.Connect
	s.GrantTrust = cmp.Or(time.Duration(a.GrantTrust), s.GrantTrust)
	s.Audit = a.audit.stream
	if l := a.Limits; l != nil {
		s.Limits = tunnelcore.Limits{
			Tunnels:                   cmp.Or(l.Tunnels, s.Limits.Tunnels),
			NewTunnels:                cmp.Or(l.NewTunnels, s.Limits.NewTunnels),
			StreamsPerDevice:          cmp.Or(l.StreamsPerDevice, s.Limits.StreamsPerDevice),
			StreamsPerAddress:         cmp.Or(l.StreamsPerAddress, s.Limits.StreamsPerAddress),
			RequestsPerDevice:         l.RequestsPerDevice,
			BandwidthPerDevice:        l.BandwidthPerDevice,
			BufferPerDevice:           cmp.Or(int(min(l.BufferPerDevice, math.MaxInt32)), s.Limits.BufferPerDevice),
			HandshakeTimeout:          cmp.Or(time.Duration(l.HandshakeTimeout), s.Limits.HandshakeTimeout),
			HeaderBytes:               cmp.Or(l.HeaderBytes, s.Limits.HeaderBytes),
			UnauthenticatedPerAddress: cmp.Or(l.UnauthenticatedPerAddress, s.Limits.UnauthenticatedPerAddress),
		}
	}
	s.Logger = a.logger
	s.Events = emitter(a.ctx)
	return s
}

// answerTimeout is AnswerTimeout or its default.
func (a *App) answerTimeout() time.Duration {
	return cmp.Or(time.Duration(a.AnswerTimeout), 2*time.Minute)
}

// serve notes a server on which a handler serves devices: visitors come there.
func (a *App) serve(srv *caddyhttp.Server) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.servers = append(a.servers, srv)
}

// serveNodes notes that a handler serves other nodes and routers, on a server that may
// not be known.
func (a *App) serveNodes(srv *caddyhttp.Server) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Contains(a.internal, srv) {
		a.internal = append(a.internal, srv)
	}
}

// visitorsURL is the scheme and the port of devices' URLs; an empty port is the
// scheme's own. It says what Caddy listens on: HTTPS before HTTP, the usual port
// before others, the lowest of these.
func (a *App) visitorsURL() (scheme, port string) {
	if v := a.Visitors; v != nil {
		return v.Scheme, portOf(v.Scheme, v.Port)
	}
	httpPort := caddyhttp.DefaultHTTPPort
	if app, err := a.ctx.AppIfConfigured("http"); err == nil {
		httpPort = cmp.Or(app.(*caddyhttp.App).HTTPPort, httpPort)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	best, found := "", 0
	for _, srv := range a.servers {
		for _, listen := range srv.Listen {
			addr, err := caddy.ParseNetworkAddress(listen)
			if err != nil || addr.IsUnixNetwork() || addr.IsFdNetwork() {
				continue // whoever is behind a socket file is known to the operator alone
			}
			scheme, port := "http", int(addr.StartPort)
			if len(srv.TLSConnPolicies) > 0 && port != httpPort {
				scheme = "https"
			}
			if best == "" || better(scheme, port, best, found) {
				best, found = scheme, port
			}
		}
	}
	if best == "" {
		return "https", ""
	}
	return best, portOf(best, found)
}

func better(scheme string, port int, than string, thanPort int) bool {
	if scheme != than {
		return scheme == "https"
	}
	usual, thanUsual := portOf(scheme, port) == "", portOf(than, thanPort) == ""
	if usual != thanUsual {
		return usual
	}
	return port < thanPort
}

// portOf writes a port for a URL: empty when the scheme implies it.
func portOf(scheme string, port int) string {
	if port == 0 || scheme == "https" && port == 443 || scheme == "http" && port == 80 {
		return ""
	}
	return strconv.Itoa(port)
}

// urlPattern is how visitors' URLs look, for a log line.
func urlPattern(s tunnelcore.Settings) string {
	u := s.Scheme + "://*." + s.Domain
	if s.Port != "" {
		u += ":" + s.Port
	}
	return u + "/"
}
