package agent

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// environment is what the environment says of proxies. It is read as
// http.ProxyFromEnvironment reads it, but for names with other characters than
// ASCII: those are nobody's here, as no look-up takes them.
type environment struct {
	secure, plain *url.URL // nil: none
	cgi           bool     // HTTP_PROXY may be a header of a stranger's request
	direct        []exception
}

// exception is an entry of NO_PROXY. Where port is empty it is for all.
type exception struct {
	all    bool
	prefix netip.Prefix
	suffix string // of a name, with its dot
	itself bool   // the name without that dot as well
	port   string
}

// readEnvironment reads proxies as curl and package net/http do: a name in lower case
// first. What cannot be understood is left out.
func readEnvironment(get func(string) string) environment {
	first := func(names ...string) string {
		for _, n := range names {
			if v := get(n); v != "" {
				return v
			}
		}
		return ""
	}
	e := environment{
		secure: parseProxy(first("https_proxy", "HTTPS_PROXY")),
		plain:  parseProxy(first("http_proxy", "HTTP_PROXY")),
		cgi:    get("REQUEST_METHOD") != "",
	}
	for entry := range strings.SplitSeq(first("no_proxy", "NO_PROXY"), ",") {
		if x, ok := parseException(strings.ToLower(strings.TrimSpace(entry))); ok {
			e.direct = append(e.direct, x)
		}
	}
	return e
}

// parseProxy reads a URL, or a host with or without a port; nil for what is neither.
func parseProxy(s string) *url.URL {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err == nil && u.Scheme != "" && u.Host != "" {
		return u
	}
	if guess, guessErr := url.Parse("http://" + s); guessErr == nil {
		return guess
	}
	if err != nil {
		return nil
	}
	return u
}

// parseException reads an address, a network, a name, or * for all; addresses and
// names may have a port. ok is false for what is none of them.
func parseException(s string) (x exception, ok bool) {
	if s == "*" {
		return exception{all: true}, true
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return exception{prefix: netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked()}, true
	}
	host := s
	if h, port, err := net.SplitHostPort(s); err == nil {
		host, x.port = h, port
	}
	if host == "" {
		return x, false
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		a = a.Unmap()
		x.prefix = netip.PrefixFrom(a, a.BitLen())
		return x, true
	}
	if strings.HasPrefix(host, "*.") {
		host = host[1:]
	}
	if x.itself = host[0] != '.'; x.itself {
		host = "." + host
	}
	x.suffix = host
	return x, true
}

// proxy is Config.Proxy.
func (e environment) proxy(u *url.URL) (*url.URL, error) {
	proxy, port := e.secure, "443"
	if u.Scheme == "http" {
		proxy, port = e.plain, "80"
		if proxy != nil && e.cgi {
			return nil, errors.New("HTTP_PROXY in the environment of a CGI program cannot be used: it may be a header of a stranger's request")
		}
	}
	if u.Port() != "" {
		port = u.Port()
	}
	if proxy == nil || e.without(u.Hostname(), port) {
		return nil, nil
	}
	return proxy, nil
}

// without reports whether no proxy is asked for a host.
func (e environment) without(host, port string) bool {
	addr, err := netip.ParseAddr(host)
	addr = addr.Unmap().WithZone("")
	isAddr := err == nil
	if host == "localhost" || isAddr && addr.IsLoopback() {
		return true
	}
	host = strings.ToLower(host)
	for _, x := range e.direct {
		match := x.all
		switch {
		case match || x.port != "" && x.port != port:
		case isAddr:
			match = x.prefix.IsValid() && x.prefix.Contains(addr)
		case x.suffix != "":
			match = strings.HasSuffix(host, x.suffix) || x.itself && host == x.suffix[1:]
		}
		if match {
			return true
		}
	}
	return false
}
