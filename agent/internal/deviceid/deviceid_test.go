package deviceid

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/names"
)

func says(text string) func() (string, error) { return func() (string, error) { return text, nil } }

func machine() Machine {
	mac := func(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }
	return Machine{
		Interfaces: func() ([]net.Interface, error) {
			return []net.Interface{
				{Name: "wlan0", HardwareAddr: mac("B8:27:EB:00:00:02")},
				{Name: "lo", Flags: net.FlagLoopback, HardwareAddr: mac("00:00:00:00:00:00")},
				{Name: "br0", HardwareAddr: mac("b8:27:eb:00:00:01")},
				{Name: "docker0", HardwareAddr: mac("02:42:00:00:00:01")},
				{Name: "eth0", HardwareAddr: mac("B8:27:EB:0A:0B:0C")},
				{Name: "tun0"},
			}, nil
		},
		BuiltIn:   func(name string) bool { return name != "br0" },
		Serial:    says("00000000ABCD_1234\x00"),
		Hostname:  says("Cam 17.Example.net"),
		MachineID: says("0123456789ABCDEF0123456789ABCDEF\n"),
	}
}

func TestExpand(t *testing.T) {
	for template, want := range map[string]string{
		"cam-17":                              "cam-17",
		"{mac}":                               "b827eb0a0b0c",
		"cam-{mac}":                           "cam-b827eb0a0b0c",
		"{mac:wlan0}":                         "b827eb000002",
		"{mac:docker0}":                       "024200000001",
		"{serial}":                            "00000000abcd-1234",
		"{hostname}":                          "cam-17",
		"{machine_id}":                        "0123456789abcdef0123456789abcdef",
		"a{hostname}b-{mac}-x":                "acam-17b-b827eb0a0b0c-x",
		"{machine_id}-a234567890123456789012": "0123456789abcdef0123456789abcdef-a234567890123456789012",
	} {
		got, err := machine().Expand(template)
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", template, got, err, want)
		}
		if err := names.CheckDevice(got); err != nil {
			t.Errorf("%s: %v", template, err)
		}
	}
}

func TestExpandRefuses(t *testing.T) {
	m := machine()
	for template, want := range map[string]string{
		"cam-{mac":                              `"cam-{mac" has a { without a }`,
		"cam-mac}":                              `"cam-mac}" has a } without a {`,
		"{a}}":                                  `{a}: there is no such placeholder; there are {mac}, {mac:eth0}, {serial}, {hostname} and {machine_id}`,
		"{}":                                    `{}: there is no such placeholder`,
		"{MAC}":                                 `{MAC}: there is no such placeholder`,
		"{serial:1}":                            `{serial:1}: only mac takes a name behind a colon`,
		"{mac:eth9}":                            `{mac:eth9}: no network interface "eth9" (there are: br0, docker0, eth0, wlan0)`,
		"{mac:tun0}":                            `{mac:tun0}: this network interface has no MAC address`,
		"{mac:lo}":                              `{mac:lo}: this network interface has no MAC address`,
		"{mac:}":                                `{mac:}: no network interface ""`,
		"{machine_id}-a2345678901234567890123x": `makes "0123456789abcdef0123456789abcdef-a2345678901234567890123x", of 57 characters; at most 56 are possible`,
	} {
		if got, err := m.Expand(template); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %s", template, got, err, want)
		}
	}
	for name, c := range map[string]struct {
		m        Machine
		template string
		want     string
	}{
		"junk":      {Machine{Serial: says("To be filled by O.E.M.\n")}, "{serial}", `{serial}: this machine says "To be filled by O.E.M.", as others do`},
		"zeros":     {Machine{Serial: says("0000000000000000")}, "{serial}", "as others do"},
		"empty":     {Machine{Serial: says("\x00")}, "{serial}", "as others do"},
		"dashes":    {Machine{Serial: says("-_-")}, "{serial}", "no letter and no digit"},
		"localhost": {Machine{Hostname: says("localhost.localdomain")}, "{hostname}", "as others do"},
		"image":     {Machine{MachineID: says("uninitialized\n")}, "{machine_id}", "as others do"},
		"forbidden": {Machine{Interfaces: func() ([]net.Interface, error) { return nil, errors.New("permission denied") }}, "{mac}", "{mac}: network interfaces: permission denied"},
		"virtual": {
			Machine{Interfaces: machine().Interfaces, BuiltIn: func(string) bool { return false }},
			"{mac}",
			"name one, as in {mac:eth0} (there are: br0, docker0, eth0, wlan0)",
		},
		"none": {Machine{Interfaces: func() ([]net.Interface, error) { return nil, nil }}, "{mac}", "there is none with a MAC address"},
	} {
		if got, err := c.m.Expand(c.template); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v; want %s", name, got, err, c.want)
		}
	}
}

func TestFirstFile(t *testing.T) {
	dir := t.TempDir()
	empty, full := filepath.Join(dir, "empty"), filepath.Join(dir, "full")
	for name, text := range map[string]string{empty: "\n\x00", full: "a: 1\nSerial\t\t: 10000000abcd\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := firstFile(nil, filepath.Join(dir, "absent"), empty, full); !strings.HasPrefix(got, "a: 1") || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := firstFile(nil, empty); err == nil || !strings.Contains(err.Error(), "not found in "+empty) {
		t.Errorf("%q, %v", got, err)
	}
}

// What this machine has is a valid id, or an error that says what to do.
func TestThisMachine(t *testing.T) {
	for _, template := range []string{"{mac}", "{serial}", "{hostname}", "{machine_id}"} {
		id, err := This().Expand(template)
		t.Log(template, id, err)
		if err == nil && names.CheckDevice(id) != nil {
			t.Errorf("%s: %q", template, id)
		}
	}
}
