package names

import (
	"strings"
	"testing"
)

func TestCheckDeviceSaysWhy(t *testing.T) {
	for id, want := range map[string]string{
		"":                      "empty",
		strings.Repeat("a", 64): "longer than 63",
		"a--b":                  "--",
		"cam_17":                "'_' at 4",
		"-cam":                  "'-' at 1",
		"cam-":                  "'-' at 4",
		"Cam":                   "'C' at 1",
	} {
		err := CheckDevice(id)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CheckDevice(%q) = %v; want %q in it", id, err, want)
		}
	}
}

func TestNewLabel(t *testing.T) {
	a, b := NewLabel(), NewLabel()
	if len(a) != 16 || CheckDevice(a) != nil {
		t.Errorf("NewLabel() = %q, which is no label of 16", a)
	}
	if a == b {
		t.Errorf("NewLabel() drew %q twice", a)
	}
}

func TestNormal(t *testing.T) {
	for in, want := range map[string]string{
		"A.Example.":    "a.example",
		"a.example:80":  "a.example",
		"a.example.:80": "a.example",
		"a.example:":    "a.example",
		"a.example:x":   "a.example:x",
		"a.example:80.": "a.example:80.",
		"a.example..":   "a.example..",
		"[::1]:80":      "[::1]",
		"[::1]":         "[::1]",
		"::1":           "::1",
		"a:1:2":         "a:1:2",
		"\u212a:80":     "\u212a", // not k
		"\xffA":         "\xffa",  // bytes that are not UTF-8 stay
		"":              "",
		".":             "",
		":":             "",
	} {
		if got := Normal(in); got != want {
			t.Errorf("Normal(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestParseHostAllocates(t *testing.T) {
	for _, host := range []string{
		"k3qz7h5mwx2c4v6b.devices.example.net",
		"k3qz7h5mwx2c4v6b.devices.example.net:443",
		"cam-17--8080.devices.example.net.",
		"cam_17.devices.example.net",
		"www.example.com",
	} {
		if n := testing.AllocsPerRun(100, func() { ParseHost(host, devices) }); n != 0 {
			t.Errorf("ParseHost(%q) allocates %v times", host, n)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	for _, v := range hostVectors {
		f.Add(v.Input, v.Domain)
	}
	f.Add("\xff.devices.example.net", devices)
	f.Fuzz(func(t *testing.T, host, domain string) {
		domain = Normal(domain)
		h, ok := ParseHost(host, domain)
		normal := Normal(host)
		if again := Normal(normal); again != normal {
			t.Fatalf("Normal(%q) = %q, and of that %q", host, normal, again)
		}
		if h2, ok2 := ParseHost(normal, domain); h2 != h || ok2 != ok {
			t.Fatalf("%q: %v, %v; its normal form %q: %v, %v", host, h, ok, normal, h2, ok2)
		}
		if !ok {
			if h != (Host{}) {
				t.Fatalf("%q is no host, and yet %v", host, h)
			}
			return
		}
		if err := CheckDevice(h.Label); err != nil {
			t.Fatalf("ParseHost(%q) = %v: %v", host, h, err)
		}
		if !strings.HasPrefix(normal, h.Label) || !strings.HasSuffix(normal, "."+domain) {
			t.Fatalf("ParseHost(%q, %q) = %v", host, domain, h)
		}
	})
}

func FuzzCheckDevice(f *testing.F) {
	for _, v := range deviceVectors {
		f.Add(v.Input)
	}
	f.Fuzz(func(t *testing.T, id string) {
		err := CheckDevice(id)
		if valid := validDevice(id); valid != (err == nil) {
			t.Fatalf("%q: validDevice %v, CheckDevice %v", id, valid, err)
		}
		if err == nil && (Normal(id) != id || len(id) > 63) {
			t.Fatalf("%q is a device id, and %q its normal form", id, Normal(id))
		}
	})
}
