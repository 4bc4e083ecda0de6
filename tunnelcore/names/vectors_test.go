package names

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/internal/golden"
)

const devices = "devices.example.net"

// hostVector is a case of testdata/hosts.json: a Host header, the domain of the
// devices, and what the Host names, or null when no device.
type hostVector struct {
	Name     string      `json:"name"`
	Input    string      `json:"input"`
	Domain   string      `json:"domain"`
	Expected *hostResult `json:"expected"`
}

type hostResult struct {
	Label string `json:"label"`
	Port  uint16 `json:"port"` // 0: the bare hostname
}

func is(label string, port uint16) *hostResult { return &hostResult{label, port} }

var hostVectors = []hostVector{
	{"bare hostname", "cam-17.devices.example.net", devices, is("cam-17", 0)},
	{"random label", "k3qz7h5mwx2c4v6b.devices.example.net", devices, is("k3qz7h5mwx2c4v6b", 0)},
	{"one character", "a.devices.example.net", devices, is("a", 0)},
	{"one digit", "7.devices.example.net", devices, is("7", 0)},
	{"domain of one label", "cam-17.localhost", "localhost", is("cam-17", 0)},

	{"port of the request", "cam-17.devices.example.net:8443", devices, is("cam-17", 0)},
	{"empty port", "cam-17.devices.example.net:", devices, is("cam-17", 0)},
	{"port out of range is not looked at", "cam-17.devices.example.net:123456", devices, is("cam-17", 0)},
	{"port that is no number", "cam-17.devices.example.net:http", devices, nil},
	{"port with a sign", "cam-17.devices.example.net:-1", devices, nil},
	{"two ports", "cam-17.devices.example.net:80:80", devices, nil},
	{"colon before the domain", "cam-17:80.devices.example.net", devices, nil},

	{"upper case", "CAM-17.DEVICES.EXAMPLE.NET", devices, is("cam-17", 0)},
	{"mixed case and port", "Cam-17--8080.Devices.example.Net:80", devices, is("cam-17", 8080)},
	{"final dot", "cam-17.devices.example.net.", devices, is("cam-17", 0)},
	{"final dot and port", "cam-17.devices.example.net.:443", devices, is("cam-17", 0)},
	{"port, then a dot", "cam-17.devices.example.net:443.", devices, nil},
	{"two final dots", "cam-17.devices.example.net..", devices, nil},
	{"two final dots and port", "cam-17.devices.example.net..:443", devices, nil},

	{"device port", "cam-17--8080.devices.example.net", devices, is("cam-17", 8080)},
	{"device port 1", "cam-17--1.devices.example.net", devices, is("cam-17", 1)},
	{"device port 65535", "cam-17--65535.devices.example.net", devices, is("cam-17", 65535)},
	{"device port 65536", "cam-17--65536.devices.example.net", devices, nil},
	{"device port 0", "cam-17--0.devices.example.net", devices, nil},
	{"device port with a zero in front", "cam-17--080.devices.example.net", devices, nil},
	{"device port of 20 digits", "cam-17--18446744073709551696.devices.example.net", devices, nil},
	{"device port missing", "cam-17--.devices.example.net", devices, nil},
	{"device port is a word", "cam-17--http.devices.example.net", devices, nil},
	{"device port with a sign", "cam-17--+80.devices.example.net", devices, nil},
	{"device port in hex", "cam-17--0x50.devices.example.net", devices, nil},
	{"device port with an exponent", "cam-17--8e1.devices.example.net", devices, nil},
	{"two device ports", "cam-17--80--81.devices.example.net", devices, nil},
	{"three hyphens", "cam-17---80.devices.example.net", devices, nil},
	{"four hyphens", "cam-17----80.devices.example.net", devices, nil},
	{"both port and device port", "cam-17--22.devices.example.net:8443", devices, is("cam-17", 22)},
	{"digits around the separator", "80--80.devices.example.net", devices, is("80", 80)},

	{"two hyphens alone", "--.devices.example.net", devices, nil},
	{"device port without a label", "--80.devices.example.net", devices, nil},
	{"hyphen first", "-cam.devices.example.net", devices, nil},
	{"hyphen last", "cam-.devices.example.net", devices, nil},
	{"hyphen alone", "-.devices.example.net", devices, nil},
	{"punycode", "xn--mnchen-3ya.devices.example.net", devices, nil},
	{"punycode that looks like port 80 of xn", "xn--80.devices.example.net", devices, nil},
	{"punycode in upper case", "XN--80.devices.example.net", devices, nil},
	{"label xn", "xn.devices.example.net", devices, is("xn", 0)},
	{"label that ends in xn", "axn--80.devices.example.net", devices, is("axn", 80)},

	{"label of 63", strings.Repeat("a", 63) + ".devices.example.net", devices, is(strings.Repeat("a", 63), 0)},
	{"label of 64", strings.Repeat("a", 64) + ".devices.example.net", devices, nil},
	{"label and device port of 63", strings.Repeat("a", 56) + "--65535.devices.example.net", devices, is(strings.Repeat("a", 56), 65535)},
	{"label and device port of 64", strings.Repeat("a", 57) + "--65535.devices.example.net", devices, nil},
	{"label of 300", strings.Repeat("a", 300) + ".devices.example.net", devices, nil},

	{"empty", "", devices, nil},
	{"port alone", ":80", devices, nil},
	{"dot alone", ".", devices, nil},
	{"the domain itself", "devices.example.net", devices, nil},
	{"the domain itself with a port", "devices.example.net:80", devices, nil},
	{"empty label", ".devices.example.net", devices, nil},
	{"label alone", "cam-17", devices, nil},
	{"label and dot", "cam-17.", devices, nil},
	{"nested name", "www.cam-17.devices.example.net", devices, nil},
	{"other domain", "cam-17.example.net", devices, nil},
	{"parent of the domain", "example.net", devices, nil},
	{"domain as a suffix of a word", "cam-17.mydevices.example.net", devices, nil},
	{"domain as a prefix", "cam-17.devices.example.net.evil.example", devices, nil},
	{"domain in the label", "devices.example.net.devices.example.net", devices, nil},
	{"dot in the domain is no wildcard", "cam-17.devicesxexample.net", devices, nil},

	{"IPv4 literal", "192.0.2.7", devices, nil},
	{"IPv4 literal with a port", "192.0.2.7:80", devices, nil},
	{"IPv6 literal", "[2001:db8::1]", devices, nil},
	{"IPv6 literal with a port", "[2001:db8::1]:80", devices, nil},
	{"IPv6 literal without brackets", "2001:db8::1", devices, nil},
	{"brackets around the hostname", "[cam-17.devices.example.net]", devices, nil},

	{"underscore", "cam_17.devices.example.net", devices, nil},
	{"space", "cam 17.devices.example.net", devices, nil},
	{"space in front", " cam-17.devices.example.net", devices, nil},
	{"tab behind", "cam-17.devices.example.net\t", devices, nil},
	{"line feed", "cam-17\n.devices.example.net", devices, nil},
	{"zero byte", "cam-17\u0000.devices.example.net", devices, nil},
	{"slash", "cam/17.devices.example.net", devices, nil},
	{"percent escape", "cam%2d17.devices.example.net", devices, nil},
	{"star", "*.devices.example.net", devices, nil},
	{"colon of a registry key", "device:cam.devices.example.net", devices, nil},
	{"brace of a registry key", "{cam}.devices.example.net", devices, nil},
	{"umlaut", "münchen.devices.example.net", devices, nil},
	{"Kelvin sign, which Unicode lowers to k", "\u212aam-17.devices.example.net", devices, nil},
	{"dotted capital I, which Unicode lowers to i", "\u0130.devices.example.net", devices, nil},
	{"Kelvin sign in the domain", "cam-17.\u212a.example", "k.example", nil},
	{"full-width digit", "cam-\uff11.devices.example.net", devices, nil},
	{"ideographic full stop", "cam-17\u3002devices.example.net", devices, nil},

	{"no domain", "cam-17", "", nil},
	{"no domain, final dot", "cam-17.", "", nil},
}

// deviceVector is a case of testdata/devices.json: a string, and whether it is a
// device id. Labels obey the same rule.
type deviceVector struct {
	Name     string `json:"name"`
	Input    string `json:"input"`
	Expected bool   `json:"expected"`
}

var deviceVectors = []deviceVector{
	{"letters, hyphen, digits", "cam-17", true},
	{"one letter", "a", true},
	{"one digit", "0", true},
	{"digits", "0123456789", true},
	{"every letter", "abcdefghijklmnopqrstuvwxyz", true},
	{"single hyphens", "a-b-c-d", true},
	{"hardware address", "00-1a-2b-3c-4d-5e", true},
	{"62 characters", strings.Repeat("a", 62), true},
	{"63 characters", strings.Repeat("a", 63), true},
	{"64 characters", strings.Repeat("a", 64), false},
	{"empty", "", false},
	{"hyphen alone", "-", false},
	{"hyphen first", "-a", false},
	{"hyphen last", "a-", false},
	{"two hyphens", "a--b", false},
	{"two hyphens alone", "--", false},
	{"two hyphens last", "a--", false},
	{"punycode", "xn--mnchen-3ya", false},
	{"xn", "xn", true},
	{"xn and one hyphen", "xn-1", true},
	{"upper case", "Cam-17", false},
	{"underscore", "cam_17", false},
	{"dot", "cam.17", false},
	{"colon", "cam:17", false},
	{"slash", "cam/17", false},
	{"brace", "{cam", false},
	{"space", "cam 17", false},
	{"line feed at the end", "cam-17\n", false},
	{"zero byte", "cam\u000017", false},
	{"below the letters", "cam`", false},
	{"above the letters", "cam{", false},
	{"below the digits", "cam/", false},
	{"above the digits", "cam:", false},
	{"umlaut", "münchen", false},
	{"Kelvin sign", "\u212a", false},
	{"full-width digit", "cam-\uff11", false},
}

func TestVectors(t *testing.T) {
	for _, v := range hostVectors {
		want, ok := Host{}, v.Expected != nil
		if ok {
			want = Host{v.Expected.Label, v.Expected.Port}
		}
		if got, gotOK := ParseHost(v.Input, v.Domain); got != want || gotOK != ok {
			t.Errorf("%s: ParseHost(%q, %q) = %v, %v; want %v, %v", v.Name, v.Input, v.Domain, got, gotOK, want, ok)
		}
	}
	for _, v := range deviceVectors {
		if err := CheckDevice(v.Input); (err == nil) != v.Expected {
			t.Errorf("%s: CheckDevice(%q) = %v; want ok %v", v.Name, v.Input, err, v.Expected)
		}
		if got := validDevice(v.Input); got != v.Expected {
			t.Errorf("%s: validDevice(%q) = %v", v.Name, v.Input, got)
		}
	}
	golden.Check(t, "hosts.json", string(lines(t, hostVectors)))
	golden.Check(t, "devices.json", string(lines(t, deviceVectors)))
}

// lines is a JSON array with an element per line, so that a diff reads well.
func lines[E any](t *testing.T, list []E) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	b.WriteString("[\n")
	for i, e := range list {
		if i > 0 {
			b.Truncate(b.Len() - 1) // the line feed that Encode ends with
			b.WriteString(",\n")
		}
		if err := enc.Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("]\n")
	return b.Bytes()
}
