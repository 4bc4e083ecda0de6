package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/iottunnel/iottunnel/agent/internal/suffix"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// redirects decides where an edge may send the agent, and with it the token.
type redirects struct {
	hosts          []string // of the servers
	domains        []string // what is below them, or they themselves
	allowPlaintext bool
}

// newRedirects allows the hosts of servers, their parent domains, and what lies below the
// domains of further.
func newRedirects(servers []*server, further []string, allowPlaintext bool) redirects {
	r := redirects{allowPlaintext: allowPlaintext}
	for _, s := range servers {
		host := normalDomain(s.url.Hostname())
		r.hosts = append(r.hosts, host)
		if parent := parentDomain(host); parent != "" {
			r.domains = append(r.domains, parent)
		}
	}
	for _, d := range further {
		r.domains = append(r.domains, normalDomain(d))
	}
	return r
}

// target resolves the Location of an answer from the control URL at, and says
// why it is not followed (protocol §2.8).
func (r redirects) target(at *url.URL, location string) (*url.URL, error) {
	if location == "" {
		return nil, errors.New("redirect without a Location")
	}
	ref, err := url.Parse(location)
	if err != nil {
		return nil, errors.New("redirect: Location is not a URL")
	}
	u := at.ResolveReference(ref)
	switch u.Scheme {
	case "https":
		u.Scheme = "wss"
	case "http":
		u.Scheme = "ws"
	}
	host := normalDomain(u.Hostname())
	switch {
	case u.Scheme != "wss" && u.Scheme != "ws", u.Opaque != "", u.User != nil, u.Fragment != "", host == "":
		return nil, fmt.Errorf("redirect to %q is not to an edge's URL", u.Redacted())
	case u.Scheme == "ws" && at.Scheme == "wss":
		return nil, fmt.Errorf("redirect from wss to ws (%s)", u.Host)
	case u.Scheme == "ws" && !r.allowPlaintext && !isLoopback(host):
		return nil, fmt.Errorf("redirect to %s without TLS", u.Host)
	case !r.allowed(host):
		return nil, fmt.Errorf("redirect to %s, which is neither a server nor beside one; name its domain in redirect-to to allow it", u.Host)
	case u.EscapedPath() != wire.ControlPath:
		// The host may serve other things, which the token is not for.
		return nil, fmt.Errorf("redirect to %s, but not the path of a control socket", u.Host)
	}
	return u, nil
}

func (r redirects) allowed(host string) bool {
	return slices.Contains(r.hosts, host) || slices.ContainsFunc(r.domains, func(d string) bool {
		return host == d || strings.HasSuffix(host, "."+d)
	})
}

// parentDomain is host without its first label, or empty where that would be a
// domain under which anyone may register.
func parentDomain(host string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	_, parent, _ := strings.Cut(host, ".")
	if suffix.Public(parent) {
		return ""
	}
	return parent
}
