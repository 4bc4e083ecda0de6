// Package deviceid makes a device's id out of what tells one machine from another.
package deviceid

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
)

// Max is the length of the longest id that leaves room for --65535 in a DNS label.
const Max = 56

// Machine says what is known of a machine. Each function returns the plain text of
// one fact, or why it is not known; what it takes is not checked.
type Machine struct {
	Interfaces func() ([]net.Interface, error)
	// BuiltIn reports whether the interface of that name is a part of the machine,
	// whose address was not made up by software.
	BuiltIn   func(name string) bool
	Serial    func() (string, error)
	Hostname  func() (string, error)
	MachineID func() (string, error)
}

// placeholders are what a template may hold, as errors list them.
const placeholders = "{mac}, {mac:eth0}, {serial}, {hostname} and {machine_id}"

// IsTemplate reports whether Expand has something to do.
func IsTemplate(s string) bool { return strings.ContainsAny(s, "{}") }

// Expand replaces the placeholders of template:
//
//	{mac}         12 hexadecimal digits: the address of the first network interface,
//	              by name, that is built in and has one of its maker
//	{mac:eth0}    that of this interface
//	{serial}      the serial number of the machine
//	{hostname}    the first label of its name
//	{machine_id}  the id that the system drew when it was installed
//
// Values are put into lower case, and what an id cannot hold becomes a dash. The
// result is at most Max characters long; nothing is cut off, as two devices could
// then be one.
func (m Machine) Expand(template string) (string, error) {
	var b strings.Builder
	rest := template
	for {
		before, after, found := strings.Cut(rest, "{")
		if strings.Contains(before, "}") {
			return "", fmt.Errorf("%q has a } without a {", template)
		}
		b.WriteString(before)
		if !found {
			break
		}
		name, after, found := strings.Cut(after, "}")
		if !found {
			return "", fmt.Errorf("%q has a { without a }", template)
		}
		value, err := m.value(name)
		if err != nil {
			return "", fmt.Errorf("{%s}: %w", name, err)
		}
		b.WriteString(value)
		rest = after
	}
	if id := b.String(); len(id) <= Max {
		return id, nil
	}
	return "", fmt.Errorf("%q makes %q, of %d characters; at most %d are possible: {mac} takes 12, {machine_id} 32",
		template, b.String(), b.Len(), Max)
}

// value is what stands for a placeholder, which is name without its braces.
func (m Machine) value(name string) (string, error) {
	var text string
	var err error
	kind, argument, given := strings.Cut(name, ":")
	switch {
	case kind == "mac" && given:
		text, err = m.macOf(argument)
	case given:
		err = fmt.Errorf("only mac takes a name behind a colon; there are %s", placeholders)
	case kind == "mac":
		text, err = m.mac()
	case kind == "serial":
		text, err = known(m.Serial, junkSerial)
	case kind == "hostname":
		text, err = known(m.Hostname, func(s string) bool { return s == "localhost" || strings.HasPrefix(s, "localhost.") })
		text, _, _ = strings.Cut(text, ".")
	case kind == "machine_id":
		text, err = known(m.MachineID, func(s string) bool { return s == "uninitialized" })
	default:
		err = fmt.Errorf("there is no such placeholder; there are %s", placeholders)
	}
	if err != nil {
		return "", err
	}
	if id := valid(text); id != "" {
		return id, nil
	}
	return "", fmt.Errorf("%q has no letter and no digit", text)
}

// known asks for a fact, and refuses what many machines share.
func known(ask func() (string, error), junk func(string) bool) (string, error) {
	text, err := ask()
	if err != nil {
		return "", err
	}
	text = strings.TrimSpace(strings.Trim(text, "\x00")) // device trees end with one
	lower := strings.ToLower(text)
	if lower == "" || strings.Trim(lower, "0") == "" || junk(lower) {
		return "", fmt.Errorf("this machine says %q, as others do: use another placeholder, or write the id out", text)
	}
	return text, nil
}

// junkSerial knows what makers of boards write where a serial number should stand.
func junkSerial(s string) bool {
	for _, junk := range []string{
		"to be filled by o.e.m.", "system serial number", "chassis serial number", "default string", "not specified",
		"not applicable", "none", "n/a", "unknown", "invalid", "123456789", "0123456789", "1234567890", "empty",
	} {
		if s == junk {
			return true
		}
	}
	return false
}

// valid is s in lower case with a dash for each run of what an id cannot hold,
// none at the ends.
func valid(s string) string {
	var b strings.Builder
	dash := false
	for _, c := range []byte(strings.ToLower(s)) {
		if c < '0' || c > '9' && c < 'a' || c > 'z' {
			dash = b.Len() > 0
			continue
		}
		if dash {
			b.WriteByte('-')
			dash = false
		}
		b.WriteByte(c)
	}
	return b.String()
}

// mac is the address of the first built-in interface, by name, that has one of its maker.
func (m Machine) mac() (string, error) {
	all, err := m.Interfaces()
	if err != nil {
		return "", fmt.Errorf("network interfaces: %w", err)
	}
	first := -1
	for n, i := range all {
		if (first < 0 || i.Name < all[first].Name) && hasMAC(i) && i.HardwareAddr[0]&2 == 0 && m.BuiltIn(i.Name) { // 2: locally administered
			first = n
		}
	}
	if first >= 0 {
		return digits(all[first].HardwareAddr), nil
	}
	return "", fmt.Errorf("no network interface is built in and has an address of its maker; name one, as in {mac:eth0} (%s)", having(all))
}

// macOf is the address of the interface of that name.
func (m Machine) macOf(name string) (string, error) {
	all, err := m.Interfaces()
	if err != nil {
		return "", fmt.Errorf("network interfaces: %w", err)
	}
	for _, i := range all {
		switch {
		case i.Name != name:
		case !hasMAC(i):
			return "", errors.New("this network interface has no MAC address")
		default:
			return digits(i.HardwareAddr), nil
		}
	}
	return "", fmt.Errorf("no network interface %q (%s)", name, having(all))
}

func hasMAC(i net.Interface) bool {
	return i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) == 6 && strings.Trim(digits(i.HardwareAddr), "0") != ""
}

// having lists the interfaces with a MAC address.
func having(all []net.Interface) string {
	var names []string
	for _, i := range all {
		if hasMAC(i) {
			names = append(names, i.Name)
		}
	}
	if names == nil {
		return "there is none with a MAC address"
	}
	slices.Sort(names)
	return "there are: " + strings.Join(names, ", ")
}

func digits(mac net.HardwareAddr) string { return fmt.Sprintf("%x", []byte(mac)) }
