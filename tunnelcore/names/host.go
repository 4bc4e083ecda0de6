package names

import (
	"strconv"
	"strings"
)

// Host is a visitor's Host, resolved against the domain of the devices.
type Host struct {
	Label string
	Port  uint16 // from `label--8080`; 0 for the bare hostname
}

// ParseHost reads the Host of a request (with or without a port, in any case,
// with or without a final dot) as a name directly under domain, which has the
// form that Normal gives. ok is false for every other host, and for labels that
// are never leased: they do not reach the registry. It allocates nothing unless
// host has upper-case letters.
func ParseHost(host, domain string) (h Host, ok bool) {
	host = Normal(host)
	first, rest, _ := strings.Cut(host, ".")
	if rest == "" || rest != domain || len(first) > maxLabel {
		return Host{}, false
	}
	// `xn--80` could be read as port 80 of a device named xn, but the rest of the
	// world reads a punycode name (RFC 5890 §2.3.1).
	if strings.HasPrefix(first, "xn--") {
		return Host{}, false
	}
	label, port, hasPort := strings.Cut(first, "--")
	if hasPort {
		// One spelling per port, or pages would be cached and linked twice: no 080.
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || port[0] == '0' {
			return Host{}, false
		}
		h.Port = uint16(n)
	}
	if !validDevice(label) { // a label obeys the rules of a device id
		return Host{}, false
	}
	h.Label = label
	return h, true
}

// Normal takes a Host's port and final dot away and lowers its ASCII letters;
// Normal of the outcome is the outcome again. What is not a name with an
// optional port (an IPv6 literal, `a:b`, `a..`) keeps its odd characters, so
// that it equals no domain.
//
// Letters beyond ASCII stay as they are: Unicode would lower the Kelvin sign to
// k and let two different hosts be one.
func Normal(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && digits(host[i+1:]) {
		name := host[:i]
		if strings.HasSuffix(name, "]") || strings.IndexByte(name, ':') < 0 {
			host = name
		}
	}
	if strings.IndexByte(host, ':') < 0 && !strings.HasSuffix(host, "..") {
		host = strings.TrimSuffix(host, ".")
	}
	return lower(host)
}

// digits reports whether s is nothing but digits; the empty port of `host:` is
// one that RFC 3986 §3.2.3 allows.
func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// lower is strings.ToLower for ASCII letters alone.
func lower(s string) string {
	for i := range len(s) {
		if s[i] < 'A' || s[i] > 'Z' {
			continue
		}
		b := []byte(s)
		for ; i < len(b); i++ {
			if b[i] >= 'A' && b[i] <= 'Z' {
				b[i] += 'a' - 'A'
			}
		}
		return string(b)
	}
	return s
}
