package redisregistry_test

import (
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/redisregistry"
)

// TestAddresses opens registries that nobody asks anything: no Redis is needed.
func TestAddresses(t *testing.T) {
	sentinel := func(addr string) redisregistry.Options {
		return redisregistry.Options{Sentinel: &redisregistry.Sentinel{Master: "iottunnel", Addrs: []string{addr}}}
	}
	for _, c := range []struct {
		name    string
		options redisregistry.Options
		want    string // part of the error; empty: none
	}{
		{"url", redisregistry.Options{URL: "redis://127.0.0.1:6379/0"}, ""},
		{"url of IPv6, TLS", redisregistry.Options{URL: "rediss://[::1]:6380"}, ""},
		{"url without a port", redisregistry.Options{URL: "redis://redis.example.com"}, ""},
		{"url of a socket file", redisregistry.Options{URL: "unix:///run/redis.sock"}, ""},
		{"url, port too large", redisregistry.Options{URL: "redis://127.0.0.1:65536/0"}, `url: port "65536": want 1 to 65535`},
		{"url, port 0", redisregistry.Options{URL: "redis://127.0.0.1:0"}, `url: port "0": want 1 to 65535`},
		{"url of another kind", redisregistry.Options{URL: "http://127.0.0.1"}, "want redis://"},
		{"sentinel", sentinel("10.0.0.1:26379"), ""},
		{"sentinel, no port", sentinel("10.0.0.1"), `sentinel: address "10.0.0.1": want host:port`},
		{"sentinel, port of a name", sentinel("10.0.0.1:redis"), `sentinel: port "redis": want 1 to 65535`},
		{"cluster, port too large", redisregistry.Options{Cluster: []string{"10.0.0.1:6379", "10.0.0.2:70000"}}, `cluster: port "70000": want 1 to 65535`},
	} {
		reg, err := redisregistry.Open(t.Context(), c.options)
		if err == nil {
			if err := reg.Close(); err != nil {
				t.Errorf("%s: close: %v", c.name, err)
			}
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
