package agent

import (
	"context"
	"errors"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestNewRefuses(t *testing.T) {
	dial := func(context.Context) (net.Conn, error) { return nil, nil }
	for _, test := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Servers = nil }, "Servers: none given"},
		{func(c *Config) { c.Servers = []string{"edge.example.com"} }, "scheme is not wss"},
		{func(c *Config) { c.Servers = []string{"ftp://edge.example.com"} }, "scheme is not wss"},
		{func(c *Config) { c.Servers = []string{"wss://"} }, "not of the form"},
		{func(c *Config) { c.Servers = []string{"wss://a:0"} }, "port is not from 1 to 65535"},
		{func(c *Config) { c.Servers = []string{"wss://a:70000"} }, `"wss://a:70000": port is not from 1 to 65535`},
		{func(c *Config) { c.Servers = []string{"wss://u:pw@a"} }, `"wss://…@a": user and password`},
		{func(c *Config) { c.Servers = []string{"wss://u:pw%zz@a"} }, `"wss://…@a" is not a URL`},
		{func(c *Config) { c.Servers = []string{"wss://u:p@pw%zz@a"} }, `"wss://…@a" is not a URL`},
		{func(c *Config) { c.Servers = []string{"u:pw@a"} }, `"…@a": scheme is not wss`},
		{func(c *Config) { c.Servers = []string{"u:pw://@a"} }, `"…@a"`},
		{func(c *Config) { c.Servers = []string{"ftp://u:pw@a"} }, `"ftp://…@a": scheme is not wss`},
		{func(c *Config) { c.Servers = []string{"wss://u:pw@a:0"} }, `"wss://…@a:0": port is not from 1 to 65535`},
		{func(c *Config) { c.Servers = []string{"wss://a?token=pw"} }, `"wss://a?…" has more than`},
		{func(c *Config) { c.Servers = []string{"wss://a/#pw"} }, `"wss://a/#…" has more than`},
		{func(c *Config) { c.Servers = []string{"wss://a\x00?pw"} }, `is not a URL`},
		{func(c *Config) { c.Servers = []string{"wss://a/path"} }, "more than scheme, host and port"},
		{func(c *Config) { c.Servers = []string{"wss://a?b"} }, "more than scheme, host and port"},
		{func(c *Config) { c.Servers = []string{"ws://edge.example.com"} }, "would send the token unencrypted"},
		{func(c *Config) { c.Servers = []string{"http://192.0.2.1"} }, "would send the token unencrypted"},
		{func(c *Config) { c.Servers = []string{"ws://localhost.example.com"} }, "would send the token unencrypted"},
		{func(c *Config) { c.Device = "" }, "Device: device id is empty"},
		{func(c *Config) { c.Device = "Cam" }, "Device: device id: 'C' at 1"},
		{func(c *Config) { c.Device = strings.Repeat("a", 57) }, "Device: longer than 56"},
		{func(c *Config) { c.Token = "a b" }, "Token: character 2 is a space"},
		{func(c *Config) { c.Token = "a\n" }, "Token: character 2 is a space"},
		{func(c *Config) { c.Profile = "fast" }, `Profile: "fast" is not one`},
		{func(c *Config) { c.Heartbeat = time.Second }, "Heartbeat: 1s is not from 10s to 15m0s"},
		{func(c *Config) { c.Heartbeat = time.Hour }, "Heartbeat: 1h0m0s is not from"},
		{func(c *Config) { c.MaxBackoff = time.Millisecond }, "MaxBackoff: 1ms is not from 1s to 1h"},
		{func(c *Config) { c.Streams = -1 }, "Streams: -1 is not from 1 to 65535"},
		{func(c *Config) { c.RedirectTo = []string{"com"} }, `RedirectTo: "com" is not a domain`},
		{func(c *Config) { c.RedirectTo = []string{"*.example.com"} }, "is not a domain"},
		{func(c *Config) { c.Forwards = nil }, "Forwards: 0 given, 1 to 32"},
		{func(c *Config) { c.Forwards = make([]Forward, 33) }, "Forwards: 33 given, 1 to 32"},
		{func(c *Config) { c.Forwards[0].Port = 0 }, "Forwards: port 0"},
		{func(c *Config) { c.Forwards = append(c.Forwards, c.Forwards[0]) }, "Forwards: port 80 is given twice"},
		{func(c *Config) { c.Forwards[0].Kind = "udp" }, `Forwards: port 80: kind "udp"`},
		{func(c *Config) { c.Forwards[0].Target = "" }, "Forwards: port 80: needs either Target or Dial"},
		{func(c *Config) { c.Forwards[0].Dial = dial }, "Forwards: port 80: needs either Target or Dial"},
		{func(c *Config) { c.Forwards[0].Target = "127.0.0.1" }, `target "127.0.0.1" is not host:port`},
		{func(c *Config) { c.Forwards[0].Target = ":80" }, `target ":80" is not host:port`},
		{func(c *Config) { c.Forwards[0].Target = "a:http" }, `target "a:http" is not host:port`},
	} {
		c := Config{Servers: []string{"wss://edge.example.com"}, Device: "cam-17", Forwards: []Forward{{Port: 80, Target: "127.0.0.1:80"}}}
		test.change(&c)
		_, err := New(c)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "pw") {
			t.Errorf("New: %v, want %s, and no password", err, test.want)
		}
		var wrong *ConfigError
		if !errors.As(err, &wrong) || err.Error() != "agent: "+wrong.Field+": "+wrong.Err.Error() {
			t.Errorf("New: %v, want a ConfigError", err)
			continue
		}
		if _, ok := reflect.TypeFor[Config]().FieldByName(wrong.Field); !ok {
			t.Errorf("New: %v: Config has no field %s", err, wrong.Field)
		}
	}
}

func TestNewAccepts(t *testing.T) {
	for _, server := range []string{"wss://edge.example.com", "https://edge.example.com:8443/", "wss://[2001:db8::1]:443",
		"ws://127.0.0.1:8080", "http://127.8.9.1", "ws://[::1]:80", "ws://localhost", "http://a.LOCALHOST:1", "ws://[::ffff:127.0.0.1]"} {
		if _, err := New(Config{Servers: []string{server}, Device: "cam-17", Forwards: []Forward{{Port: 80, Target: "[::1]:80"}}}); err != nil {
			t.Errorf("%s: %v", server, err)
		}
	}
	c := Config{Servers: []string{"ws://edge.example.com"}, AllowPlaintext: true, Device: strings.Repeat("a", 56), Forwards: []Forward{{Port: 80, Target: "host:1"}}}
	if _, err := New(c); err != nil {
		t.Errorf("plaintext that is allowed: %v", err)
	}
}

func TestRunOnceAtATime(t *testing.T) {
	e := startEdge(t)
	a := mustNew(t, config(e, Forward{Port: 80, Dial: nowhere}))
	stop := start(t, a)
	receive(t, e.tunnels)
	if err := a.Run(t.Context()); err == nil {
		t.Error("a second Run at the same time")
	}
	stop()
	start(t, a) // but one after the other
	receive(t, e.tunnels)
}
