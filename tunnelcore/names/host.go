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
// with or without a final dot) as a name directly under domain, which is
// normal (NormalDomain). ok is false for every other host, and for labels that
// are never leased: they do not reach the registry.
func ParseHost(host, domain string) (h Host, ok bool) {
	host = Normal(host)
	label, rest, _ := strings.Cut(host, ".")
	if rest == "" || rest != domain {
		return Host{}, false
	}
	label, port, hasPort := strings.Cut(label, "--")
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '0' || port[0] == '+' {
			return Host{}, false
		}
		h.Port = uint16(n)
	}
	if CheckDevice(label) != nil { // a label obeys the rules of a device id
		return Host{}, false
	}
	h.Label = label
	return h, true
}

// Normal lowers a Host and takes its port and final dot away.
func Normal(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.Contains(host[i:], "]") {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}
