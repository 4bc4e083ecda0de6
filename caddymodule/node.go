package caddymodule

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

// Node is what tells this node from others, and how they reach it. A cluster is
// nodes with one Redis registry, each with an internal address and one secret
// among them. Placeholders such as {env.NODE_ID} are replaced in every value, so
// that all nodes can have one configuration.
//
// Another id makes another node: devices connect to it again. All else changes on
// reload while they are connected.
type Node struct {
	// The name of this node, which no other has: up to 64 letters, digits, dots,
	// hyphens and underscores. Default: the host's name.
	ID string `json:"id,omitempty"`

	// Where agents reach this very node, and no other, from the internet, as in
	// `https://edge-1.example.com`. Without it no device is sent here by nodes that
	// have too many, and none from here elsewhere.
	URL string `json:"url,omitempty"`

	// Where other nodes and routers reach this node in the private network, as
	// host:port. A site with `iottunnel internal` listens there. Without it this
	// node's devices are reachable through this node alone.
	Internal string `json:"internal,omitempty"`

	// The addresses of routers, as IP addresses or prefixes: load balancers and
	// proxies that pass visitors and agents on to the site `iottunnel internal`, and
	// are trusted to say where these come from. Default: none.
	Routers []string `json:"routers,omitempty"`

	// What nodes prove themselves to each other with, the same on all of them, of at
	// least 16 characters. Of two values the first is used to sign, and both are
	// accepted: to change the secret while nodes run, write `OLD NEW` on each of them,
	// then `NEW OLD`, then `NEW`. Default: none, and no node reaches the devices of another.
	Secrets []string `json:"secret,omitempty"`
}

// minSecret is the shortest secret between nodes, and of a webhook, in bytes.
const minSecret = 16

// maxNodeID is as long as a node id may be, in bytes: it is part of URLs and keys.
const maxNodeID = 64

var nodeSettings = []setting[*Node]{
	textSetting("node: id", func(n *Node) *string { return &n.ID }, "a name"),
	textSetting("node: url", func(n *Node) *string { return &n.URL }, "a URL such as https://edge-1.example.com"),
	textSetting("node: internal", func(n *Node) *string { return &n.Internal }, "an address and a port such as 10.0.0.1:8080"),
	textsSetting("node: routers", func(n *Node) *[]string { return &n.Routers }, "addresses or prefixes such as 10.0.0.0/28"),
	textsSetting("node: secret", func(n *Node) *[]string { return &n.Secrets }, "one secret, or two while it is changed"),
}

func (a *App) parseNode(d *caddyfile.Dispenser) error {
	a.Node = new(Node)
	if err := noValue(d, "node"); err != nil {
		return err
	}
	return parseBlock(d, "node", a.Node, nodeSettings)
}

// node is what a Node says, read and checked.
type node struct {
	settings tunnelcore.NodeSettings
	routers  []netip.Prefix
}

// isRouter reports whether addr is one of routers.
func (n *node) isRouter(addr netip.Addr) bool {
	for _, p := range n.routers {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// expand replaces placeholders. Errors name the setting.
func (n *Node) expand(repl *caddy.Replacer) error {
	expand := func(setting string, to *string) error {
		value, err := repl.ReplaceOrErr(*to, true, true)
		if err != nil {
			return fmt.Errorf("node: %s: %w", setting, err)
		}
		*to = strings.TrimSpace(value) // files end with a newline
		return nil
	}
	errs := []error{expand("id", &n.ID), expand("url", &n.URL), expand("internal", &n.Internal)}
	for i := range n.Routers {
		errs = append(errs, expand("routers", &n.Routers[i]))
	}
	for i := range n.Secrets {
		errs = append(errs, expand("secret", &n.Secrets[i]))
	}
	return errors.Join(errs...)
}

// check finds what can never work. n may be nil, and is expanded.
func (n *Node) check(domain string, plaintext bool) (node, error) {
	var c node
	if n == nil {
		return c, nil
	}
	var err error
	if n.ID != "" && !validNodeID(n.ID) {
		return c, fmt.Errorf("node: id: %q is not a name of 1 to %d letters, digits, dots, hyphens and underscores", n.ID, maxNodeID)
	}
	if c.settings.URL, err = checkNodeURL(n.URL, domain, plaintext); err != nil {
		return c, fmt.Errorf("node: url: %w", err)
	}
	if c.settings.Internal = n.Internal; n.Internal != "" {
		if err := checkInternal(n.Internal, domain); err != nil {
			return c, fmt.Errorf("node: internal: %w", err)
		}
	}
	if c.routers, err = prefixes(n.Routers); err != nil {
		return c, fmt.Errorf("node: routers: %w", err)
	}
	if c.settings.Secrets = n.Secrets; len(n.Secrets) > 2 {
		return c, fmt.Errorf("node: secret: %d values: at most two, while one takes the place of the other", len(n.Secrets))
	}
	for i, secret := range n.Secrets {
		if len(secret) < minSecret {
			return c, fmt.Errorf("node: secret: value %d is shorter than %d characters: make one with `openssl rand -hex 32`", i+1, minSecret)
		}
	}
	if len(n.Secrets) == 2 && n.Secrets[0] == n.Secrets[1] {
		return c, errors.New("node: secret: both values are the same: remove one")
	}
	return c, nil
}

func validNodeID(id string) bool {
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return id != "" && len(id) <= maxNodeID
}

// checkNodeURL returns the URL that agents are sent to: of http or https, without
// a final slash.
func checkNodeURL(text, domain string, plaintext bool) (string, error) {
	if text == "" {
		return "", nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return "", fmt.Errorf("%q is not a scheme and a host, such as https://edge-1.example.com", text)
	}
	switch u.Scheme {
	case "https", "wss":
		u.Scheme = "https"
	case "http", "ws":
		u.Scheme = "http"
		if ip, err := netip.ParseAddr(u.Hostname()); !plaintext && (err != nil || !ip.IsLoopback()) && u.Hostname() != "localhost" {
			return "", fmt.Errorf("%q is without TLS, and agents are refused that come so: write https, or `allow_plaintext` beside `node`", text)
		}
	default:
		return "", fmt.Errorf("%q is neither https nor http", text)
	}
	if under(u.Host, domain) {
		return "", fmt.Errorf("%q is below the domain of the devices, where no agent is served: use a name outside %s", text, domain)
	}
	u.Path = ""
	return u.String(), nil
}

// checkInternal wants what other nodes can dial.
func checkInternal(address, domain string) error {
	host, port, err := net.SplitHostPort(address)
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 || host == "" || strings.ContainsAny(host, "/@ ") {
		return fmt.Errorf("%q is not an address and a port, such as 10.0.0.1:8080", address)
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		return fmt.Errorf("%q stands for any address: write the one by which other nodes reach this node", address)
	}
	if under(address, domain) {
		return fmt.Errorf("%q is below the domain of the devices: use an address, or a name outside %s", address, domain)
	}
	return nil
}

// prefixes reads addresses and prefixes.
func prefixes(texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if addr, errAddr := netip.ParseAddr(text); errAddr == nil {
			prefix, err = addr.Prefix(addr.BitLen())
		}
		if err != nil {
			return nil, fmt.Errorf("%q is neither an IP address nor a prefix such as 10.0.0.0/8", text)
		}
		all = append(all, prefix.Masked())
	}
	return all, nil
}

// ownHosts are the hosts that routes with `iottunnel internal` below them answer to, if
// the hostnames of devices are not among these.
func ownHosts(routes caddyhttp.RouteList, domain string) (hosts []string) {
	for _, route := range routes {
		if !holdsInternal(route.Handlers) {
			continue
		}
		var own []string
		for _, set := range route.MatcherSets {
			for _, matcher := range set {
				if m, ok := matcher.(*caddyhttp.MatchHost); ok {
					own = append(own, *m...)
				}
			}
		}
		if len(own) == 0 || slices.Contains(own, "*."+domain) {
			return nil
		}
		hosts = append(hosts, own...)
	}
	return hosts
}

// holdsInternal reports whether a handler for nodes and routers is among handlers.
func holdsInternal(handlers []caddyhttp.MiddlewareHandler) bool {
	return slices.ContainsFunc(handlers, func(handler caddyhttp.MiddlewareHandler) bool {
		switch h := handler.(type) {
		case *Handler:
			return h.Mode == modeInternal
		case *caddyhttp.Subroute:
			return slices.ContainsFunc(h.Routes, func(route caddyhttp.Route) bool { return holdsInternal(route.Handlers) })
		}
		return false
	})
}

// warnAlone tells the operator what keeps a node out of its cluster.
func (a *App) warnAlone() {
	redis, ok := a.registry.(*RedisRegistry)
	s := a.node.settings
	a.mu.Lock()
	servers := slices.Clone(a.internal)
	a.mu.Unlock()
	if len(a.node.routers) > 0 {
		for _, srv := range servers {
			if srv == nil {
				continue
			}
			if hosts := ownHosts(srv.Routes, a.Domain); len(hosts) > 0 {
				a.logger.Warn("routers get nothing from the site with `iottunnel internal`: they ask with the hostnames of devices, and it answers to its own hosts alone; "+
					"write its address without a host, as http://:8080 with `bind` in the block",
					slog.Any("hosts", hosts))
			}
		}
	}
	switch {
	case s.Internal != "" && len(servers) == 0:
		a.logger.Warn("no site serves node.internal: routers and other nodes do not reach this one; write a site with `iottunnel internal` there",
			slog.String("internal", s.Internal))
	case ok && redis != nil && (s.Internal == "" || len(s.Secrets) == 0):
		a.logger.Warn("other nodes do not reach this one, if there are any: that takes `node { internal … secret … }` on each of them")
	}
}
