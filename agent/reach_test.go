package agent

import (
	"net/url"
	"testing"
)

func TestProxyFor(t *testing.T) {
	a := mustNew(t, Config{
		Servers: []string{"wss://edge.example.com"}, Device: "cam-17", Forwards: []Forward{{Port: 80, Dial: nowhere}},
		Proxy: func(u *url.URL) (*url.URL, error) {
			if u.Scheme == "http" {
				return nil, nil
			}
			return url.Parse("http://proxy.example.com:3128/?" + u.String())
		},
	})
	for server, want := range map[string]string{
		"wss://edge.example.com":   "http://proxy.example.com:3128/?https://edge.example.com",
		"https://edge.example.com": "http://proxy.example.com:3128/?https://edge.example.com",
	} {
		if got, err := a.ProxyFor(server); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v", server, got, err)
		}
	}
	if got, err := a.ProxyFor("ws://localhost"); got != nil || err != nil {
		t.Errorf("plain: %v, %v", got, err)
	}
	if _, err := a.ProxyFor("ftp://a"); err == nil {
		t.Error("ftp has a proxy")
	}
}
