package wire

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Kind says what a device's port speaks.
type Kind string

// The kinds of a port (protocol §3.3).
const (
	HTTP  Kind = "http"
	HTTPS Kind = "https"
	TCP   Kind = "tcp"
)

// Port is a port that a device forwards.
type Port struct {
	Number uint16
	Kind   Kind
}

// DefaultKind is the kind of a port that names none: http for 80, https for
// 443, tcp for every other (protocol §3.3).
func DefaultKind(port uint16) Kind {
	switch port {
	case 80:
		return HTTP
	case 443:
		return HTTPS
	}
	return TCP
}

// String is `n` when the kind is the default of n, else `n/kind`.
func (p Port) String() string {
	if p.Kind == DefaultKind(p.Number) {
		return strconv.Itoa(int(p.Number))
	}
	return strconv.Itoa(int(p.Number)) + "/" + string(p.Kind)
}

// ParsePort reads `n` or `n/kind`.
func ParsePort(s string) (Port, error) {
	number, kind, named := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || number[0] == '0' { // takes no sign; 0 and 080 are out
		return Port{}, fmt.Errorf("%q is not a port between 1 and 65535", number)
	}
	p := Port{Number: uint16(n), Kind: DefaultKind(uint16(n))}
	if named {
		switch k := Kind(kind); k {
		case HTTP, HTTPS, TCP:
			p.Kind = k
		default:
			return Port{}, fmt.Errorf("%q is not a kind: http, https or tcp", kind)
		}
	}
	return p, nil
}

// Caps is a set of capabilities: what an agent offers and, echoed in `ready`,
// what is in force (protocol §3.5).
type Caps uint8

// The capabilities of version 1.
const (
	Redirect Caps = 1 << iota
	Early
	Reuse
	Inline
)

var capNames = [...]string{"redirect", "early", "reuse", "inline"}

// Has reports whether every capability of want is in c.
func (c Caps) Has(want Caps) bool { return c&want == want }

// String lists the names, separated by commas; empty for the basic profile.
func (c Caps) String() string {
	var names []string
	for i, name := range capNames {
		if c&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// ParseCaps reads a list as String writes it. Names it does not know are
// ignored: that is how an old edge and a new agent understand each other.
func ParseCaps(s string) Caps {
	var c Caps
	for name := range strings.SplitSeq(s, ",") {
		for i, known := range capNames {
			if name == known {
				c |= 1 << i
			}
		}
	}
	return c
}

// Hello is what an agent says of itself in the URL of its control socket
// (protocol §3). Zero in a bound means that the agent names none.
type Hello struct {
	Device   string
	Ports    []Port
	Instance string // NewID at process start: tells a reconnect from a second device
	Caps     Caps
	// Bounds of the agent: streams at once, bytes of a binary message from the
	// edge, early bytes per stream and in total, seconds between pings.
	Streams    int
	MessageMax int
	Early      int
	EarlyTotal int // only with Early
	Heartbeat  int
}

// ParamError names the parameter of a handshake that the edge cannot accept.
type ParamError struct {
	Name   string
	Reason string
}

func (e *ParamError) Error() string { return "parameter " + e.Name + ": " + e.Reason }

// Query encodes h as the query of the control URL, parameters in the order of
// protocol §3, those without a value left out.
func (h Hello) Query() string {
	var b strings.Builder
	add := func(name, value string) {
		if value == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(name)
		b.WriteByte('=')
		// ',' and '/' stand unescaped in a query (RFC 3986 §3.4).
		b.WriteString(unescapeSafe.Replace(url.QueryEscape(value)))
	}
	ports := make([]string, len(h.Ports))
	for i, p := range h.Ports {
		ports[i] = p.String()
	}
	add("device", h.Device)
	add("ports", strings.Join(ports, ","))
	add("instance", h.Instance)
	add("caps", h.Caps.String())
	add("streams", positive(h.Streams))
	add("message_max", positive(h.MessageMax))
	if h.Early > 0 {
		early := positive(h.Early)
		if h.EarlyTotal > 0 {
			early += "," + positive(h.EarlyTotal)
		}
		add("early", early)
	}
	add("heartbeat", positive(h.Heartbeat))
	return b.String()
}

var unescapeSafe = strings.NewReplacer("%2C", ",", "%2F", "/")

func positive(n int) string {
	if n <= 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// ProbeParameter, with the value 1, is the parameter of a handshake that asks whether
// the device could connect, and makes no tunnel (protocol §3.6).
const ProbeParameter = "probe"

// parameters are those of the control URL, in the order of protocol §3.
var parameters = [...]string{"device", "ports", "instance", "caps", "streams", "message_max", "early", "heartbeat"}

// ParseHello reads the query of a control URL. Every error is a *ParamError.
// Parameters that it does not know are ignored. Whether the device id is one
// that the edge leases names to is not decided here, only that it is there and
// not longer than a DNS label.
func ParseHello(query string) (Hello, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return Hello{}, &ParamError{"query", printable(err.Error())}
	}
	for _, name := range parameters {
		if len(values[name]) > 1 {
			return Hello{}, &ParamError{name, "given more than once"}
		}
	}
	h := Hello{
		Device:   values.Get("device"),
		Instance: values.Get("instance"),
		Caps:     ParseCaps(values.Get("caps")),
	}
	if h.Device == "" {
		return Hello{}, &ParamError{"device", "missing"}
	}
	if len(h.Device) > 63 {
		return Hello{}, &ParamError{"device", "longer than 63 characters"}
	}
	if h.Ports, err = parsePorts(values.Get("ports")); err != nil {
		return Hello{}, err
	}
	if !ValidID(h.Instance) {
		return Hello{}, &ParamError{"instance", "not 32 lower-case hex digits"}
	}
	early, total, both := strings.Cut(values.Get("early"), ",")
	if both && (early == "" || total == "") {
		return Hello{}, &ParamError{"early", "not one number, or two with a comma between"}
	}
	bounds := []struct {
		name     string
		value    string
		to       *int
		min, max uint64
	}{
		{"streams", values.Get("streams"), &h.Streams, 1, MaxStreams},
		{"message_max", values.Get("message_max"), &h.MessageMax, MinMessage, MaxMessage},
		{"early", early, &h.Early, 1, MaxMessage},
		{"early", total, &h.EarlyTotal, 1, MaxEarlyTotal},
		{"heartbeat", values.Get("heartbeat"), &h.Heartbeat, MinHeartbeat, MaxHeartbeat},
	}
	for _, b := range bounds {
		if b.value == "" {
			continue
		}
		n, err := strconv.ParseUint(b.value, 10, 31) // takes no sign
		if err != nil || n < b.min || n > b.max || b.value[0] == '0' {
			return Hello{}, &ParamError{b.name, fmt.Sprintf("not a number from %d to %d", b.min, b.max)}
		}
		*b.to = int(n)
	}
	return h, nil
}

func parsePorts(list string) ([]Port, error) {
	if list == "" {
		return nil, &ParamError{"ports", "missing"}
	}
	var ports []Port
	seen := make(map[uint16]bool)
	for item := range strings.SplitSeq(list, ",") {
		if len(ports) == MaxPorts {
			return nil, &ParamError{"ports", fmt.Sprintf("more than %d", MaxPorts)}
		}
		p, err := ParsePort(item)
		if err != nil {
			return nil, &ParamError{"ports", printable(err.Error())}
		}
		if seen[p.Number] {
			return nil, &ParamError{"ports", fmt.Sprintf("%d given more than once", p.Number)}
		}
		seen[p.Number] = true
		ports = append(ports, p)
	}
	return ports, nil
}

// printable shortens s and replaces what is not printable ASCII, for messages
// that quote a peer.
func printable(s string) string {
	const most = 100
	b := []byte(s)
	if len(b) > most {
		b = b[:most]
	}
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}
